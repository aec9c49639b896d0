"""Speech while text goes on, by trained checkpoints: the pieces are what is spoken at once, and come in order."""

import pytest
import torch
from tiny_run import noise, write_run

from echox.backbones.base import Turn
from echox.errors import SignalError
from echox.generation.answering import USER, Question
from echox.generation.loading import load_answerer
from echox.generation.streaming import stream
from echox.models.segmenting import Cutter, SegmentRule, SegmentsConfig


@pytest.fixture(scope="module")
def answerer(tmp_path_factory):
    run = write_run(tmp_path_factory.mktemp("run"))
    return load_answerer(run / "echo" / "final", device="cpu", max_tokens=9, bf16=False)


def question(seed=1):
    return Question((Turn(USER, "", True), Turn("assistant", "Go on."), Turn(USER, "", True)), (noise(seed, 0.5), noise(seed + 1, 0.8)))


def test_pieces_are_the_segments_of_the_whole_answer(answerer):
    cuts = SegmentsConfig(rule=SegmentRule(threshold=-1.0, window=1))
    whole = answerer.reply([question()], speak=False)[0]
    pieces = list(stream(answerer, question(), cuts))
    texts = [piece.text for piece in pieces if piece.samples is None]
    spoken = [(at, piece.samples) for at, piece in enumerate(pieces) if piece.samples is not None]
    assert texts[-1] == whole.text and len(texts) == len(whole.token_ids)
    assert len(spoken) > 1 and spoken[0][0] < len(pieces) - 2, "the first segment is heard before the text is finished"
    answerer.echo.cutter = Cutter(cuts, answerer.backbone)
    try:
        said = answerer.think([question()])
        spans = answerer.echo.spans(said.hidden, said.lengths)
        assert len(spans.rows) == len(spoken)
        at_once = answerer.reply([question()])[0]
        one_by_one = [answerer.codec.units_of(answerer.echo.speak_spans(said.hidden[:, : int(end)], type(spans)(row[None], start[None], end[None]))[0])
                      for row, start, end in zip(spans.rows, spans.starts, spans.ends)]  # fmt: skip
        assert list(at_once.units) == [unit for part in one_by_one for unit in part]
        assert len(list(stream(answerer, question()))) == len(pieces), "the checkpoint's own cuts are the default"
    finally:
        answerer.echo.cutter = None
    assert all(bool(torch.isfinite(samples).all()) and len(samples) for _, samples in spoken)


def test_what_cannot_be_answered_is_one_sentence(answerer):
    turns = (Turn(USER, "", True),)
    with pytest.raises(SignalError, match="1 turns of a conversation have a place for audio, but 0 clips came with it; give one to each"):
        answerer.reply([Question(turns)])
    with pytest.raises(SignalError, match="0 turns .* but 1 clips"):
        next(stream(answerer, Question((Turn(USER, "hello"),), (noise(0, 0.2),))))
    with pytest.raises(SignalError, match="and an answer of 9 is longer than the 2048 of the language model; shorten its audio or text"):
        answerer.reply([Question((Turn(USER, "a" * 2100),))])
