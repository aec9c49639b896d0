"""The Realtime protocol without a network: events in, events out, read by the API's own types."""

import base64
import json
from queue import Empty, SimpleQueue
from random import Random

import pytest
import torch
from tiny_run import noise
from torchaudio.functional import resample as resampled

from echox.inference.audio_input import Encoding, decoded, encoded
from echox.inference.service import AnswerService
from echox.inference.voice_activity import Activity, VoiceActivityConfig
from echox.serving.realtime import RealtimeSession

realtime = pytest.importorskip("openai.types.realtime")
HANDS = {"type": "realtime", "audio": {"input": {"turn_detection": None}}}
ENDS = ("response.done", "error")


class Client:
    """A session, and what it sent."""

    def __init__(self, service, **settings):
        from pydantic import TypeAdapter

        self.read = TypeAdapter(realtime.RealtimeServerEvent).validate_python
        self.events, self.posted = [], SimpleQueue()
        self.session = RealtimeSession(service, self.take, self.posted.put, **settings)

    def take(self, event):
        # As JSON, which is what a client reads.
        self.read(json.loads(json.dumps(event)))
        self.events.append(event)

    def send(self, type_, **fields):
        self.session.handle(json.dumps({"type": type_, **fields}))

    def types(self):
        return [event["type"] for event in self.events]

    def of(self, type_):
        return [event for event in self.events if event["type"] == type_]

    def last(self, type_):
        return self.of(type_)[-1]

    def wait(self, type_="response.done", count=1):
        """Run what the answers posted until an event of the type came so often."""
        while len(self.of(type_)) < count:
            try:
                self.posted.get(timeout=30)()
            except Empty:
                pytest.fail(f"no {type_}: {self.types()}")

    def speak(self, seed=1, seconds=0.6):
        self.send(
            "session.update",
            session={
                "type": "realtime",
                "audio": {
                    "input": {
                        "turn_detection": None,
                        "format": {"type": "audio/pcm", "rate": 24_000},
                        "transcription": {"model": "echox"},
                    },
                    "output": {"format": {"type": "audio/pcm", "rate": 24_000}},
                },
            },
        )
        for chunk in noise(seed, seconds).split(800):
            self.send("input_audio_buffer.append", audio=in_base64(chunk))
        self.send("input_audio_buffer.commit")


def in_base64(samples, encoding=Encoding.pcm16):
    return base64.b64encode(encoded(samples, encoding)).decode()


def heard(events, encoding=Encoding.pcm16):
    parts = [decoded(base64.b64decode(event["delta"]), encoding) for event in events]
    return torch.cat(parts) if parts else torch.zeros(0)


@pytest.fixture
def service(pipeline):
    service = AnswerService(pipeline)
    yield service
    service.close()


@pytest.fixture
def client(service):
    return Client(service)


def test_a_spoken_question_is_answered_in_the_protocol_s_order(client, pipeline):
    client.speak()
    client.send("response.create")
    client.wait()
    question = resampled(decoded(encoded(noise(1, 0.6), Encoding.pcm16), Encoding.pcm16), 24, 16)
    whole = pipeline.answer([question])[0]
    types = [name for name in client.types() if not name.endswith(".delta")]
    assert types == [
        "session.created",
        "session.updated",
        "input_audio_buffer.committed",
        "conversation.item.added",
        "conversation.item.done",
        "response.created",
        "response.output_item.added",
        "conversation.item.added",
        "response.content_part.added",
        "conversation.item.input_audio_transcription.completed",
        "response.output_audio.done",
        "response.output_audio_transcript.done",
        "response.content_part.done",
        "conversation.item.done",
        "response.output_item.done",
        "response.done",
    ]
    deltas = client.of("response.output_audio_transcript.delta")
    text = "".join(event["delta"] for event in deltas)
    done = client.last("response.done")["response"]
    assert text == whole.text.rstrip("\ufffd") == done["output"][0]["content"][0]["transcript"]
    # The limit of tokens ends this random model's answers.
    assert done["status"] == "incomplete" and done["usage"]["output_tokens"] == 12
    spoken = heard(client.of("response.output_audio.delta"))
    # But for the silence before its first sound, the speech is that of the whole answer.
    loud = int((whole.samples.abs() > 0.01).nonzero()[0])
    sent = whole.samples[max(0, loud - 480) :]
    torch.testing.assert_close(spoken, resampled(sent, 16, 24), atol=1e-4, rtol=0)

    transcript = client.last("conversation.item.input_audio_transcription.completed")
    assert transcript["transcript"] == whole.heard
    first = client.types().index("response.output_audio.delta")
    last_text = max(
        place
        for place, name in enumerate(client.types())
        if name == "response.output_audio_transcript.delta"
    )
    assert first < last_text, "speech begins before the text ends"


def test_silence_before_the_first_sound_is_not_sent(client, pipeline, monkeypatch):
    quiet = torch.cat([torch.zeros(8_000), 0.5 * torch.ones(4_000)])
    client.speak()
    client.send("response.create")
    response = client.session.response
    response._take_samples(quiet[:6_000])
    response._take_samples(quiet[6_000:])
    spoken = heard(client.of("response.output_audio.delta"))
    assert len(spoken) == pytest.approx(1.5 * (4_000 + 480), abs=50)


def test_text_alone_has_no_audio(client):
    client.send("session.update", session={"type": "realtime", "output_modalities": ["text"]})
    client.send(
        "conversation.item.create",
        item={
            "type": "message",
            "role": "user",
            "content": [{"type": "input_text", "text": "Hello?"}],
        },
    )
    client.send("response.create")
    client.wait()
    assert not client.of("response.output_audio.delta")
    text = client.last("response.output_text.done")["text"]
    assert text == "".join(event["delta"] for event in client.of("response.output_text.delta"))
    # A response may differ from its session.
    client.send("response.create", response={"output_modalities": ["audio"]})
    client.wait(count=2)
    assert client.of("response.output_audio.delta")


@pytest.mark.parametrize("name", ["audio/pcmu", "audio/pcma"])
def test_telephone_formats_are_taken_and_given(client, name):
    encoding = Encoding(name)
    formats = {"format": {"type": name}}
    client.send(
        "session.update",
        session={
            "type": "realtime",
            "audio": {"input": {**formats, "turn_detection": None}, "output": formats},
        },
    )
    told = client.last("session.updated")["session"]["audio"]
    assert told["input"]["format"] == told["output"]["format"] == {"type": name}
    client.send("input_audio_buffer.append", audio=in_base64(noise(1, 0.3), encoding))
    client.send("input_audio_buffer.commit")
    client.send("response.create", response={"max_output_tokens": 4})
    client.wait()
    assert len(heard(client.of("response.output_audio.delta"), encoding)) > 800
    assert client.last("response.done")["response"]["usage"]["output_tokens"] <= 4


def test_a_response_is_cancelled_and_truncated_to_what_was_played(client, service):
    client.speak()
    client.send("response.create")
    client.wait("response.output_audio.delta")
    client.send("response.cancel")
    done = client.last("response.done")["response"]
    assert done["status"] == "cancelled"
    assert done["status_details"]["reason"] == "client_cancelled"
    count = len(client.events)
    item = done["output"][0]
    assert item["status"] == "incomplete"
    client.send("conversation.item.truncate", item_id=item["id"], content_index=0, audio_end_ms=10)
    assert client.types()[count:] == ["conversation.item.truncated"]
    assert [each.role for each in client.session.conversation.items] == ["user"], (
        "nothing was heard"
    )
    client.send("response.cancel")
    assert client.last("error")["error"]["code"] == "response_cancel_not_active"
    # The next answer is a whole one.
    client.send("response.create")
    client.wait(count=2)
    assert client.last("response.done")["response"]["status"] == "incomplete"


def test_interrupted_at_a_third_the_next_prompt_has_what_was_played(client):
    client.speak()
    client.send("response.create")
    client.wait()
    done = client.last("response.done")["response"]["output"][0]
    text, seconds = (
        done["content"][0]["transcript"],
        len(heard(client.of("response.output_audio.delta"))) / 16_000,
    )
    client.send(
        "conversation.item.truncate",
        item_id=done["id"],
        content_index=0,
        audio_end_ms=int(300 * seconds),
    )
    kept = client.session.conversation.items[1:]
    assert all(len(item.text) <= 0.3 * len(text) for item in kept)
    client.send("conversation.item.truncate", item_id="item_x", content_index=0, audio_end_ms=1)
    assert client.last("error")["error"]["code"] == "item_not_found"


def test_items_are_created_read_and_deleted(client):
    for text, previous in (("One.", None), ("Two.", "root")):
        client.send(
            "conversation.item.create",
            previous_item_id=previous,
            item={
                "id": text,
                "type": "message",
                "role": "user",
                "content": [{"type": "input_text", "text": text}],
            },
        )
    assert [item.id for item in client.session.conversation.items] == ["Two.", "One."]
    client.send("conversation.item.retrieve", item_id="One.")
    assert client.last("conversation.item.retrieved")["item"]["content"][0]["text"] == "One."
    client.send("conversation.item.delete", item_id="One.")
    client.send("conversation.item.retrieve", item_id="One.")
    assert client.last("error")["error"]["code"] == "item_not_found"
    # A question with audio of its own, as a whole.
    audio = {"type": "input_audio", "audio": in_base64(noise(3, 0.4))}
    client.send(
        "conversation.item.create", item={"type": "message", "role": "user", "content": [audio]}
    )
    assert client.session.conversation.items[-1].clip is not None


def test_a_response_out_of_band_reads_its_own_input_and_writes_nothing(client):
    client.speak()
    before = list(client.session.conversation.items)
    own = {
        "type": "message",
        "role": "user",
        "content": [{"type": "input_text", "text": "Classify."}],
    }
    reference = {"type": "item_reference", "id": before[0].id}
    client.send(
        "response.create",
        response={
            "conversation": "none",
            "input": [reference, own],
            "output_modalities": ["text"],
            "metadata": {"topic": "x"},
        },
    )
    client.wait()
    assert client.session.conversation.items == before
    assert client.last("response.done")["response"]["metadata"] == {"topic": "x"}


def test_a_typed_question_is_not_told_as_heard(client):
    client.speak()
    client.send("response.create")
    client.wait()
    text = {"type": "input_text", "text": "And now?"}
    client.send(
        "conversation.item.create", item={"type": "message", "role": "user", "content": [text]}
    )
    client.send("response.create")
    client.wait(count=2)
    assert len(client.of("conversation.item.input_audio_transcription.completed")) == 1


class Detector:
    """Stands for the detector: borders at given samples of the stream at 16 kHz."""

    def __init__(self, borders):
        self.borders, self.seen = list(borders), 0
        self.config = VoiceActivityConfig()

    def push(self, samples):
        self.seen += len(samples)
        found = [each for each in self.borders if each.known_at <= self.seen]
        self.borders = self.borders[len(found) :]
        return found


def test_detected_speech_is_committed_answered_and_interrupts(client):
    client.send("session.update", session=HANDS)
    buffer = client.session._require_buffer()
    buffer._detector = Detector(
        [
            Activity(True, 2_000, 3_000),
            Activity(False, 12_000, 14_000),
            Activity(True, 20_000, 21_000),
            Activity(False, 30_000, 32_000),
        ]
    )
    client.session.settings = client.session.settings.updated(
        {"audio": {"input": {"turn_detection": {"type": "server_vad"}}}}
    )
    samples = noise(5, 2.0)  # at 24 kHz
    for chunk in torch.cat([samples, samples]).split(2_400):
        client.send("input_audio_buffer.append", audio=in_base64(chunk))
    client.wait(count=2)
    started, stopped = (
        client.of(f"input_audio_buffer.speech_{name}") for name in ("started", "stopped")
    )
    assert [event["audio_start_ms"] for event in started] == [125, 1250]
    assert [event["audio_end_ms"] for event in stopped] == [750, 1875]
    committed = [event["item_id"] for event in client.of("input_audio_buffer.committed")]
    assert committed == [event["item_id"] for event in started]
    first, second = (event["response"] for event in client.of("response.done"))
    assert first["status_details"]["reason"] == "turn_detected"
    assert second["status"] == "incomplete"


def test_places_in_the_audio_count_from_the_start_of_the_session(client):
    client.send("session.update", session=HANDS)
    client.send("input_audio_buffer.append", audio=in_base64(noise(5, 1.2)))  # 0.8 s at 24 kHz
    client.send("input_audio_buffer.commit")
    audio = {"input": {"turn_detection": None, "format": {"type": "audio/pcmu"}}}
    client.send("session.update", session={"type": "realtime", "audio": audio})
    buffer = client.session._require_buffer()
    buffer._detector = Detector([Activity(True, 2_000, 3_000), Activity(False, 12_000, 14_000)])
    client.send("input_audio_buffer.append", audio=in_base64(noise(5, 1.0), Encoding.mu_law))
    assert client.last("input_audio_buffer.speech_started")["audio_start_ms"] == 800 + 125
    assert client.last("input_audio_buffer.speech_stopped")["audio_end_ms"] == 800 + 750


def test_what_was_said_is_read_while_the_next_question_is_spoken(client, monkeypatch):
    read = []
    monkeypatch.setattr(AnswerService, "prefill", lambda _, question: read.append(question))
    client.speak()
    assert [(len(each.turns), len(each.clips)) for each in read] == [(1, 0)], "once a question"
    client.send("response.create")
    client.send("input_audio_buffer.append", audio=in_base64(noise(2, 0.1)))
    assert len(read) == 1, "an answer is under way"
    client.wait()
    client.send("input_audio_buffer.append", audio=in_base64(noise(2, 0.1)))
    assert [turn.role for turn in read[-1].turns] == ["user", "assistant", "user"]
    assert len(read) == 2 and len(read[1].clips) == 1


def roles(client):
    return [item.role for item in client.session.conversation.items]


def test_a_question_that_comes_during_an_answer_stands_behind_it(client):
    client.speak()
    client.send("response.create")
    # Nothing of the answer was taken yet.
    client.speak(seed=2)
    first, second = client.of("input_audio_buffer.committed")
    answer = client.last("response.output_item.added")["item"]
    assert second["previous_item_id"] == answer["id"]
    client.send("conversation.item.retrieve", item_id=answer["id"])
    assert client.last("conversation.item.retrieved")["item"]["status"] == "in_progress"
    client.send("response.create")
    error = client.last("error")["error"]
    assert error["code"] == "conversation_already_has_active_response"
    client.wait()
    assert roles(client) == ["user", "assistant", "user"]
    done = client.last("conversation.item.done")
    assert (done["item"]["id"], done["previous_item_id"]) == (answer["id"], first["item_id"])
    client.send("response.create")
    client.wait(count=2)
    assert roles(client) == ["user", "assistant", "user", "assistant"]
    heard = client.of("conversation.item.input_audio_transcription.completed")
    assert [event["item_id"] for event in heard] == [first["item_id"], second["item_id"]]


def test_an_answer_that_said_nothing_leaves_no_item(client):
    client.speak()
    client.send("response.create")
    client.send("response.cancel")
    assert roles(client) == ["user"]
    client.speak(seed=2)
    client.send("response.create")
    client.send("conversation.item.delete", item_id=client.session.response.item_id)
    client.wait(count=2)
    assert roles(client) == ["user", "user"], "what the client has deleted stays away"


def test_speech_that_may_not_interrupt_is_committed_and_not_answered(client):
    client.send("session.update", session=HANDS)
    buffer = client.session._require_buffer()
    borders = [(True, 2_000, 3_000), (False, 8_000, 9_000), (True, 10_000, 11_000)]
    borders += [(False, 16_000, 17_000), (True, 17_500, 18_000)]
    buffer._detector = Detector([Activity(*border) for border in borders])
    detection = {"type": "server_vad", "interrupt_response": False}
    client.session.settings = client.session.settings.updated(
        {"audio": {"input": {"turn_detection": detection}}}
    )
    client.send("input_audio_buffer.append", audio=in_base64(noise(5, 2.0)))
    assert len(client.of("input_audio_buffer.committed")) == 2
    assert client.last("error")["error"]["code"] == "conversation_already_has_active_response"
    clips = [item.clip for item in client.session.conversation.items if item.role == "user"]
    assert [len(clip) for clip in clips] == [7_600, 7_600], "with 0.1 s behind the detected end"
    # The error keeps nothing that came with the same audio.
    assert len(client.of("input_audio_buffer.speech_started")) == 3
    client.wait()
    assert client.last("response.done")["response"]["status"] == "incomplete"
    assert roles(client) == ["user", "assistant", "user"]


WRONG = [
    ("", "the message is not JSON"),
    ("[]", "must be a JSON object"),
    ("[" * 100_000, "the message is not JSON"),
    ({"type": "nothing"}, "there is no client event 'nothing'"),
    ({"type": ["x"]}, "there is no client event"),
    ({"type": "session.update"}, "session must be an object"),
    ({"type": "session.update", "session": {"type": "transcription"}}, "session.type must be"),
    (
        {"type": "session.update", "session": {"tools": [{"name": "x"}]}},
        "this server calls no tools",
    ),
    (
        {"type": "session.update", "session": {"output_modalities": ["video"]}},
        "output_modalities must be",
    ),
    (
        {"type": "session.update", "session": {"audio": {"input": {"format": {"rate": 7}}}}},
        "rate must be 8000 to 48000 Hz, and is 7",
    ),
    (
        {
            "type": "session.update",
            "session": {"audio": {"input": {"turn_detection": {"threshold": "high"}}}},
        },
        "threshold must be a number",
    ),
    ({"type": "input_audio_buffer.append"}, "audio must be a text in base64"),
    ({"type": "input_audio_buffer.append", "audio": "%%"}, "audio is not base64"),
    ({"type": "input_audio_buffer.append", "audio": "YWJj"}, "an odd number"),
    ({"type": "input_audio_buffer.commit"}, "less than 100 ms of audio came"),
    ({"type": "response.create"}, "the conversation is empty"),
    ({"type": "response.create", "response": {"max_output_tokens": 0}}, "must be 1 to 4096"),
    ({"type": "conversation.item.create", "item": {"role": "user"}}, "item.content must be a list"),
    (
        {"type": "conversation.item.create", "item": {"role": "user", "content": [{}]}},
        "must have a text",
    ),
    (
        {
            "type": "conversation.item.create",
            "item": {"role": "user", "content": [{"type": "input_text", "text": "\ud83d"}]},
        },
        "holds half a character",
    ),
    (
        {"type": "session.update", "session": {"instructions": "\ud83d"}},
        "session.instructions holds half a character",
    ),
    ({"type": "conversation.item.delete", "item_id": 7}, "item_id must be a text"),
    ({"type": "conversation.item.truncate", "audio_end_ms": -1}, "audio_end_ms must be"),
]


@pytest.mark.parametrize(("message", "sentence"), WRONG)
def test_a_faulty_event_is_an_error_event_and_the_session_lives(client, message, sentence):
    client.session.handle(message if isinstance(message, str) else json.dumps(message))
    (error,) = client.of("error")
    assert (
        sentence in error["error"]["message"] and error["error"]["type"] == "invalid_request_error"
    )
    client.send("session.update", session=HANDS)
    assert client.types()[-1] == "session.updated"


def test_hostile_events_never_end_a_session(client):
    random = Random(0)
    values = [None, [], {}, "", "x" * 100, -1, 1e308, True, [[]], {"type": "realtime"}, 10**30]
    names = [*RealtimeSession._HANDLERS, "", "x"]
    fields = (
        "session",
        "audio",
        "item",
        "item_id",
        "audio_end_ms",
        "response",
        "previous_item_id",
        "event_id",
        "response_id",
    )
    inner = ("type", "role", "content", "audio", "input", "output", "format", "instructions", "id")
    for _ in range(2_000):
        event = {"type": random.choice(names)}
        for name in random.sample(fields, random.randint(0, 4)):
            value = random.choice(values)
            if random.random() < 0.5:
                value = {
                    key: random.choice([*values, {random.choice(inner): random.choice(values)}])
                    for key in random.sample(inner, 3)
                }
            event[name] = value
        client.session.handle(json.dumps(event))
        if client.session.response is not None:
            client.session._cancel_response("client_cancelled")
    count = len(client.of("session.updated"))
    client.send("session.update", session=HANDS)
    assert len(client.of("session.updated")) == count + 1
