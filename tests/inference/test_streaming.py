"""Streams of trained checkpoints: the pieces are the segments of the answer, in order."""

import pytest
import torch
from tiny_run import noise, write_run

from echox.backbones.base import Turn
from echox.core.errors import SignalError
from echox.core.signals import Units, Waveform
from echox.decoding.prompt_cache import PromptCache
from echox.inference import speech_stream
from echox.inference.answers import USER, Clock, Question
from echox.inference.clip_cache import ClipCache, EncodedClip
from echox.inference.load import load_pipeline
from echox.inference.streaming import AnswerStreams, stream
from echox.models import echo
from echox.models.segmenting import Cutter, SegmentRule, SegmentsConfig
from echox.serving.serve import warm_up


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    run = write_run(tmp_path_factory.mktemp("run"))
    return load_pipeline(run / "echo" / "final", device="cpu", max_tokens=9, bf16=False)


def question(seed=1):
    return Question(
        (Turn(USER, "", True), Turn("assistant", "Go on."), Turn(USER, "", True)),
        (noise(seed, 0.5), noise(seed + 1, 0.8)),
    )


CUTS = SegmentsConfig(rule=SegmentRule(threshold=-1.0, window=1))


@pytest.fixture
def cut_pipeline(pipeline, monkeypatch):
    """The pipeline with answers in several segments, and a first chunk of few units."""
    monkeypatch.setattr(pipeline, "segments", CUTS)
    monkeypatch.setattr(speech_stream, "FIRST_S", 0.04)
    return pipeline


def samples_of(pieces):
    return torch.cat([piece.samples for piece in pieces if piece.samples is not None])


def check_equal(pieces, whole):
    """The pieces of a stream are the whole answer."""
    answer = pieces[-1].answer
    for name in ("text", "token_ids", "units", "heard", "heard_ids", "cut", "unheard"):
        assert getattr(answer, name) == getattr(whole, name), name
    joined = samples_of(pieces)
    assert len(joined) == len(whole.samples)
    assert torch.allclose(joined, whole.samples, atol=1e-5)
    starts = [piece.first_sample for piece in pieces if piece.samples is not None]
    lengths = [len(piece.samples) for piece in pieces if piece.samples is not None]
    assert starts == [sum(lengths[:number]) for number in range(len(lengths))]


@pytest.mark.parametrize("place", ["pipeline", "checkpoint", "argument"])
def test_a_stream_is_the_whole_answer(pipeline, monkeypatch, place):
    monkeypatch.setattr(speech_stream, "FIRST_S", 0.04)
    monkeypatch.setattr(pipeline, "segments", CUTS if place != "checkpoint" else None)
    if place == "checkpoint":
        monkeypatch.setattr(pipeline.echo, "cutter", Cutter(CUTS, pipeline.backbone))
    whole = pipeline.reply([question()])[0]
    if place == "argument":
        monkeypatch.setattr(pipeline, "segments", None)
    pieces = list(stream(pipeline, question(), CUTS if place == "argument" else None))
    check_equal(pieces, whole)
    texts = [piece.text for piece in pieces if piece.samples is None and piece.answer is None]
    assert texts[-1] == whole.text and len(texts) == len(whole.token_ids)


def test_speech_begins_before_the_text_ends(cut_pipeline, monkeypatch):
    monkeypatch.setattr(cut_pipeline, "max_tokens", 40)
    pieces = list(stream(cut_pipeline, question()))
    first = next(number for number, piece in enumerate(pieces) if piece.samples is not None)
    assert first < len(pieces) / 2
    assert sum(piece.samples is not None for piece in pieces) > 2


def test_without_cuts_the_two_ways_agree_too(pipeline):
    check_equal(list(stream(pipeline, question())), pipeline.reply([question()])[0])


def test_a_text_that_the_engine_has_no_room_for_is_the_same(cut_pipeline, monkeypatch):
    monkeypatch.setattr(cut_pipeline.text_engine, "capacity", 10)
    check_equal(list(stream(cut_pipeline, question())), cut_pipeline.reply([question()])[0])


def test_answers_at_once_are_those_of_each_alone(cut_pipeline):
    streams, pieces = AnswerStreams(cut_pipeline), {}
    numbers = [streams.add(question(seed)) for seed in (1, 5)]
    pieces = {number: [] for number in numbers}
    while not streams.is_idle:
        for number, piece in streams.step():
            pieces.setdefault(number, []).append(piece)
        if len(pieces) == 2 and len(pieces[0]) > 3:
            # One that comes while others are on their way.
            pieces[streams.add(question(9))] = []
    for number, seed in enumerate((1, 5, 9)):
        check_equal(pieces[number], cut_pipeline.reply([question(seed)])[0])


def test_a_cancelled_answer_frees_everything_within_a_step(cut_pipeline):
    streams = AnswerStreams(cut_pipeline)
    kept, dropped, waits = (streams.add(question(seed)) for seed in (1, 5, 7))
    streams.cancel(waits)
    pieces = streams.step() + streams.step()
    streams.cancel(dropped)
    streams.cancel(dropped)
    before = len(pieces)
    while not streams.is_idle:
        pieces += streams.step()
    assert {number for number, _ in pieces[before:]} == {kept}
    assert cut_pipeline.text_engine.is_idle and cut_pipeline.unit_engine.is_idle
    check_equal(
        [piece for number, piece in pieces if number == kept], cut_pipeline.reply([question(1)])[0]
    )


def test_a_stream_that_is_left_frees_its_slots(cut_pipeline):
    pieces = stream(cut_pipeline, question())
    for _ in range(5):
        next(pieces)
    assert not cut_pipeline.text_engine.is_idle
    pieces.close()
    assert cut_pipeline.text_engine.is_idle and cut_pipeline.unit_engine.is_idle


def test_one_that_is_too_long_keeps_no_other_from_its_answer(cut_pipeline):
    streams = AnswerStreams(cut_pipeline)
    streams.add(Question((Turn(USER, "a" * 2100),)))
    streams.add(question())
    last = {}
    while not streams.is_idle:
        last |= {number: piece for number, piece in streams.step()}
    assert "longer than the 2048 of the language model" in last[0].error
    assert last[1].answer is not None and not last[1].error


@pytest.mark.parametrize("last", [False, True])
def test_a_codec_that_refuses_units_ends_that_answer_alone(cut_pipeline, monkeypatch, last):
    decode_chunk, refused = type(cut_pipeline.codec).decode_chunk, []

    def refuse_once(codec, units, state=None, *, last):
        if last is wanted and not refused:
            refused.append(units)
            raise SignalError("these units are refused")
        return decode_chunk(codec, units, state, last=last)

    wanted = last
    monkeypatch.setattr(type(cut_pipeline.codec), "decode_chunk", refuse_once)
    streams, ends = AnswerStreams(cut_pipeline), {}
    for seed in (1, 5):
        streams.add(question(seed))
    while not streams.is_idle:
        ends |= {number: piece for number, piece in streams.step()}
    assert sorted(bool(piece.error) for piece in ends.values()) == [False, True]
    assert cut_pipeline.unit_engine.is_idle and cut_pipeline.text_engine.is_idle


def test_what_began_before_the_one_that_failed_begins_once(cut_pipeline, monkeypatch):
    cutting, asked = cut_pipeline.cutting, []

    def fail_once(segments=None):
        asked.append(segments)
        if len(asked) == 2:
            raise SignalError("not now")
        return cutting(segments)

    monkeypatch.setattr(cut_pipeline, "cutting", fail_once)
    streams, last = AnswerStreams(cut_pipeline), {}
    for seed in (1, 5):
        streams.add(question(seed))
    while not streams.is_idle:
        last |= {number: piece for number, piece in streams.step()}
    assert all(piece.answer is not None for piece in last.values()) and len(last) == 2
    assert cut_pipeline.text_engine.is_idle and cut_pipeline.unit_engine.is_idle


def test_a_codec_that_needs_all_units_speaks_segment_by_segment(cut_pipeline, monkeypatch):
    whole = cut_pipeline.reply([question()])[0]
    monkeypatch.setattr(cut_pipeline.codec, "streams", False)
    monkeypatch.delitem(vars(cut_pipeline), "speech_parts", raising=False)
    pieces = list(stream(cut_pipeline, question()))
    assert pieces[-1].answer.units == whole.units
    assert sum(piece.samples is not None for piece in pieces) > 1


def test_silence_is_not_answered_beside_one_who_speaks(pipeline, monkeypatch):
    silent = Question((Turn(USER, "", True),), (torch.zeros(8000),))
    streams = AnswerStreams(pipeline)
    numbers = [streams.add(silent), streams.add(question())]
    pieces = {number: [] for number in numbers}
    while not streams.is_idle:
        for number, piece in streams.step():
            pieces[number].append(piece)
    (only,) = pieces[numbers[0]]
    assert only.answer.unheard == "nothing was heard, for the clip is silent" and not only.text
    check_equal(pieces[numbers[1]], pipeline.reply([question()])[0])
    monkeypatch.setattr(pipeline, "answer_silence", True)
    check_equal(list(stream(pipeline, silent)), pipeline.reply([silent])[0])


def test_a_cut_of_the_speech_is_that_of_the_whole_answer(pipeline, monkeypatch):
    monkeypatch.setattr(echo, "MAX_STEPS", 6)
    whole = pipeline.reply([question()])[0]
    assert whole.cut == "text, speech"
    check_equal(list(stream(pipeline, question())), whole)


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


def test_a_text_is_spoken_before_its_units_are_complete(pipeline, monkeypatch):
    monkeypatch.setattr(speech_stream, "FIRST_S", 0.04)
    text = "It is Paris, the capital of all of France, on the Seine."
    tts = pipeline.tts
    rows = [tuple(row) for row in tts._segments(text)]
    assert len(rows) == 2 and list(sum(rows, ())) == pipeline.backbone.tokenize(text)
    unit_tokens = tts._generate_unit_tokens(rows, Clock(pipeline.device))
    units = pipeline.codec.units_of(sum(unit_tokens, []))
    chunks = tts.stream(text)
    spoken = [next(chunks)]
    assert not pipeline.unit_engine.is_idle
    spoken += chunks
    whole = pipeline.codec.decode(Units.of_rows([units], 1)).samples[0]
    assert len(spoken) > 2 and torch.allclose(torch.cat(spoken), whole, atol=1e-5)


def test_chunks_grow_once_there_is_something_to_hear(pipeline, monkeypatch):
    monkeypatch.setattr(speech_stream, "FIRST_S", 0.04)
    decode_chunk, sizes = type(pipeline.codec).decode_chunk, []

    def quiet_at_first(codec, units, state=None, *, last):
        wave, state = decode_chunk(codec, units, state, last=last)
        sizes.append(units.ids.shape[1])
        quiet = len(sizes) < heard_from
        return Waveform(wave.samples * (not quiet), wave.lengths, wave.rate_hz), state

    monkeypatch.setattr(type(pipeline.codec), "decode_chunk", quiet_at_first)
    text, heard_from = "It is Paris, the capital of all of France, on the Seine.", 20
    list(pipeline.tts.stream(text))
    first, grown = sizes[0], sizes[20:24]
    assert set(sizes[:20]) == {first} and grown[:3] == [2 * first, 4 * first, 8 * first]


def test_a_text_that_is_left_frees_its_slots(pipeline, monkeypatch):
    monkeypatch.setattr(speech_stream, "FIRST_S", 0.04)
    chunks = pipeline.tts.stream("It is Paris, the capital of all of France, on the Seine.")
    next(chunks)
    chunks.close()
    assert pipeline.unit_engine.is_idle


def test_warming_up_builds_all_engines(pipeline):
    for name in ("text_engine", "unit_engine"):
        vars(pipeline).pop(name, None)
    vars(pipeline).pop("speech_parts", None)
    vars(pipeline).pop("tts", None)
    warm_up(pipeline)
    assert {"text_engine", "unit_engine"} <= set(vars(pipeline))


def finished(streams, *questions):
    """The pieces of each question's answer."""
    pieces = {streams.add(each): [] for each in questions}
    while not streams.is_idle:
        for number, piece in streams.step():
            if number in pieces:
                pieces[number].append(piece)
    return list(pieces.values())


def test_questions_of_a_conversation_are_encoded_once(cut_pipeline, monkeypatch):
    encode_clips, encoded = type(cut_pipeline.speech_llm).encode_clips, []

    def counted(model, clips):
        encoded.append([len(clip) for clip in clips])
        return encode_clips(model, clips)

    first, second = question(1), question(4)
    whole = cut_pipeline.reply([second])[0]
    monkeypatch.setattr(type(cut_pipeline.speech_llm), "encode_clips", counted)
    streams = AnswerStreams(cut_pipeline)
    finished(streams, first)
    turns, buffer = first.turns, first.clips[1].clone()
    longer = (*turns, Turn("assistant", "I see."), turns[0])
    finished(streams, Question(longer, (*first.clips, buffer)))
    assert encoded == [[8_000], [12_800]]
    # A caller may write the next question over the one before.
    buffer.copy_(second.clips[1])
    (pieces,) = finished(streams, Question(turns, (second.clips[0], buffer)))
    assert encoded[2:] == [[8_000], [12_800]]
    check_equal(pieces, whole)


def test_what_was_said_before_is_prefilled_once(cut_pipeline, monkeypatch):
    prefilled, prefill = [], type(cut_pipeline.text_engine._batch.body).prefill

    def counted(body, x, first, begin=0):
        if body is cut_pipeline.text_engine._batch.body:
            prefilled.append((begin, x.shape[1]))
        prefill(body, x, first, begin)

    monkeypatch.setattr(type(cut_pipeline.text_engine._batch.body), "prefill", counted)
    monkeypatch.setattr(cut_pipeline.text_engine._batch, "prompts", PromptCache(1_000))
    asked, streams = question(11), AnswerStreams(cut_pipeline)
    finished(streams, Question(asked.turns[:1], asked.clips[:1]))
    (_, header), _ = prefilled
    prefilled.clear()
    (pieces,) = finished(streams, asked)
    # The header is known; the first question with its answer, and the new question, are not.
    assert prefilled[0][0] == header and len(prefilled) == 2
    prefilled.clear()
    check_equal(pieces, cut_pipeline.reply([asked])[0])
    assert len(prefilled) == 1


def test_what_precedes_a_question_is_prefilled_while_it_is_spoken(cut_pipeline, monkeypatch):
    prefilled, prefill = [], type(cut_pipeline.text_engine._batch.body).prefill

    def counted(body, x, first, begin=0):
        if body is cut_pipeline.text_engine._batch.body:
            prefilled.append((begin, x.shape[1]))
        prefill(body, x, first, begin)

    two, streams = question(21), AnswerStreams(cut_pipeline)
    turns = (*two.turns[:2], *two.turns[:2], two.turns[2])
    asked = Question(turns, (noise(20, 0.6), *two.clips))
    whole = cut_pipeline.reply([asked])[0]
    monkeypatch.setattr(type(cut_pipeline.text_engine._batch.body), "prefill", counted)
    monkeypatch.setattr(cut_pipeline.text_engine._batch, "prompts", PromptCache(1_000))
    streams.prefill(Question(asked.turns[:1]))
    streams.prefill(Question(asked.turns[:3], asked.clips[:1]))
    streams.prefill(Question(asked.turns, asked.clips[:2]))
    (_, header), (second, length), (third, last) = prefilled
    assert (second, third) == (header, header + length)
    prefilled.clear()
    (pieces,) = finished(streams, asked)
    assert [begin for begin, _ in prefilled] == [third + last]
    check_equal(pieces, whole)


def test_clips_that_are_kept_have_a_bound():
    cache = ClipCache(positions=10)

    def encode(clips):
        return [EncodedClip(torch.zeros(4, 2), []) for _ in clips]

    clips = [torch.full((5,), float(number)) for number in range(4)]
    for clip in clips:
        cache.encode([clips[0], clip], encode)
    assert len(cache._kept) == 2
    asked = []
    cache.encode(clips[::3], lambda new: asked.append(new))
    assert not asked, "the last ones are kept"


def test_the_first_sound_waits_for_no_further_text(cut_pipeline, monkeypatch):
    advance, while_waiting = cut_pipeline.text_engine.advance, []
    streams = AnswerStreams(cut_pipeline)
    monkeypatch.setattr(cut_pipeline, "max_tokens", 40)

    def watched():
        while_waiting.append(any(each.awaits_sound for each in streams._answers.values()))
        return advance()

    monkeypatch.setattr(cut_pipeline.text_engine, "advance", watched)
    (pieces,) = finished(streams, question(1))
    assert pieces[-1].answer and while_waiting and not any(while_waiting)
    # One whose first segment is not written yet is not held up by others.
    while_waiting.clear()
    streams.add(question(1))
    while not any(each.awaits_sound for each in streams._answers.values()):
        streams.step()
    finished(streams, question(5))
    assert any(while_waiting)
