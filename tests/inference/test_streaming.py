"""Streams of trained checkpoints: the pieces are the segments of the answer, in order."""

import pytest
import torch
from tiny_run import noise, write_run

from echox.backbones.base import Turn
from echox.core.errors import SignalError
from echox.core.signals import Spans
from echox.inference.answers import USER, Question
from echox.inference.load import load_pipeline
from echox.inference.streaming import stream
from echox.models.segmenting import Cutter, SegmentRule, SegmentsConfig


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    run = write_run(tmp_path_factory.mktemp("run"))
    return load_pipeline(run / "echo" / "final", device="cpu", max_tokens=9, bf16=False)


def question(seed=1):
    return Question(
        (Turn(USER, "", True), Turn("assistant", "Go on."), Turn(USER, "", True)),
        (noise(seed, 0.5), noise(seed + 1, 0.8)),
    )


def test_pieces_are_the_segments_of_the_whole_answer(pipeline):
    cuts = SegmentsConfig(rule=SegmentRule(threshold=-1.0, window=1))
    answer = pipeline.reply([question()], speak=False)[0]
    pieces = list(stream(pipeline, question(), cuts))
    texts = [piece.text for piece in pieces if piece.samples is None]
    speech = [
        (index, piece.samples) for index, piece in enumerate(pieces) if piece.samples is not None
    ]
    assert texts[-1] == answer.text and len(texts) == len(answer.token_ids)
    assert len(speech) > 1 and speech[0][0] < len(pieces) - 2, (
        "the first segment comes before the text is finished"
    )
    pipeline.echo.cutter = Cutter(cuts, pipeline.backbone)
    try:
        generated = pipeline.generate_text([question()])
        spans = pipeline.echo.spans(generated.hidden, generated.lengths)
        assert len(spans.rows) == len(speech)
        at_once = pipeline.reply([question()])[0]
        one_by_one = []
        for row, start, end in zip(spans.rows, spans.starts, spans.ends):
            span = Spans(row[None], start[None], end[None])
            unit_tokens = pipeline.echo.speak_spans(generated.hidden[:, : int(end)], span)[0]
            one_by_one += pipeline.codec.units_of(unit_tokens)
        assert list(at_once.units) == one_by_one
        assert len(list(stream(pipeline, question()))) == len(pieces), (
            "the checkpoint's own cuts are the default"
        )
    finally:
        pipeline.echo.cutter = None
    assert all(bool(torch.isfinite(samples).all()) and len(samples) for _, samples in speech)


def test_what_cannot_be_answered_is_one_sentence(pipeline):
    turns = (Turn(USER, "", True),)
    with pytest.raises(
        SignalError,
        match="1 turns of a conversation have a place for audio, but 0 clips came with it; "
        "give one to each",
    ):
        pipeline.reply([Question(turns)])
    with pytest.raises(SignalError, match="0 turns .* but 1 clips"):
        next(stream(pipeline, Question((Turn(USER, "hello"),), (noise(0, 0.2),))))
    with pytest.raises(
        SignalError,
        match="and an answer of 9 is longer than the 2048 of the language model; "
        "shorten its audio or text",
    ):
        pipeline.reply([Question((Turn(USER, "a" * 2100),))])
