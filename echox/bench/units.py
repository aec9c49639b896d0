"""`echox-bench units`: speed of encoding a corpus into units, and memory over many files.

The speed is compared with a loop that encodes one file at a time.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from omegaconf import MISSING

from echox.bench.measure import machine
from echox.bench.tables import facts_line, table_lines, write_tables
from echox.codecs.base import CODECS, Codec, CodecConfig
from echox.core.device import device_named, multiplies_bf16_fast
from echox.core.errors import ConfigError
from echox.corpora.units import UnitsConfig, units_path, write_units
from echox.data.audio import load_audio, pad_waveforms, save_audio
from echox.data.manifest import Item, Role, Row, read_manifest, with_units, write_manifest
from echox.pipeline.encode_units import EncodeUnitsConfig, encode_units

RATE_HZ = 16_000  # of the synthetic clips
ONE_BY_ONE = "one file at a time"
# On Linux the first has the peak of this process's memory since the second was last written to.
STATUS, PEAK_RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(kw_only=True, slots=True)
class UnitsBenchConfig:
    """Time `echox-prepare units` beside a loop over files, and measure memory over many files.

    Raises:
        ConfigError: a number is out of range.
    """

    codec: CodecConfig = MISSING
    """The codec to encode with; its units are thrown away."""
    clips: int = 48
    """Clips of a round, of synthetic sound."""
    rounds: int = 4
    """Rounds in which the contenders alternate, each with clips of its own."""
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
        if (
            min(self.clips, self.rounds, self.workers) < 1
            or self.files < 0
            or not 0 < self.shortest_s <= self.longest_s
            or self.file_s <= 0
        ):
            raise ConfigError(
                "clips, rounds and workers must be at least 1, files 0 or more, and seconds above "
                "0 with shortest_s up to longest_s"
            )


@dataclass(frozen=True, slots=True)
class Line:
    """Times of one contender over all rounds."""

    contender: str
    precision: str
    seconds: float
    processor_s: float | None  # of all threads of this process; None where others worked
    pace: float  # seconds of audio per second
    of_loop: float  # its pace over that of one file at a time in float32


@dataclass(frozen=True, slots=True)
class Memory:
    """Peak of the process's memory over a number of files."""

    files: int
    peak_mib: float


def bench_units(config: UnitsBenchConfig) -> None:
    """Measure encoding, print the page and write it.

    Raises:
        ConfigError: there is no such device.
        CheckpointError: the codec is not fitted.
    """
    device = device_named(config.device)
    codec = CODECS.build(config.codec).to(device)
    with TemporaryDirectory() as folder:
        lines = _paces(config, codec, device, Path(folder))
        memory = _memory(config, codec, device, Path(folder) / "many") if config.files else []
    lengths = f"{config.shortest_s:g} to {config.longest_s:g} s"
    facts = machine(device) | {
        "codec": codec.fingerprint(),
        "clips": f"{config.rounds} x {config.clips} of {lengths}",
    }
    page = table(lines, memory, facts)
    print(page)
    results = {
        "machine": facts,
        "lines": [asdict(line) for line in lines],
        "memory": [asdict(point) for point in memory],
    }
    write_tables(config.output, page, results)


def _paces(
    config: UnitsBenchConfig, codec: Codec, device: torch.device, folder: Path
) -> list[Line]:
    """The lines of all contenders."""
    corpora = [
        _corpus(folder / str(number), config, config.seed + number)
        for number in range(config.rounds)
    ]
    manifests = [manifest for manifest, _ in corpora]
    audio_s = sum(seconds for _, seconds in corpora)
    precisions = [False, True] if multiplies_bf16_fast(device) else [False]
    calls: dict[tuple[str, bool], Callable[[Path], None]] = {}
    for bf16 in precisions:
        calls[ONE_BY_ONE, bf16] = partial(_one_by_one, codec=codec, device=device, bf16=bf16)
        calls["echox", bf16] = partial(_echox, codec=codec, device=device, bf16=bf16)
    # Once without timing: what is set up by the first call belongs to no contender.
    _one_by_one(manifests[0], codec=codec, device=device, bf16=precisions[-1])
    wall_s, processor_s = _alternate(calls, manifests)
    if config.workers > 1:
        name = f"echox, {config.workers} processes with their start"
        wall_s[name, precisions[-1]] = _with_processes(config, manifests, folder)
    loop_s = wall_s[ONE_BY_ONE, False]
    return [
        Line(
            contender=name,
            precision="bfloat16" if bf16 else "float32",
            seconds=seconds,
            processor_s=processor_s.get((name, bf16)),
            pace=audio_s / seconds,
            of_loop=loop_s / seconds,
        )
        for (name, bf16), seconds in wall_s.items()
    ]


def _alternate(
    calls: dict[tuple[str, bool], Callable[[Path], None]], manifests: Sequence[Path]
) -> tuple[dict[tuple[str, bool], float], dict[tuple[str, bool], float]]:
    """Seconds by the clock and of the processor of each call, over all manifests."""
    wall_s, processor_s = dict.fromkeys(calls, 0.0), dict.fromkeys(calls, 0.0)
    # In alternation, so that a slow spell of the machine slows all of them.
    for manifest in manifests:
        for key, call in calls.items():
            start_s, processor_start_s = time.perf_counter(), time.process_time()
            call(manifest)
            wall_s[key] += time.perf_counter() - start_s
            processor_s[key] += time.process_time() - processor_start_s
    return wall_s, processor_s


def _corpus(folder: Path, config: UnitsBenchConfig, seed: int) -> tuple[Path, float]:
    """A manifest of clips in random order of length, and their seconds together."""
    rng = np.random.default_rng(seed)
    lengths_s = np.geomspace(config.shortest_s, config.longest_s, config.clips)
    # A corpus is not sorted by length either.
    rng.shuffle(lengths_s)
    paths = [folder / f"{number}.flac" for number in range(config.clips)]
    for path, seconds in zip(paths, lengths_s):
        samples = 0.1 * rng.standard_normal(round(RATE_HZ * seconds))
        save_audio(path, torch.from_numpy(samples), RATE_HZ)
    return _manifest(folder / "speech.jsonl", paths), float(lengths_s.sum())


def _manifest(path: Path, clips: list[Path]) -> Path:
    rows = (
        Row(f"row{number}", (Item(Role.ASSISTANT, "something", audio=clip),))
        for number, clip in enumerate(clips)
    )
    write_manifest(path, rows)
    return path


@torch.no_grad()
def _one_by_one(manifest: Path, *, codec: Codec, device: torch.device, bf16: bool) -> None:
    """Encode as scripts commonly do: read, encode, go on to the next file."""
    rows = []
    for row in read_manifest(manifest).rows:
        samples = load_audio(row.require_answer().require_audio(), codec.rate_hz)
        wave = pad_waveforms([samples], codec.rate_hz).to(device)  # [1, T]
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            units = codec.encode(wave)
        rows.append(with_units(row, units.rows()[0], codec.codebooks))
    write_manifest(units_path(manifest), rows)


def _echox(manifest: Path, *, codec: Codec, device: torch.device, bf16: bool) -> None:
    # A cache of its own: the shards of another call would not be encoded again.
    with TemporaryDirectory() as cache:
        config = UnitsConfig(manifests=[str(manifest)], cache_dir=cache)
        write_units(config, codec, device=device, bf16=bf16, shows=False)


def _with_processes(config: UnitsBenchConfig, manifests: list[Path], folder: Path) -> float:
    """Seconds of encoding all manifests by several processes, with their start."""
    start_s = time.perf_counter()
    encode_units(
        EncodeUnitsConfig(
            manifests=list(map(str, manifests)),
            codec=config.codec,
            device=config.device,
            workers=config.workers,
            # Two shards for each process and manifest, so that all of them have work.
            rows_per_shard=max(1, config.clips // (2 * config.workers)),
            cache_dir=str(folder / "cache"),
        )
    )
    return time.perf_counter() - start_s


def _memory(
    config: UnitsBenchConfig, codec: Codec, device: torch.device, folder: Path
) -> list[Memory]:
    """Peaks over a tenth of the files, half of them and all, in a run each."""
    rng = np.random.default_rng(config.seed)
    samples = 0.1 * rng.standard_normal(round(RATE_HZ * config.file_s))
    paths = [folder / f"{number}.flac" for number in range(config.files)]
    save_audio(paths[0], torch.from_numpy(samples), RATE_HZ)
    # Links, because memory depends on the number of files, not on what is in them.
    for path in paths[1:]:
        os.link(paths[0], path)
    points = []
    # Growing, because a peak that cannot be reset never falls.
    for count in sorted({max(1, config.files // 10), max(1, config.files // 2), config.files}):
        manifest = _manifest(folder / f"{count}.jsonl", paths[:count])
        _reset_peak()
        _echox(manifest, codec=codec, device=device, bf16=multiplies_bf16_fast(device))
        points.append(Memory(count, _peak_mib()))
    return points


def _reset_peak() -> None:
    """Reset the peak of this process's memory, where the system can."""
    if os.access(PEAK_RESET, os.W_OK):
        PEAK_RESET.write_text("5")  # see proc(5)


def _peak_mib() -> float:
    if STATUS.exists():
        lines = STATUS.read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _row(line: Line) -> list[str]:
    processor = ["", ""]
    if line.processor_s is not None:
        audio_s = line.pace * line.seconds
        processor = [f"{line.processor_s:.1f}", f"{audio_s / line.processor_s:.1f}"]
    return [
        line.contender,
        line.precision,
        f"{line.seconds:.1f}",
        f"{line.pace:.1f}",
        f"{line.of_loop:.2f}",
        *processor,
    ]


HEAD = [
    "who",
    "precision",
    "s",
    "h of audio per h",
    "pace over the loop's",
    "processor s",
    "h of audio per h of a core",
]


def table(lines: list[Line], memory: list[Memory], facts: dict[str, str]) -> str:
    """Return the measurements as a Markdown page.

    Args:
        lines: of the contenders.
        memory: peaks in MiB; empty where none was measured.
        facts: about the machine and the clips.
    """
    page = ["# Units of a corpus", "", *table_lines(HEAD, map(_row, lines)), ""]
    if memory:
        points = [f"{point.peak_mib:,.0f} MiB over {point.files:,} files" for point in memory]
        page += [
            "The most memory held, model and all, in a run of its own for each number of files: "
            f"{', '.join(points)}.",
            "",
        ]
    page += [
        facts_line(facts),
        "",
        "The contenders take turns over rounds of clips, reading and writing included. Where "
        "others use the machine too, time on the clock says",
        "little, and the processor's seconds, which count this process's threads alone, say more "
        "(on a GPU they are not those of the GPU).",
        '"One file at a time" reads, encodes and goes on to the next file, as scripts do.',
    ]
    return "\n".join(page) + "\n"
