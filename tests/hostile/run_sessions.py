"""Fill a server up: clients that vanish, many at once, and events that make no sense.

    python tests/hostile/run_sessions.py --cycles 300 --sessions 64 --speaking 8 --events 10000

Starts a server with a tiny random model in a process of its own, and ends with 1 where memory
grew by more than 5 %, a slot was not free after a second, a chunk was lost or out of order, or an
event got no answer.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import multiprocessing
import random
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import hostile_environment  # noqa: F401
from hostile_mutations import dump, mutated
from tiny_run import noise, write_run
from tiny_server import running
from websockets.asyncio.client import ClientConnection, connect

from echox.inference.audio_input import Encoding, encoded
from echox.inference.load import load_pipeline

GROWTH, FREE_WITHIN_S = 0.05, 1.0
WARM_CYCLES = 50  # before memory is looked at: caches fill up at first
QUESTION = base64.b64encode(encoded(noise(1, 0.6), Encoding.pcm16)).decode()
HANDS = {"type": "realtime", "audio": {"input": {"turn_detection": None}}}
SEED_EVENT = {
    "type": "session.update",
    "session": HANDS,
    "item": {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "A"}]},
    "audio": QUESTION[:400],
    "item_id": "item_1",
    "audio_end_ms": 10,
    "response": {"output_modalities": ["text"], "conversation": "none"},
}
EVENTS = (
    "session.update",
    "input_audio_buffer.append",
    "input_audio_buffer.commit",
    "input_audio_buffer.clear",
    "conversation.item.create",
    "conversation.item.retrieve",
    "conversation.item.truncate",
    "conversation.item.delete",
    "response.create",
    "response.cancel",
)


def serve(run: str, pipe) -> None:
    """Serve a tiny model until the other end of the pipe closes."""
    pipeline = load_pipeline(Path(run) / "echo" / "final", device="cpu", max_tokens=24, bf16=False)
    with running(pipeline, sessions=200) as (_, port):
        pipe.send(port)
        with contextlib.suppress(EOFError):
            while pipe.recv():
                engines = [pipeline.unit_engine, pipeline.text_engine]
                pipe.send((_resident_bytes(), all(engine.is_idle for engine in engines)))


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


async def send(connection: ClientConnection, type_: str, **fields: object) -> None:
    await connection.send(json.dumps({"type": type_, **fields}))


async def ask(connection: ClientConnection) -> None:
    await send(connection, "input_audio_buffer.append", audio=QUESTION)
    await send(connection, "input_audio_buffer.commit")
    await send(connection, "response.create")


async def vanish(url: str, patience: int) -> None:
    """Connect, ask, and leave without a word after so many events of the answer."""
    connection = await connect(url)
    await send(connection, "session.update", session=HANDS)
    await ask(connection)
    for _ in range(patience):
        await connection.recv()
    connection.transport.abort()


async def converse(url: str, questions: int) -> str:
    """Ask some questions: -> what was wrong, empty if nothing was."""
    async with connect(url) as connection:
        await send(connection, "session.update", session=HANDS)
        for _ in range(questions):
            await ask(connection)
            text, transcript, audio = "", None, 0
            while True:
                event = json.loads(await asyncio.wait_for(connection.recv(), 120))
                if event["type"] == "error":
                    return f"error: {event['error']['message']}"
                if event["type"] == "response.output_audio_transcript.delta":
                    text += event["delta"]
                elif event["type"] == "response.output_audio.delta":
                    audio += len(base64.b64decode(event["delta"]))
                elif event["type"] == "response.output_audio_transcript.done":
                    transcript = event["transcript"]
                elif event["type"] == "response.done":
                    break
            if text != transcript or not audio:
                return f"a chunk is missing: {text!r} of {transcript!r}, {audio} bytes of audio"
    return ""


async def many(url: str, sessions: int, speaking: int) -> list[str]:
    """Hold sessions open of which some speak: -> what was wrong."""
    silent = [await connect(url) for _ in range(sessions - speaking)]
    found = await asyncio.gather(*(converse(url, 3) for _ in range(speaking)))
    for connection in silent:
        # Still there, and answered.
        await send(connection, "session.update", session=HANDS)
        while (
            json.loads(await asyncio.wait_for(connection.recv(), 60))["type"] != "session.updated"
        ):
            pass
        await connection.close()
    return [fault for fault in found if fault]


async def bother(url: str, events: int, seed: int) -> list[str]:
    """Send events that make no sense: -> what was wrong."""
    source, faults, connection = random.Random(seed), [], await connect(url)
    for number in range(events):
        event = mutated(
            {**SEED_EVENT, "type": source.choice(EVENTS)}, source, source.choice((1, 2, 4))
        )
        content = dump(event, source)
        if source.random() < 0.1:
            content = content[: source.randrange(len(content) + 1)]
        text: str | bytes = content.decode("utf-8", "replace")
        await connection.send(content if source.random() < 0.02 else text)
        if number % 200 == 199:
            await send(connection, "session.update", session=HANDS, event_id="probe")
            try:
                while True:
                    answer = json.loads(await asyncio.wait_for(connection.recv(), 60))
                    if "Traceback" in json.dumps(answer):
                        faults.append(f"a traceback was sent: {answer}")
                    if answer["type"] == "session.updated":
                        break
            except Exception as error:
                faults.append(f"after {number + 1} events: {error!r}")
                connection = await connect(url)
    await connection.close()
    return faults


def main(argv: Sequence[str] | None = None) -> int:
    """Run all three, print what was found, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cycles", type=int, default=300, help="clients that vanish")
    parser.add_argument("--sessions", type=int, default=64, help="sessions open at once")
    parser.add_argument("--speaking", type=int, default=8, help="of them, how many speak")
    parser.add_argument("--events", type=int, default=10_000, help="events that make no sense")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="sessions-") as folder:
        run, (ours, theirs) = write_run(Path(folder) / "run"), multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(
            target=serve, args=(str(run), theirs)
        )
        process.start()
        theirs.close()
        port = ours.recv()
        faults = _run(arguments, f"ws://127.0.0.1:{port}/v1/realtime", ours)
        health = json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/health"))
        ours.close()
        process.join()
    print(f"health at the end: {health}; {len(faults)} faults")
    print("\n".join(faults))
    return int(bool(faults))


def _run(arguments: argparse.Namespace, url: str, pipe) -> list[str]:
    source, faults = random.Random(arguments.seed), []
    begun = time.perf_counter()

    def state() -> tuple[int, bool]:
        pipe.send("state")
        return pipe.recv()

    before = 0
    for cycle in range(arguments.cycles):
        asyncio.run(vanish(url, source.randint(1, 12)))
        if cycle == min(WARM_CYCLES, arguments.cycles) - 1:
            before, _ = state()
    left = time.perf_counter()
    while not state()[1]:
        if time.perf_counter() - left > FREE_WITHIN_S:
            faults.append("a slot was not free within a second")
            break
        time.sleep(0.05)
    after, _ = state()
    print(
        f"{arguments.cycles} clients vanished in {time.perf_counter() - begun:.0f} s; memory "
        f"{before / 1e6:.0f} -> {after / 1e6:.0f} MB; slots free after "
        f"{time.perf_counter() - left:.2f} s"
    )
    if after > before * (1 + GROWTH):
        faults.append(f"memory grew by {100 * (after / before - 1):.1f} %")
    begun = time.perf_counter()
    faults += asyncio.run(many(url, arguments.sessions, arguments.speaking))
    print(
        f"{arguments.sessions} sessions, {arguments.speaking} of them speaking: "
        f"{time.perf_counter() - begun:.0f} s"
    )
    begun = time.perf_counter()
    faults += asyncio.run(bother(url, arguments.events, arguments.seed))
    print(f"{arguments.events} events that make no sense: {time.perf_counter() - begun:.0f} s")
    return faults


if __name__ == "__main__":
    sys.exit(main())
