"""`echox-bench units`: how fast units are made of a corpus, against one file at a time, and how memory grows with the number of files."""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from omegaconf import MISSING

from echox.bench.measure import machine
from echox.codecs.base import CODECS, Codec, CodecConfig
from echox.corpora.units import UnitsConfig, units_path, write_units
from echox.data.audio import load_audio, pad_waveforms, save_audio
from echox.data.manifest import Item, Role, Row, read_manifest, with_units, write_manifest
from echox.data.writing import appearing
from echox.device import device_named, multiplies_bf16_fast
from echox.errors import ConfigError
from echox.unit_encoding import EncodeUnitsConfig, encode_units

ONE_BY_ONE = "one file at a time"
# Linux tells the most memory since it was last told to forget that.
STATUS, PEAK_RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(kw_only=True, slots=True)
class UnitsBenchConfig:
    """Hours of audio encoded per hour by `echox-prepare units` and by a loop over files, in turns, and memory over many files."""

    codec: CodecConfig = MISSING
    """The codec to encode with; its units are thrown away."""
    clips: int = 48
    """Clips of a round, of made-up sound."""
    rounds: int = 4
    """Rounds in which the contenders take turns, each with clips of its own."""
    shortest_s: float = 1.0
    """Seconds of the shortest clips."""
    longest_s: float = 15.0
    """Seconds of the longest clips; lengths between are spread evenly on a scale of ratios."""
    workers: int = 1
    """Processes of one more contender, which is timed with their start; 1 leaves it out."""
    files: int = 10_000
    """Files of the measurement of memory; 0 leaves it out."""
    file_s: float = 0.3
    """Seconds of each of those files."""
    seed: int = 0
    """Seed of the clips."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    output: Path = Path("runs/bench/units")
    """Where the tables go: this name with .md and .json."""

    def __post_init__(self) -> None:
        if min(self.clips, self.rounds, self.workers) < 1 or self.files < 0 or not 0 < self.shortest_s <= self.longest_s or self.file_s <= 0:
            raise ConfigError("clips, rounds and workers must be at least 1, files 0 or more, and seconds above 0 with shortest_s up to longest_s")


@dataclass(frozen=True, slots=True)
class Line:
    """One contender over all rounds."""

    contender: str
    precision: str
    seconds: float
    processor_s: float | None  # of all threads of this process; None where other processes worked
    pace: float  # seconds of audio per second
    of_loop: float  # its pace over that of one file at a time in float32


@dataclass(frozen=True, slots=True)
class Memory:
    """The most memory the process has held, in MiB, after so many files."""

    files: int
    peak_mib: float


def bench_units(config: UnitsBenchConfig) -> None:
    """Measure, print and write the table."""
    device = device_named(config.device)
    codec = CODECS.build(config.codec).to(device)
    with TemporaryDirectory() as folder:
        lines = _paces(config, codec, device, Path(folder))
        memory = _memory(config, codec, device, Path(folder) / "many") if config.files else []
    facts = machine(device) | {"codec": codec.fingerprint(), "clips": f"{config.rounds} x {config.clips} of {config.shortest_s:g} to {config.longest_s:g} s"}
    page = table(lines, memory, facts)
    print(page)
    found = {"machine": facts, "lines": [asdict(line) for line in lines], "memory": [asdict(point) for point in memory]}
    for ending, text in ((".md", page), (".json", json.dumps(found, indent=1) + "\n")):
        with appearing(Path(f"{config.output}{ending}")) as unfinished:
            unfinished.write_text(text, encoding="utf-8")


def _paces(config: UnitsBenchConfig, codec: Codec, device: torch.device, folder: Path) -> list[Line]:
    corpora = [_corpus(folder / str(number), config, config.seed + number) for number in range(config.rounds)]
    audio_s = sum(seconds for _, seconds in corpora)
    precisions = [False, True] if multiplies_bf16_fast(device) else [False]
    calls: dict[tuple[str, bool], Callable[[Path], None]] = {}
    for bf16 in precisions:
        calls[ONE_BY_ONE, bf16] = partial(_one_by_one, codec=codec, device=device, bf16=bf16)
        calls["echox", bf16] = partial(_echox, codec=codec, device=device, bf16=bf16)
    _one_by_one(corpora[0][0], codec=codec, device=device, bf16=precisions[-1])  # what is set up once is no one's time
    took_s, processor_s = dict.fromkeys(calls, 0.0), dict.fromkeys(calls, 0.0)
    for manifest, _ in corpora:
        for who, call in calls.items():
            began_s, used_s = time.perf_counter(), time.process_time()
            call(manifest)
            took_s[who] += time.perf_counter() - began_s
            processor_s[who] += time.process_time() - used_s
    if config.workers > 1:
        took_s[f"echox, {config.workers} processes with their start", precisions[-1]] = _with_processes(config, [manifest for manifest, _ in corpora], folder)
    loop_s = took_s[ONE_BY_ONE, False]
    return [
        Line(who, "bfloat16" if bf16 else "float32", seconds, processor_s.get((who, bf16)), audio_s / seconds, loop_s / seconds)
        for (who, bf16), seconds in took_s.items()
    ]


def _corpus(folder: Path, config: UnitsBenchConfig, seed: int) -> tuple[Path, float]:
    """A manifest of clips in no order of length, and their seconds."""
    random = np.random.default_rng(seed)
    lengths_s = np.geomspace(config.shortest_s, config.longest_s, config.clips)
    random.shuffle(lengths_s)
    paths = [folder / f"{number}.flac" for number in range(config.clips)]
    for path, seconds in zip(paths, lengths_s):
        save_audio(path, torch.from_numpy(0.1 * random.standard_normal(round(16_000 * seconds))), 16_000)
    return _manifest(folder / "speech.jsonl", paths), float(lengths_s.sum())


def _manifest(path: Path, clips: list[Path]) -> Path:
    write_manifest(path, (Row(f"row{number}", (Item(Role.ASSISTANT, "something", audio=clip),)) for number, clip in enumerate(clips)))
    return path


@torch.no_grad()
def _one_by_one(manifest: Path, *, codec: Codec, device: torch.device, bf16: bool) -> None:
    rows = []
    for row in read_manifest(manifest).rows:
        wave = pad_waveforms([load_audio(row.answer.audio, codec.rate_hz)], codec.rate_hz).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            units = codec.encode(wave)
        rows.append(with_units(row, units.rows()[0], codec.codebooks))
    write_manifest(units_path(manifest), rows)


def _echox(manifest: Path, *, codec: Codec, device: torch.device, bf16: bool) -> None:
    with TemporaryDirectory() as cache:
        write_units(UnitsConfig(manifests=[str(manifest)], cache_dir=cache), codec, device=device, bf16=bf16, shows=False)


def _with_processes(config: UnitsBenchConfig, manifests: list[Path], folder: Path) -> float:
    began_s = time.perf_counter()
    shard = max(1, config.clips // (2 * config.workers))
    encode_units(
        EncodeUnitsConfig(
            manifests=list(map(str, manifests)), codec=config.codec, device=config.device, workers=config.workers, rows_per_shard=shard, cache_dir=str(folder / "cache")
        )
    )
    return time.perf_counter() - began_s


def _memory(config: UnitsBenchConfig, codec: Codec, device: torch.device, folder: Path) -> list[Memory]:
    """Memory after a tenth of the files, half of them and all, in one run each after the other."""
    sound = 0.1 * np.random.default_rng(config.seed).standard_normal(round(16_000 * config.file_s))
    save_audio(folder / "0.flac", torch.from_numpy(sound), 16_000)
    paths = [folder / f"{number}.flac" for number in range(config.files)]
    for path in paths[1:]:
        os.link(paths[0], path)
    points = []
    for count in sorted({max(1, config.files // 10), max(1, config.files // 2), config.files}):
        manifest = _manifest(folder / f"{count}.jsonl", paths[:count])
        _forget_peak()
        _echox(manifest, codec=codec, device=device, bf16=multiplies_bf16_fast(device))
        points.append(Memory(count, _peak_mib()))
    return points


def _forget_peak() -> None:
    """Let the peak of this process's memory begin anew, where the system can."""
    if os.access(PEAK_RESET, os.W_OK):
        PEAK_RESET.write_text("5")


def _peak_mib() -> float:
    if STATUS.exists():
        return next(int(line.split()[1]) / 1024 for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _per_processor(line: Line) -> list[str]:
    return ["", ""] if line.processor_s is None else [f"{line.processor_s:.1f}", f"{line.pace * line.seconds / line.processor_s:.1f}"]


def table(lines: list[Line], memory: list[Memory], facts: dict[str, str]) -> str:
    """The measurements as a Markdown page."""
    rows = [
        [line.contender, line.precision, f"{line.seconds:.1f}", f"{line.pace:.1f}", f"{line.of_loop:.2f}", *_per_processor(line)] for line in lines
    ]
    head = ["who", "precision", "s", "h of audio per h", "pace over the loop's", "processor s", "h of audio per h of a core"]
    page = ["# Units of a corpus", "", *("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]), ""]
    if memory:
        page += ["The most memory held, model and all, in a run of its own for each number of files: " + ", ".join(f"{point.peak_mib:,.0f} MiB over {point.files:,} files" for point in memory) + ".", ""]
    page += ["; ".join(f"{name} {value}" for name, value in facts.items()) + ".", ""]
    page += [
        "The contenders take turns over rounds of clips, reading and writing included. Where others use the machine too, time on the clock says",
        "little, and the processor's seconds, which count this process's threads alone, say more (on a GPU they are not those of the GPU).",
        '"One file at a time" reads, encodes and goes on to the next file, as scripts do.',
    ]
    return "\n".join(page) + "\n"
