"""`echox-bench latency`: from the end of a spoken question to the first text and speech.

Measured from outside, by clients of a running server that speak the Realtime protocol.
"""

from __future__ import annotations

import base64
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Barrier
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from echox.bench.measure import machine
from echox.bench.tables import facts_line, table_lines, write_tables
from echox.core.device import device_named
from echox.core.errors import ConfigError, EchoxError
from echox.core.packages import SERVE_PACKAGES, WEBSOCKETS, require
from echox.core.progress import progress
from echox.data.audio import load_audio
from echox.data.manifest import read_manifest
from echox.inference.milestones import AUDIBLE

RATE_HZ = 24_000  # of the protocol's samples
CHUNK_S = 0.04  # of audio in a message
SILENCE_S = 2.0  # that follows a question where the server detects its end


@dataclass(kw_only=True, slots=True)
class LatencyBenchConfig:
    """Time spoken answers of a server, from the end of the question on, with several clients.

    Raises:
        ConfigError: a number is out of range, or there is no question.
    """

    url: str | None = None
    """Address of a running server, such as ws://127.0.0.1:8000/v1/realtime; null starts one."""
    api_key: str = ""
    """Key of that server."""
    checkpoint: str = "runs/echo_mini"
    """What a server that is started here serves."""
    device: str = "auto"
    """Device that it runs on: auto, cpu, cuda or cuda:N."""
    questions: list[str] = field(default_factory=list)
    """Audio files, or manifests whose spoken questions are asked."""
    limit: int = 12
    """Questions of them that are asked at most."""
    clients: list[int] = field(default_factory=lambda: [1, 4, 16])
    """Clients that ask at the same time; each number is a line."""
    rounds: int = 3
    """Questions of each client."""
    detection: bool = False
    """Let the server detect the end of a question, which is then spoken in real time; false commits
    it by hand."""
    output: Path = Path("runs/bench/latency")
    """Where the tables go: this name with .md and .json."""

    def __post_init__(self) -> None:
        if not self.questions:
            raise ConfigError("no question was named; give questions=[FILE.wav,...] or a manifest")
        if min(self.clients, default=0) < 1 or min(self.rounds, self.limit) < 1:
            raise ConfigError("clients, rounds and limit must be 1 or more")


@dataclass(frozen=True, slots=True)
class AnswerLatency:
    """Seconds from the end of a question, as a client sees them."""

    heard_s: float  # until its transcript
    text_s: float  # until the first text
    unit_s: float | None  # until the first unit; None if the server does not tell
    audio_s: float  # until the first samples
    audible_s: float  # until the first audible sample, if what comes is played at once
    done_s: float  # until the end of the answer
    speech_s: float  # of the answer
    detected_s: float | None  # until the end of speech was detected; None by hand
    stages_s: dict[str, float]  # of `STAGES`, those that the server tells


def bench_latency(config: LatencyBenchConfig) -> None:
    """Ask a server, write the tables and print them.

    Raises:
        PackageError: the extra `serve` is not installed.
        EchoxError: the server did not start, or an answer failed.
        SignalError, ManifestError: a question cannot be read.
    """
    require(SERVE_PACKAGES)
    clips = _clips(config)
    with _server(config) as url:
        _ask_all(url, config, clips, 1, 1)  # which warms the server up
        lines = {
            count: _ask_all(url, config, clips, count, config.rounds)
            for count in progress(config.clients, "measuring", unit="case")
        }
    device = device_named(config.device)
    facts = machine(device) | {
        "checkpoint": config.checkpoint if config.url is None else config.url,
        "questions": f"{len(clips)}, {statistics.mean(map(len, clips)) / RATE_HZ:.1f} s each",
        "end of a question": "detected" if config.detection else "committed",
    }
    page = _page(lines, facts)
    write_tables(
        config.output,
        page,
        {"machine": facts, "lines": {n: [asdict(each) for each in v] for n, v in lines.items()}},
    )
    print(page)


def _clips(config: LatencyBenchConfig) -> list[Tensor]:
    """The questions [T] at the protocol's rate, without what follows their last sound."""
    paths: list[Any] = []
    for text in config.questions:
        if not text.endswith((".jsonl", ".json")):
            paths.append(text)
            continue
        turns = [turn for row in read_manifest(text).rows for turn in row.turns]
        paths += [turn.audio for turn in turns if turn.audio is not None and turn.role == "user"]
    clips = [load_audio(path, RATE_HZ) for path in paths[: config.limit]]
    if not clips:
        raise ConfigError("no spoken question is in what was named; give audio files")
    return [clip[: int((clip.abs() > AUDIBLE).nonzero()[-1]) + 1] for clip in clips]


@contextmanager
def _server(config: LatencyBenchConfig) -> Iterator[str]:
    """The address of the server that is asked.

    Raises:
        EchoxError: it did not start.
    """
    if config.url is not None:
        yield config.url
        return
    words = [f"checkpoint={config.checkpoint}", f"device={config.device}", "port=0"]
    command = [sys.executable, "-m", "echox_cli.serve", *words]
    # In a process of its own: the clients' work must not hold up the server's.
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            for line in process.stdout or ():
                if "http://" in line:
                    address = line.rpartition("http://")[2].strip()
                    yield f"ws://{address}/v1/realtime"
                    return
            raise EchoxError("the server did not start; what it printed stands above")
        finally:
            process.terminate()


def _ask_all(
    url: str, config: LatencyBenchConfig, clips: Sequence[Tensor], clients: int, rounds: int
) -> list[AnswerLatency]:
    """The latencies of all clients, which begin each question together."""
    together = Barrier(clients)

    def ask(client: int) -> list[AnswerLatency]:
        with _connected(url, config) as connection:
            asker = _Asker(connection, detection=config.detection)
            latencies = []
            for number in range(rounds):
                together.wait()
                latencies.append(asker.ask(clips[(client + number) % len(clips)]))
            return latencies

    with ThreadPoolExecutor(clients) as pool:
        return [latency for found in pool.map(ask, range(clients)) for latency in found]


@contextmanager
def _connected(url: str, config: LatencyBenchConfig) -> Iterator[Any]:
    connect: Callable[..., Any] = WEBSOCKETS.load("sync.client").connect
    headers = {"Authorization": f"Bearer {config.api_key}"} if config.api_key else {}
    with connect(url, additional_headers=headers, max_size=None) as connection:
        yield connection


class _Asker:
    """One client, which asks one question after the other."""

    def __init__(self, connection: Any, *, detection: bool) -> None:
        self._connection, self._detection = connection, detection
        self._wait_for("session.created")
        turn_detection = {"type": "server_vad"} if detection else None
        audio = {"input": {"turn_detection": turn_detection, "transcription": {"model": "echox"}}}
        self._send("session.update", session={"type": "realtime", "audio": audio})
        self._wait_for("session.updated")

    def _send(self, type_: str, **fields: Any) -> None:
        self._connection.send(json.dumps({"type": type_, **fields}))

    def _receive(self) -> tuple[dict[str, Any], float]:
        event, now_s = json.loads(self._connection.recv()), time.perf_counter()
        if event["type"] == "error":
            raise EchoxError(f"the server answered with an error: {event['error']['message']}")
        return event, now_s

    def _wait_for(self, type_: str) -> None:
        while self._receive()[0]["type"] != type_:
            pass

    def ask(self, clip: Tensor) -> AnswerLatency:
        """Ask one question [T] and time its answer."""
        end_s = self._speak(clip)
        times: dict[str, float] = {}
        samples: list[bytes] = []
        while True:
            event, now_s = self._receive()
            kind = _KINDS.get(event["type"])
            if kind is not None:
                times.setdefault(kind, now_s - end_s)
            if kind == "audio":
                samples.append(base64.b64decode(event["delta"]))
            if kind == "done":
                break
        if event["response"]["status"] not in ("completed", "incomplete") or not samples:
            raise EchoxError(f"an answer was not spoken: it is {event['response']['status']}")
        return _latency(times, b"".join(samples), event["response"].get("timings_s", {}))

    def _speak(self, clip: Tensor) -> float:
        """Send a question: -> when it ended."""
        chunk = round(CHUNK_S * RATE_HZ)
        content = (clip.clamp(-1, 1) * 32767).round().to(torch.int16)
        begun_s, end_s = time.perf_counter(), 0.0
        if not self._detection:
            for part in content.split(chunk):
                self._append(part)
            end_s = time.perf_counter()
            self._send("input_audio_buffer.commit")
            self._send("response.create")
            return end_s
        silence = torch.zeros(round(SILENCE_S * RATE_HZ), dtype=torch.int16)
        for number, part in enumerate(torch.cat([content, silence]).split(chunk)):
            # A microphone gives a chunk once it has been spoken.
            time.sleep(max(0.0, begun_s + (number + 1) * CHUNK_S - time.perf_counter()))
            self._append(part)
        return begun_s + len(clip) / RATE_HZ

    def _append(self, samples: Tensor) -> None:
        content = samples.numpy().astype("<i2").tobytes()
        self._send("input_audio_buffer.append", audio=base64.b64encode(content).decode("ascii"))


_KINDS = {
    "input_audio_buffer.speech_stopped": "detected",
    "conversation.item.input_audio_transcription.completed": "heard",
    "response.output_audio_transcript.delta": "text",
    "response.output_audio.delta": "audio",
    "response.done": "done",
}


def _latency(
    times: dict[str, float], content: bytes, told: Mapping[str, float] = MappingProxyType({})
) -> AnswerLatency:
    """Assemble the latencies of an answer.

    Args:
        times: seconds from the end of the question to the first event of each of `_KINDS`.
        content: the answer's 16-bit samples.
        told: the server's own seconds to what no event tells.
    """
    samples = torch.frombuffer(bytearray(content), dtype=torch.int16).float() / 32768
    loud = (samples.abs() > AUDIBLE).nonzero()
    silent_s = int(loud[0]) / RATE_HZ if len(loud) else 0.0
    # From the server's clock, which begins with the response, to that of the client.
    reached = {name: times["text"] + at - told["first_text"] for name, at in told.items()}
    return AnswerLatency(
        heard_s=times.get("heard", times["text"]),
        text_s=times["text"],
        unit_s=reached.get("first_unit"),
        audio_s=times["audio"],
        audible_s=times["audio"] + silent_s,
        done_s=times["done"],
        speech_s=len(samples) / RATE_HZ,
        detected_s=times.get("detected"),
        stages_s=_stages(reached),
    )


# Stages of an answer, and what each ends with.
STAGES = {
    "question": "encoded",
    "first token": "first_text",
    "first segment": "first_segment",
    "first unit": "first_unit",
    "first samples": "first_audio",
}


def _stages(reached: Mapping[str, float]) -> dict[str, float]:
    """Seconds of each stage, from the times at which they ended."""
    if not set(STAGES.values()) <= set(reached):
        return {}
    ends = [reached[name] for name in STAGES.values()]
    return {name: end - begin for name, begin, end in zip(STAGES, [0.0, *ends], ends)}


COLUMNS = {
    "heard": "heard_s",
    "first text": "text_s",
    "first unit": "unit_s",
    "first audio": "audio_s",
    "audible": "audible_s",
}


def _page(lines: dict[int, list[AnswerLatency]], facts: dict[str, str]) -> str:
    notes = [
        "Seconds from the end of a spoken question, p50 / p90 / p99, as a client of the Realtime "
        "protocol sees them: until what was heard, the first",
        "text, the first unit (which the server tells with the end of the answer) and the first "
        "samples of the answer, and until its first sample",
        "above -40 dBFS if samples are played as they come. The real-time factor is the time until "
        "the last sample over the seconds of speech, p50.",
        "All clients ask at the same moment. Where the end of the question is detected, it is the "
        "last sample of the file above -40 dBFS, and the",
        "delay of the detection is a part of all numbers.",
    ]
    head = ["clients", "answers", *COLUMNS, "real-time factor"]
    table = table_lines(head, [_row(count, found) for count, found in lines.items()])
    page = ["# Latency", "", *table, "", *notes, "", *_stage_lines(lines), facts_line(facts)]
    detected = [each.detected_s for found in lines.values() for each in found]
    if any(each is not None for each in detected):
        delay = _quantiles([each for each in detected if each is not None])
        page += ["", f"Delay of the detection: {delay} s."]
    return "\n".join(page) + "\n"


def _row(clients: int, found: Sequence[AnswerLatency]) -> list[str]:
    factor = statistics.median(each.done_s / each.speech_s for each in found)
    values = [[getattr(each, name) for each in found] for name in COLUMNS.values()]
    return [str(clients), str(len(found)), *map(_quantiles, values), f"{factor:.2f}"]


def _stage_lines(lines: dict[int, list[AnswerLatency]]) -> list[str]:
    """A table of the seconds of each stage, where the server tells them."""
    rows = [
        [str(count), *(_quantiles([each.stages_s[name] for each in found]) for name in STAGES)]
        for count, found in lines.items()
        if all(each.stages_s for each in found)
    ]
    if not rows:
        return []
    notes = [
        "Seconds of each stage, p50 / p90 / p99: until the question is encoded, its prompt has "
        "given the first token, the first segment is written, the",
        "unit decoder has given its first unit, and the codec the first samples.",
    ]
    return [*table_lines(["clients", *STAGES], rows), "", *notes, ""]


def _quantiles(given: Sequence[float | None]) -> str:
    """p50, p90 and p99; a dash if one is not known."""
    values = [value for value in given if value is not None]
    if len(values) < len(given):
        return "-"
    found = torch.tensor(values, dtype=torch.float64).quantile(
        torch.tensor([0.5, 0.9, 0.99], dtype=torch.float64)
    )
    return " / ".join(f"{value:.2f}" for value in found.tolist())
