"""Streaming answers: text token by token, and each segment's speech as soon as it is complete."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from echox.decoding.greedy_text import decode_steps
from echox.inference.answers import Clock, Piece, Question, refuse_unanswerable
from echox.inference.pipeline import SpeechToSpeechPipeline
from echox.inference.tts import UnitSynthesizer
from echox.models.segmenting import Cutter, Segment, Segmenter, SegmentsConfig, spans_of


@torch.no_grad()
def stream(
    pipeline: SpeechToSpeechPipeline, question: Question, segments: SegmentsConfig | None = None
) -> Iterator[Piece]:
    """Answer one conversation piece by piece, in order.

    Args:
        pipeline: answers aloud, or in text alone.
        question: the conversation.
        segments: how to cut; None cuts as the checkpoint was trained, or by the paper's rule where
            it was trained on whole answers.

    Yields:
        a piece of text after every token, and of samples [T] after every segment.

    Raises:
        SignalError: as `SpeechToSpeechPipeline.reply`.
        ConfigError: the trigger of `segments` is not one token of the language model.
    """
    refuse_unanswerable(question)
    # Where nothing is synthesized no segment is needed.
    cutter = _cutter(pipeline, segments) if pipeline.speaks else None
    segmenter = Segmenter() if cutter is None else Segmenter(cutter.rule)
    tokens, states = [], []
    for token, state in _decode_steps(pipeline, question):
        tokens.append(token)
        states.append(state)
        # The text of all tokens: a character may be spread over several of them.
        yield Piece(pipeline.backbone.detokenize(tokens))
        if cutter is not None and (segment := segmenter.push(float(cutter.scores(state)))):
            yield _synthesized(pipeline, tokens, states, segment)
    # Without a cutter nothing was pushed.
    if segment := segmenter.flush():
        yield _synthesized(pipeline, tokens, states, segment)


def _cutter(pipeline: SpeechToSpeechPipeline, segments: SegmentsConfig | None) -> Cutter:
    # An echo checkpoint that was trained on whole answers has no cutter of its own.
    own = pipeline.require_echo().cutter
    if segments is None and own is not None:
        return own
    return Cutter(segments or SegmentsConfig(), pipeline.backbone)


def _decode_steps(
    pipeline: SpeechToSpeechPipeline, question: Question
) -> Iterator[tuple[int, Tensor]]:
    """Greedy tokens of an answer, each with the state [H] that predicted it, up to the end."""
    backbone = pipeline.backbone
    with pipeline.autocast():
        prompted = pipeline.encode_prompt([question])
    # Some chat templates end a turn by another token than the tokenizer's own end.
    ends = [backbone.end_id, *backbone.other_end_ids]
    steps = decode_steps(backbone, prompted.embeddings, prompted.mask, ends, pipeline.max_tokens)
    while True:
        # No context is left open over a yield: it would hold for whoever takes the token.
        with pipeline.autocast():
            step = next(steps, None)
        if step is None:
            return
        token, states = step
        if int(token) == backbone.end_id:
            return
        yield int(token), states[0]


def _synthesized(
    pipeline: SpeechToSpeechPipeline, tokens: list[int], states: list[Tensor], segment: Segment
) -> Piece:
    """A segment's speech, beside the text so far."""
    # One segment of all states so far: its positions are those of the answer.
    span = spans_of([(0, segment.start, segment.end)], pipeline.device)
    hidden = torch.stack(states)[None]  # [1, S, H]
    text = torch.tensor(tokens, device=pipeline.device)[None]  # [1, S]
    with pipeline.autocast():
        unit_tokens = pipeline.require_echo().speak_spans(
            hidden, span, engine=pipeline.unit_engine, text=text
        )
    synthesizer = UnitSynthesizer(pipeline.require_codec(), pipeline.bf16)
    _, (samples,) = synthesizer.synthesize(unit_tokens, Clock(pipeline.device))
    return Piece(pipeline.backbone.detokenize(tokens), samples)
