"""Sessions: audio in as it comes, answers as events, barge-in, and a bounded conversation."""

import threading

import pytest
import torch
from tiny_run import noise, write_run

from echox.core.errors import SignalError
from echox.decoding.prompt_cache import PromptCache
from echox.inference.answers import Piece
from echox.inference.conversation import (
    Conversation,
    ConversationLimits,
    Item,
    heard_text,
    spoken_question,
)
from echox.inference.load import load_pipeline
from echox.inference.question_buffer import LONGEST_S, QuestionBuffer
from echox.inference.service import AnswerService
from echox.inference.session import EventKind, Session
from echox.inference.streaming import UNEXPECTED, AnswerStreams
from echox.inference.voice_activity import Activity, VoiceActivityConfig
from echox.models.segmenting import SegmentRule, SegmentsConfig


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    run = write_run(tmp_path_factory.mktemp("run"))
    pipeline = load_pipeline(run / "echo" / "final", device="cpu", max_tokens=12, bf16=False)
    pipeline.segments = SegmentsConfig(rule=SegmentRule(threshold=-1.0, window=1))
    return pipeline


@pytest.fixture
def service(pipeline):
    service = AnswerService(pipeline)
    yield service
    service.close()


def ask(session, seed=1, seconds=0.6):
    for chunk in noise(seed, seconds).split(700):
        session.push(chunk, 16_000)
    session.commit()
    session.respond()


def test_a_question_in_chunks_is_answered_as_a_whole_one(pipeline, service):
    session = Session(service)
    ask(session)
    events = list(session.events())
    whole = pipeline.answer([noise(1, 0.6)])[0]
    kinds = [event.kind for event in events]
    assert kinds[0] is EventKind.committed and kinds[-1] is EventKind.done
    text = "".join(event.text for event in events if event.kind is EventKind.text)
    assert text == whole.text == events[-1].answer.text
    audio = [event for event in events if event.kind is EventKind.audio]
    torch.testing.assert_close(
        torch.cat([event.samples for event in audio]), whole.samples, atol=1e-5, rtol=0
    )
    assert [event.first_sample for event in audio] == [
        sum(len(each.samples) for each in audio[:number]) for number in range(len(audio))
    ]
    (heard,) = [event for event in events if event.kind is EventKind.heard]
    assert heard.text == whole.heard and kinds.index(EventKind.heard) < kinds.index(EventKind.audio)
    times = [event.at_s for event in events]
    assert times == sorted(times)


def test_the_answer_belongs_to_the_next_question(service):
    session = Session(service)
    ask(session)
    first = list(session.events())[-1].answer
    ask(session, seed=2)
    turns = session.conversation.question().turns
    assert [turn.role for turn in turns] == ["user", "assistant", "user"]
    assert turns[1].text == first.text and len(session.conversation.question().clips) == 2
    assert list(session.events())[-1].kind is EventKind.done


def test_the_model_reads_ahead_while_a_question_is_spoken(pipeline, service, monkeypatch):
    read = PromptCache(1_000)
    monkeypatch.setattr(pipeline.text_engine._batch, "prompts", read)
    session = Session(service)
    session.push(noise(1, 0.1), 16_000)
    for _ in range(200):
        if len(read._kept):
            break
        threading.Event().wait(0.02)
    assert len(read._kept) == 1, "the beginning of every prompt"
    # What cannot be read is told where it is asked for.
    session.ask("a" * 2100)
    session.push(noise(1, 0.6), 16_000)
    session.commit()
    session.respond()
    assert "longer than the 2048" in list(session.events())[-1].text


def test_a_question_during_an_answer_stands_behind_it(service):
    session = Session(service)
    ask(session)
    for event in session.events():
        if event.kind is EventKind.text:
            ask(session, seed=2)
            break
    roles = [item.role for item in session.conversation.items]
    assert roles == ["user", "assistant", "user", "assistant"]
    assert [turn.role for turn in session.conversation.question().turns] == roles[:3]
    kinds = []
    while EventKind.done not in kinds:
        kinds += [event.kind for event in session.events()]
    assert all(item.text or item.clip is not None for item in session.conversation.items)


def test_int16_and_other_rates_are_taken(service):
    session = Session(service)
    session.push((noise(1, 0.5) * 32767).to(torch.int16), 16_000)
    session.commit()
    assert session.conversation.items[0].clip.abs().max() <= 1.0
    session.push(torch.zeros(24_000), 24_000)
    session.commit()
    assert len(session.conversation.items[1].clip) == 16_000
    with pytest.raises(SignalError, match="no audio came"):
        session.commit()
    with pytest.raises(SignalError, match="finite numbers"):
        session.push(torch.tensor([float("nan")]), 16_000)
    session.push(torch.zeros(800), 8_000)
    with pytest.raises(SignalError, match="at 16000 Hz within a question that began at 8000 Hz"):
        session.push(torch.zeros(800), 16_000)


def test_a_cancelled_answer_ends_at_once_and_frees_its_slots(pipeline, service):
    session = Session(service)
    ask(session)
    for event in session.events():
        if event.kind is EventKind.text:
            session.cancel()
            break
    rest = list(session.events())
    assert rest[-1].kind is EventKind.cancelled
    assert all(event.kind is not EventKind.done for event in rest)
    # The next answer comes from free slots, and knows what was said of the one before.
    ask(session, seed=3)
    assert list(session.events())[-1].kind is EventKind.done
    service.close()
    assert pipeline.text_engine.is_idle and pipeline.unit_engine.is_idle
    assert session.conversation.items[1].text == rest[-1].text


def test_of_an_interrupted_answer_what_was_heard_is_kept(service):
    session = Session(service)
    ask(session)
    events = list(session.events())
    answer = events[-1].answer
    assert session.interrupt(1000.0) == answer.text, "it was heard to its end"
    kept = session.interrupt(0.0)
    assert kept == "" and [item.role for item in session.conversation.items] == ["user"]


@pytest.mark.parametrize(
    ("played_s", "complete", "expected"),
    [
        (0.0, True, ""),
        (4.0, True, "It is a city in France."),
        (9.0, True, "It is a city in France."),
        (2.0, True, "It is a"),
        (0.3, True, ""),
        (3.9, True, "It is a city in"),
        (2.0, False, "It is a city in"),
        (0.5, False, "It is"),
    ],
)
def test_words_count_when_their_end_was_played(played_s, complete, expected):
    text, speech_s = "It is a city in France.", 4.0 if complete else 1.0
    assert heard_text(text, played_s, speech_s, complete=complete) == expected


def test_a_conversation_forgets_its_first_turns_but_never_the_question():
    conversation = Conversation(ConversationLimits(turns=3, audio_s=2.0), 10)
    for number in range(4):
        conversation.add(spoken_question(f"q{number}", torch.zeros(8)))
        conversation.add(Item(f"a{number}", "assistant", "Yes."))
    assert [item.id for item in conversation.items] == ["q3", "a3"]
    conversation.add(spoken_question("long", torch.zeros(99)))
    assert [item.id for item in conversation.items] == ["long"]
    # A first turn for which there is no room leaves at once.
    assert conversation.add(Item("early", "user", "Hello."), after="root") is None
    assert [item.id for item in conversation.items] == ["long"]
    short = Conversation(ConversationLimits(), 10)
    assert short.add(Item("a", "user", "A?")) is None
    assert short.add(Item("b", "user", "B?")) == "a"
    assert short.add(Item("c", "user", "C?"), after="a") == "a"
    assert short.add(Item("d", "user", "D?"), after="root") is None
    assert [item.id for item in short.items] == ["d", "a", "c", "b"]
    with pytest.raises(KeyError):
        short.add(Item("x", "user", "Hello."), after="nobody")


def test_many_sessions_share_the_model(pipeline, service):
    sessions = [Session(service) for _ in range(5)]
    for number, session in enumerate(sessions):
        threading.Thread(target=ask, args=(session, number)).start()
    for number, session in enumerate(sessions):
        answer = list(session.events())[-1].answer
        assert answer.text == pipeline.answer([noise(number, 0.6)])[0].text


def test_a_failing_model_is_told_to_all_and_the_service_lives(pipeline, service, monkeypatch):
    session = Session(service)
    with monkeypatch.context() as patch:
        patch.setattr(AnswerStreams, "_advance_engines", lambda self: 1 / 0)
        ask(session)
        last = list(session.events())[-1]
        assert (last.kind, last.text) == (EventKind.failed, UNEXPECTED)
    ask(session, seed=2)
    assert list(session.events())[-1].kind is EventKind.done


def test_a_question_that_breaks_the_tokenizer_harms_no_other(pipeline, service):
    broken, whole = Session(service), Session(service)
    broken.ask("\ud83d")
    broken.respond()
    ask(whole)
    assert list(whole.events())[-1].answer.text == pipeline.answer([noise(1, 0.6)])[0].text
    (event,) = broken.events()
    assert (event.kind, event.text) == (EventKind.failed, UNEXPECTED)


def test_a_question_that_cannot_be_answered_is_one_sentence(service):
    session = Session(service)
    session.ask("a" * 2100)
    session.respond()
    (event,) = session.events()
    assert event.kind is EventKind.failed and "longer than the 2048" in event.text


class Detector:
    """Stands for the detector: borders at given samples of the stream."""

    def __init__(self, borders, padding_ms=0):
        self.borders, self.seen = list(borders), 0
        self.config = VoiceActivityConfig(padding_ms=padding_ms)

    def push(self, samples):
        self.seen += len(samples)
        found = [each for each in self.borders if each.known_at <= self.seen]
        self.borders = self.borders[len(found) :]
        return found


def test_a_buffer_takes_what_was_spoken(service):
    buffer = QuestionBuffer(16_000, None)
    buffer._detector = Detector([Activity(True, 20_000, 24_000), Activity(False, 40_000, 48_000)])
    stream, found = torch.arange(64_000) / 64_000, []
    for chunk in stream.split(1_600):
        found += buffer.push(chunk, 16_000)
        if found and not found[-1].begins and len(found) == 2:
            clip = buffer.take()
            found.append(Activity(True, 0, 0))
    torch.testing.assert_close(clip, stream[20_000:41_600])
    # What follows the question is kept as a possible beginning, of a second and a bit.
    assert buffer.seconds <= 1.2


def test_silence_is_not_kept_and_a_question_without_end_is_refused():
    buffer = QuestionBuffer(16_000, None)
    buffer._detector = Detector([], padding_ms=300)
    for _ in range(20):
        assert not list(buffer.push(torch.zeros(16_000), 16_000))
    assert buffer.seconds < 1.5
    endless = QuestionBuffer(16_000, None)
    with pytest.raises(SignalError, match="longer than 60 s"):
        for _ in range(int(LONGEST_S) + 1):
            endless.push(torch.zeros(16_000), 16_000)
    assert endless.seconds == 0


def test_speech_that_begins_stops_the_answer_and_speech_that_ends_is_answered(service):
    session = Session(service)
    session._buffer._detector = Detector(
        [
            Activity(True, 1_000, 2_000),
            Activity(False, 10_000, 12_000),
            Activity(True, 20_000, 21_000),
            Activity(False, 30_000, 31_000),
        ]
    )
    for chunk in noise(4, 2.0).split(1_000):
        session.push(chunk, 16_000)
    kinds = []
    while kinds.count(EventKind.done) < 1:
        kinds += [event.kind for event in session.events()]
    assert kinds[:3] == [EventKind.speech_started, EventKind.speech_stopped, EventKind.committed]
    assert kinds.count(EventKind.speech_started) == 2
    assert len([item for item in session.conversation.items if item.role == "user"]) == 2


def test_closing_ends_the_events_and_a_session_s_own_service(pipeline):
    session = Session(pipeline)
    ask(session)
    assert list(session.events())[-1].kind is EventKind.done
    session.close()
    assert list(session.events()) == [] and session.service._thread is None
    assert Piece("").heard == ""
