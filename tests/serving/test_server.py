"""The running server, with the client that others use: OpenAI's Python package."""

import base64
import io
import json
import socket
import time
import urllib.error
import urllib.request

import pytest
import soundfile
from tiny_run import noise
from tiny_server import running

from echox.core.errors import ConfigError
from echox.inference.audio_input import Encoding, encoded
from echox.serving.access import Access
from echox.serving.config import ServeConfig
from echox.serving.serve import _run

openai = pytest.importorskip("openai")
websockets = pytest.importorskip("websockets.sync.client")
ConnectionClosed = pytest.importorskip("websockets.exceptions").ConnectionClosed
KEY = "a-key-for-tests"
HANDS = {"type": "realtime", "audio": {"input": {"turn_detection": None}}}


@pytest.fixture(scope="module")
def served(pipeline):
    with running(pipeline, api_key=KEY) as (server, port):
        yield server, port


@pytest.fixture
def client(served):
    base = f"http://127.0.0.1:{served[1]}/v1"
    return openai.OpenAI(api_key=KEY, base_url=base, websocket_base_url=base.replace("http", "ws"))


def speak(connection, seconds=0.5):
    connection.session.update(session=HANDS)
    audio = base64.b64encode(encoded(noise(1, seconds), Encoding.pcm16)).decode()
    connection.input_audio_buffer.append(audio=audio)
    connection.input_audio_buffer.commit()
    connection.response.create()


def until(connection, type_):
    events = []
    for event in connection:
        events.append(event)
        if event.type in (type_, "error"):
            return events
    raise AssertionError([event.type for event in events])


def test_voice_in_and_voice_out(client):
    with client.realtime.connect(model="echox") as connection:
        speak(connection)
        events = until(connection, "response.done")
    types = [event.type for event in events]
    assert types[0] == "session.created" and types[-1] == "response.done"
    audio = b"".join(
        base64.b64decode(event.delta)
        for event in events
        if event.type == "response.output_audio.delta"
    )
    assert len(audio) > 2 * 24_000 * 0.1
    assert events[-1].response.output[0].content[0].transcript


def test_cancel_and_truncate(client):
    with client.realtime.connect(model="echox") as connection:
        speak(connection)
        until(connection, "response.output_audio.delta")
        connection.response.cancel()
        done = until(connection, "response.done")[-1]
        item_id = done.response.output[0].id
        if done.response.status == "cancelled":
            connection.conversation.item.truncate(item_id=item_id, content_index=0, audio_end_ms=1)
            assert until(connection, "conversation.item.truncated")[-1].item_id == item_id


def test_text_is_read_aloud_in_every_format(client, pipeline):
    whole = pipeline.synthesize(["It is Paris."])[0]
    for format, rate_hz in (("wav", whole.rate_hz), ("flac", whole.rate_hz)):
        answer = client.audio.speech.create(
            model="echox", voice="echox", input="It is Paris.", response_format=format
        )
        samples, rate = soundfile.read(io.BytesIO(answer.content), dtype="float32")
        assert rate == rate_hz and len(samples) == len(whole.samples)
    with client.audio.speech.with_streaming_response.create(
        model="echox", voice="echox", input="It is Paris.", response_format="pcm"
    ) as answer:
        content = b"".join(answer.iter_bytes())
    assert len(content) / 2 == pytest.approx(len(whole.samples) * 24_000 / whole.rate_hz, abs=2)
    with pytest.raises(openai.BadRequestError, match="response_format must be one of wav"):
        client.audio.speech.create(
            model="echox", voice="echox", input="Hello.", response_format="aac"
        )
    with pytest.raises(openai.BadRequestError, match="input is empty"):
        client.audio.speech.create(model="echox", voice="echox", input=" ")


def test_the_model_is_listed_and_counters_count(client, served):
    assert [model.id for model in client.models.list()] == ["echox"]
    request = urllib.request.Request(f"http://127.0.0.1:{served[1]}/metrics")
    request.add_header("Authorization", f"Bearer {KEY}")
    text = urllib.request.urlopen(request).read().decode()
    assert "echox_first_audio_seconds_count" in text and "echox_client_events_total" in text
    health = json.load(urllib.request.urlopen(f"http://127.0.0.1:{served[1]}/health"))
    assert health == {"status": "ok", "sessions": 0}


def test_without_the_key_nothing_is_served(served):
    port = served[1]
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models")
    with (
        pytest.raises(websockets.InvalidStatus, match="401"),
        websockets.connect(f"ws://127.0.0.1:{port}/v1/realtime"),
    ):
        pass
    # A page sees the reason by the code, and sends its key as a subprotocol.
    origin = f"http://127.0.0.1:{port}"
    with websockets.connect(
        f"ws://127.0.0.1:{port}/v1/realtime", origin=origin, subprotocols=["realtime"]
    ) as connection:
        with pytest.raises(ConnectionClosed) as closed:
            connection.recv()
        assert closed.value.rcvd.code == 4401
    protocols = ["realtime", f"openai-insecure-api-key.{KEY}"]
    with websockets.connect(
        f"ws://127.0.0.1:{port}/v1/realtime", origin=origin, subprotocols=protocols
    ) as connection:
        assert json.loads(connection.recv())["type"] == "session.created"
        connection.send(b"\x00bytes")
        assert json.loads(connection.recv())["type"] == "error"


def test_pages_of_others_may_not_connect(served):
    with (
        pytest.raises(websockets.InvalidStatus, match="403"),
        websockets.connect(
            f"ws://127.0.0.1:{served[1]}/v1/realtime",
            origin="https://example.org",
            additional_headers={"Authorization": f"Bearer {KEY}"},
        ),
    ):
        pass


def test_sessions_messages_and_idle_time_have_limits(pipeline):
    with running(pipeline, sessions=1, message_bytes=2_000, idle_s=0.5) as (_, port):
        url = f"ws://127.0.0.1:{port}/v1/realtime"
        with websockets.connect(url) as first:
            first.recv()
            with websockets.connect(url) as second:
                with pytest.raises(ConnectionClosed) as closed:
                    second.recv()
                assert closed.value.rcvd.code == 1013
            first.send("x" * 3_000)
            with pytest.raises(ConnectionClosed) as closed:
                while True:
                    first.recv()
            assert closed.value.rcvd.code == 1009
        with websockets.connect(url) as idle:
            idle.recv()
            with pytest.raises(ConnectionClosed):
                idle.recv(timeout=10)


def test_who_vanishes_leaves_nothing(served, pipeline):
    server, port = served
    protocols = ["realtime", f"openai-insecure-api-key.{KEY}"]
    for _ in range(5):
        with websockets.connect(
            f"ws://127.0.0.1:{port}/v1/realtime", subprotocols=protocols
        ) as connection:
            connection.send(json.dumps({"type": "session.update", "session": HANDS}))
            audio = base64.b64encode(encoded(noise(1, 0.5), Encoding.pcm16)).decode()
            for type_, fields in (
                ("input_audio_buffer.append", {"audio": audio}),
                ("input_audio_buffer.commit", {}),
                ("response.create", {}),
            ):
                connection.send(json.dumps({"type": type_, **fields}))
            while json.loads(connection.recv())["type"] != "response.created":
                pass
    for _ in range(100):
        if server.sessions == 0 and server.service.active == 0 and pipeline.unit_engine.is_idle:
            break
        time.sleep(0.05)
    assert server.sessions == 0 and pipeline.text_engine.is_idle and pipeline.unit_engine.is_idle


def test_a_server_for_others_needs_a_key(monkeypatch):
    monkeypatch.delenv("ECHOX_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="host=0.0.0.0 opens the server to other machines"):
        Access.of(ServeConfig(host="0.0.0.0"))
    monkeypatch.setenv("ECHOX_API_KEY", "from the environment")
    assert Access.of(ServeConfig(host="0.0.0.0")).key == "from the environment"


def test_who_connects_as_the_address_is_printed_is_not_refused(pipeline, monkeypatch, capsys):
    import uvicorn

    def connect(server, sockets):
        assert f":{sockets[0].getsockname()[1]}" in capsys.readouterr().out
        socket.create_connection(sockets[0].getsockname(), timeout=5).close()

    monkeypatch.setattr(uvicorn.Server, "run", connect)
    _run(pipeline, ServeConfig(port=0), has_key=False)
