"""Streaming answers: text token by token, and each segment's speech as soon as it is complete."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from echox.core.errors import SignalError
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
        pipeline: of an echo checkpoint.
        question: the conversation.
        segments: how to cut; None cuts as the checkpoint was trained, or by the paper's rule where
            it was trained on whole answers.

    Yields:
        a piece of text after every token, and of samples [T] after every segment.

    Raises:
        SignalError: the checkpoint synthesizes nothing; or as `SpeechToSpeechPipeline.reply`.
        ConfigError: the trigger of `segments` is not one token of the language model.
    """
    if pipeline.echo is None:
        raise SignalError(
            "this checkpoint is of stage s2t and has no voice; load one of stage echo"
        )
    refuse_unanswerable(question)
    # An echo checkpoint that was trained on whole answers has no cutter of its own.
    cutter = pipeline.echo.cutter if segments is None else None
    if cutter is None:
        cutter = Cutter(segments or SegmentsConfig(), pipeline.backbone)
    segmenter, tokens, states = Segmenter(cutter.rule), [], []
    for token, state in _decode_steps(pipeline, question):
        tokens.append(token)
        states.append(state)
        # The text of all tokens: a character may be spread over several of them.
        yield Piece(pipeline.backbone.detokenize(tokens))
        if segment := segmenter.push(float(cutter.scores(state))):
            yield _synthesized(pipeline, tokens, states, segment)
    if segment := segmenter.flush():
        yield _synthesized(pipeline, tokens, states, segment)


def _decode_steps(
    pipeline: SpeechToSpeechPipeline, question: Question
) -> Iterator[tuple[int, Tensor]]:
    """Greedy tokens of an answer, each with the state [H] that predicted it, up to the end."""
    backbone = pipeline.backbone
    with pipeline.autocast():
        prompted = pipeline.encode_prompt([question])
        mask = prompted.mask
        state = backbone(prompted.embeddings, mask, use_cache=True)
    for _ in range(pipeline.max_tokens):
        last = state.hidden[:, -1:]  # [1, 1, H]
        # No context is left open over a yield: it would hold for whoever takes the token.
        with pipeline.autocast():
            token = backbone.logits(last).float().argmax(-1)
        # Some chat templates end a turn by another token than the tokenizer's own end.
        if int(token) in (backbone.end_id, *backbone.other_end_ids):
            return
        yield int(token), last[0, 0]
        # The backbone masks and positions by all tokens so far, cached ones included.
        mask = torch.cat([mask, mask.new_ones(1, 1)], dim=1)
        with pipeline.autocast():
            embedded = backbone.embed(token).to(prompted.embeddings.dtype)
            state = backbone(embedded, mask, state.cache, use_cache=True)


def _synthesized(
    pipeline: SpeechToSpeechPipeline, tokens: list[int], states: list[Tensor], segment: Segment
) -> Piece:
    """A segment's speech, beside the text so far."""
    # One segment of all states so far: its positions are those of the answer.
    span = spans_of([(0, segment.start, segment.end)], pipeline.device)
    hidden = torch.stack(states)[None]  # [1, S, H]
    text = torch.tensor(tokens, device=pipeline.device)[None]  # [1, S]
    with pipeline.autocast():
        unit_tokens = pipeline.echo.speak_spans(
            hidden, span, engine=pipeline.unit_engine, text=text
        )
    synthesizer = UnitSynthesizer(pipeline.codec, pipeline.bf16)
    _, (samples,) = synthesizer.synthesize(unit_tokens, Clock(pipeline.device))
    return Piece(pipeline.backbone.detokenize(tokens), samples)
