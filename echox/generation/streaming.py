"""Speech while text goes on: an answer is cut as its tokens come, and each segment is spoken once it is whole."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from echox.backbones.base import Backbone
from echox.errors import SignalError
from echox.generation.answering import Answerer, Clock, Question, Speaker, refuse_unanswerable
from echox.generation.published import Piece
from echox.models.echo import EchoModel
from echox.models.segmenting import Cutter, Segment, Segmenter, SegmentsConfig, spans_of


@torch.no_grad()
def stream(answerer: Answerer, question: Question, segments: SegmentsConfig | None = None) -> Iterator[Piece]:
    """Answer one conversation: text after every token, speech of each segment once it is cut, in order.

    Args:
        segments: how to cut; None cuts as the checkpoint was trained, or by the paper's rule where it was trained on whole answers.
    Raises:
        SignalError: the checkpoint has no voice; or as `Answerer.reply`.
    """
    if answerer.echo is None:
        raise SignalError("this checkpoint is of stage s2t and has no voice; load one of stage echo")
    refuse_unanswerable(question)
    cutter = answerer.echo.cutter if segments is None and answerer.echo.cutter is not None else Cutter(segments or SegmentsConfig(), answerer.backbone)
    segmenter, tokens, states = Segmenter(cutter.rule), [], []
    for token, state in _steps(answerer, question):
        tokens.append(token)
        states.append(state)
        yield Piece(answerer.backbone.detokenize(tokens))
        if cut := segmenter.push(float(cutter.scores(state))):
            yield _piece(answerer, tokens, states, cut)
    if cut := segmenter.flush():
        yield _piece(answerer, tokens, states, cut)


def _steps(answerer: Answerer, question: Question) -> Iterator[tuple[int, Tensor]]:
    """Greedy tokens of an answer, each with the state [H] that predicted it, up to the end or the limit."""
    backbone: Backbone = answerer.backbone
    with torch.autocast(answerer.device.type, torch.bfloat16, enabled=answerer.bf16):
        prompted = answerer.prompted([question])
        mask = prompted.mask
        state = backbone(prompted.embeddings, mask, use_cache=True)
    for _ in range(answerer.max_tokens):
        last = state.hidden[:, -1:]
        # No context is left open over a yield: it would hold for whoever takes the token.
        with torch.autocast(answerer.device.type, torch.bfloat16, enabled=answerer.bf16):
            token = backbone.logits(last).float().argmax(-1)
        if int(token) in (backbone.end_id, *backbone.other_end_ids):
            return
        yield int(token), last[0, 0]
        mask = torch.cat([mask, mask.new_ones(1, 1)], dim=1)
        with torch.autocast(answerer.device.type, torch.bfloat16, enabled=answerer.bf16):
            state = backbone(backbone.embed(token).to(prompted.embeddings.dtype), mask, state.cache, use_cache=True)


def _piece(answerer: Answerer, tokens: list[int], states: list[Tensor], cut: Segment) -> Piece:
    echo: EchoModel = answerer.echo
    span = spans_of([(0, cut.start, cut.end)], answerer.device)
    with torch.autocast(answerer.device.type, torch.bfloat16, enabled=answerer.bf16):
        words = echo.speak_spans(torch.stack(states)[None], span, loop=answerer.loop)
    _, (samples,) = Speaker(answerer.codec, answerer.bf16).sound(words, Clock(answerer.device))
    return Piece(answerer.backbone.detokenize(tokens), samples)
