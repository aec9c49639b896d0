"""A server of the page whose answers are a script: known words, and a tone of known length.

It speaks the Realtime protocol as `echox-serve` does, keeps what clients send, and can be told to
close connections, so that a test of the page needs no model.
"""

import asyncio
import base64
import contextlib
import json
import socket
import threading
import time
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocketDisconnect

RATE_HZ = 24_000
PAGE = Path(__file__).parents[2] / "echox" / "serving" / "page"
HEARD = "What is the capital of France?"
ANSWER = (
    "The capital of France is Paris. It lies on the river Seine, and about two million people "
    "live within its borders."
)
SPEECH_S = 4.0
LOWEST, HIGHEST = 0.1, 0.6  # of the speech
LOUD, QUIET_SAMPLES = 0.02, RATE_HZ // 3  # of the voice activity


def speech(seconds: float) -> np.ndarray:
    """Return 16-bit samples [T] that rise evenly, so that each tells how far it was played."""
    ramp = np.linspace(LOWEST, HIGHEST, round(seconds * RATE_HZ))
    return (32767 * ramp).astype("<i2")


@dataclass
class Script:
    """What the server does, and what it was sent."""

    key: str = ""
    speech_s: float = SPEECH_S
    real_time_factor: float = 0.25
    delay_s: float = 0.0  # before the answer begins
    events: list = field(default_factory=list)
    sockets: list = field(default_factory=list)
    loop: asyncio.AbstractEventLoop | None = None

    def sent(self, type_: str) -> list:
        """Return the client's events of a type."""
        return [event for event in list(self.events) if event["type"] == type_]

    def samples(self) -> np.ndarray:
        """Return the 16-bit samples [T] that the client appended."""
        parts = [base64.b64decode(e["audio"]) for e in self.sent("input_audio_buffer.append")]
        return np.frombuffer(b"".join(parts), "<i2")

    def close_all(self, code: int, reason: str = "") -> None:
        """Close every connection from the server's side."""

        async def close() -> None:
            for websocket in self.sockets:
                with contextlib.suppress(RuntimeError):
                    await websocket.close(code, reason)

        asyncio.run_coroutine_threadsafe(close(), self.loop).result(5)


class Session:
    """One connection."""

    def __init__(self, websocket, script):
        self.websocket, self.script = websocket, script
        self.ids = count()
        self.session = {"output_modalities": ["audio"], "audio": {"input": {}}}
        self.items, self.spoken = {}, {}
        self.buffered = self.total = self.silent = 0
        self.speaking = None
        self.response = None
        self.task = None

    async def tell(self, type_, **fields):
        event = {"type": type_, "event_id": f"event_{next(self.ids)}", **fields}
        await self.websocket.send_text(json.dumps(event))

    async def run(self):
        await self.tell("session.created", session=self.session)
        with contextlib.suppress(WebSocketDisconnect):
            while True:
                event = json.loads(await self.websocket.receive_text())
                self.script.events.append(event)
                await getattr(self, event["type"].replace(".", "_"))(event)
        if self.task:
            self.task.cancel()

    async def session_update(self, event):
        self.session = event["session"]
        self.buffered = 0
        await self.tell("session.updated", session=self.session)

    async def input_audio_buffer_append(self, event):
        samples = np.frombuffer(base64.b64decode(event["audio"]), "<i2") / 32768
        self.buffered += len(samples)
        self.total += len(samples)
        if self.session["audio"]["input"]["turn_detection"]:
            await self.detect(len(samples), np.abs(samples).max() > LOUD)

    async def detect(self, length, is_loud):
        self.silent = 0 if is_loud else self.silent + length
        place = round(1000 * self.total / RATE_HZ)
        if is_loud and not self.speaking:
            self.speaking = f"item_{next(self.ids)}"
            await self.tell(
                "input_audio_buffer.speech_started", audio_start_ms=place, item_id=self.speaking
            )
            await self.cancel("turn_detected")
        elif self.speaking and self.silent >= QUIET_SAMPLES:
            end_ms = place - round(1000 * self.silent / RATE_HZ)
            item, self.speaking = self.speaking, None
            await self.tell("input_audio_buffer.speech_stopped", audio_end_ms=end_ms, item_id=item)
            await self.commit(item)
            await self.response_create({})

    async def input_audio_buffer_clear(self, event):
        self.buffered = 0
        self.speaking = None
        await self.tell("input_audio_buffer.cleared")

    async def input_audio_buffer_commit(self, event):
        if self.buffered < RATE_HZ // 10:
            return await self.refuse(event, "less than 100 ms of audio came")
        await self.commit(f"item_{next(self.ids)}")

    async def commit(self, item):
        self.buffered = 0
        self.items[item] = {"id": item, "role": "user", "content": []}
        await self.tell("input_audio_buffer.committed", item_id=item, previous_item_id=None)
        self.heard = item

    async def refuse(self, event, message):
        fault = {"type": "invalid_request_error", "message": message}
        await self.tell("error", error={**fault, "event_id": event.get("event_id")})

    async def conversation_item_create(self, event):
        item = {"id": f"item_{next(self.ids)}", **event["item"]}
        self.items[item["id"]] = item
        await self.tell("conversation.item.added", item=item, previous_item_id=None)

    async def conversation_item_truncate(self, event):
        item, end_ms = event["item_id"], event["audio_end_ms"]
        if item not in self.items or end_ms > 1000 * self.spoken[item] + 1:
            return await self.refuse(event, "there is nothing to truncate")
        text = self.items[item]["content"][0]["text"]
        kept = text[: round(len(text) * end_ms / 1000 / self.script.speech_s)]
        self.items[item]["content"][0]["text"] = kept = kept.rpartition(" ")[0]
        if not kept:
            del self.items[item]
        await self.tell(
            "conversation.item.truncated", item_id=item, content_index=0, audio_end_ms=end_ms
        )

    async def conversation_item_retrieve(self, event):
        if event["item_id"] not in self.items:
            return await self.refuse(event, "there is no such item")
        await self.tell("conversation.item.retrieved", item=self.items[event["item_id"]])

    async def response_create(self, event):
        if self.response:
            return await self.refuse(event, "a response is under way; cancel it first")
        self.response, self.has_begun = f"resp_{next(self.ids)}", False
        self.task = asyncio.create_task(self.answer(f"item_{next(self.ids)}"))

    async def response_cancel(self, event):
        if not self.response:
            return await self.refuse(event, "there is no such response to cancel")
        await self.cancel("client_cancelled")

    async def cancel(self, reason):
        if self.response:
            self.task.cancel()
            if not self.has_begun:
                await self.begin()
            await self.end("cancelled", {"type": "cancelled", "reason": reason})

    async def begin(self):
        self.has_begun = True
        await self.tell("response.created", response={"id": self.response})

    async def end(self, status, details=None):
        name, self.response = self.response, None
        response = {"id": name, "status": status, "status_details": details, "output": []}
        await self.tell("response.done", response=response)

    async def answer(self, item):
        place = {"response_id": self.response, "item_id": item, "output_index": 0}
        place["content_index"] = 0
        await asyncio.sleep(self.script.delay_s)
        await self.begin()
        await self.tell(
            "response.output_item.added",
            response_id=self.response,
            output_index=0,
            item={"id": item, "role": "assistant", "content": []},
        )
        if self.items and list(self.items.values())[-1]["content"] == []:
            await self.tell(
                "conversation.item.input_audio_transcription.completed",
                item_id=self.heard,
                content_index=0,
                transcript=HEARD,
            )
        self.items[item] = {"id": item, "role": "assistant", "content": [{"text": ""}]}
        self.spoken[item] = 0.0
        speaks = self.session["output_modalities"] == ["audio"]
        words = ANSWER.split(" ")
        chunks = np.array_split(speech(self.script.speech_s), len(words))
        for number, (word, chunk) in enumerate(zip(words, chunks, strict=True)):
            delta = word if number == 0 else f" {word}"
            self.items[item]["content"][0]["text"] += delta
            kind = "output_audio_transcript" if speaks else "output_text"
            await self.tell(f"response.{kind}.delta", delta=delta, **place)
            if speaks:
                self.spoken[item] += len(chunk) / RATE_HZ
                audio = base64.b64encode(chunk.tobytes()).decode()
                await self.tell("response.output_audio.delta", delta=audio, **place)
            await asyncio.sleep(len(chunk) / RATE_HZ * self.script.real_time_factor)
        await self.end("completed")


def app(script: Script) -> Starlette:
    """Return the application: the page, and its sessions."""

    async def realtime(websocket):
        script.loop = asyncio.get_running_loop()
        protocols = websocket.scope.get("subprotocols", [])
        await websocket.accept("realtime")
        if script.key and f"openai-insecure-api-key.{script.key}" not in protocols:
            return await websocket.close(4401, "the API key is missing or wrong")
        script.sockets.append(websocket)
        await Session(websocket, script).run()
        script.sockets.remove(websocket)

    return Starlette(
        routes=[
            WebSocketRoute("/v1/realtime", realtime),
            Mount("/", StaticFiles(directory=PAGE, html=True)),
        ]
    )


@contextlib.contextmanager
def running(script: Script):
    """Serve a script within a block, in a thread: -> the page's address."""
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app(script), log_level="error", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join()
