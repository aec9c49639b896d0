"""`echox-bench manifest`: opening and reading indexed manifests of any size.

Each step runs in a process of its own, so that its memory can be measured.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from echox.bench.measure import machine
from echox.bench.tables import facts_line, table_lines, write_tables
from echox.core.errors import ConfigError
from echox.core.progress import progress

# A bar of the project: ten million rows open in under 2 s and 300 MB.
OPEN_S, OPEN_MB = 2.0, 300.0
# Larger manifests are not read as a whole for comparison: it takes some 2 kB of memory a row.
WHOLE_ROWS = 1_000_000
_WORDS = 4000  # of the language of the synthetic rows
_SHOWN_ERROR = 2000  # characters of a failed process's output


@dataclass(kw_only=True, slots=True)
class ManifestBenchConfig:
    """Time the index of manifests of any size: building, opening, reading rows anywhere.

    Raises:
        ConfigError: a number is out of range.
    """

    rows: list[int] = field(default_factory=lambda: [100_000, 1_000_000, 10_000_000])
    """Rows of the synthetic manifests that are measured, one after the other; ten million take 3 GB
    of disk."""
    accesses: int = 20_000
    """Rows read anywhere, whose median time is taken."""
    processes: int = 1
    """Processes that build the index."""
    folder: str | None = None
    """Where the manifests are written; null is the system's folder for temporary files. They are
    deleted afterwards."""
    output: Path = Path("runs/bench/manifest")
    """Where the tables go: this name with .md and .json."""

    def __post_init__(self) -> None:
        if min([self.accesses, self.processes, *self.rows], default=0) < 1:
            raise ConfigError(
                f"rows {self.rows}, accesses {self.accesses} and processes {self.processes} "
                "must be 1 or more"
            )


@dataclass(frozen=True, slots=True)
class ManifestTime:
    """Time and memory of the steps with one manifest."""

    rows: int
    manifest_bytes: int
    index_bytes: int
    build_s: float
    build_cpu_s: float
    build_bytes: int  # peak of the process that builds the index
    open_s: float
    access_us: float  # median of one row at random
    imported_bytes: int  # of the reading process before it opens anything
    open_bytes: int  # its peak when open
    access_bytes: int  # its peak after all rows were read
    whole_s: float | None  # all lines parsed into a list instead
    whole_bytes: int | None


def bench_manifest(config: ManifestBenchConfig) -> None:
    """Measure all manifests, print the page and write it.

    Raises:
        RuntimeError: a step failed.
    """
    with tempfile.TemporaryDirectory(prefix="echox-manifests-", dir=config.folder) as folder:
        lines = [_measure(Path(folder), rows, config) for rows in config.rows]
    facts = machine(torch.device("cpu"))
    page = _page(lines, config, facts)
    print(page)
    results = {"machine": facts, "manifests": [asdict(line) for line in lines]}
    write_tables(config.output, page, results)


def _measure(folder: Path, rows: int, config: ManifestBenchConfig) -> ManifestTime:
    manifest = folder / f"{rows}.jsonl"
    write_rows(manifest, rows)
    # In this order: opening needs the index.
    build = _run_step("build", manifest, config.processes)
    access = _run_step("open", manifest, config.accesses)
    whole = _run_step("whole", manifest, 0) if rows <= WHOLE_ROWS else {}
    line = ManifestTime(
        rows=access["rows"],
        manifest_bytes=manifest.stat().st_size,
        index_bytes=build["index_bytes"],
        build_s=build["wall_s"],
        build_cpu_s=build["cpu_s"],
        build_bytes=build["peak_bytes"],
        open_s=access["open_s"],
        access_us=access["access_us"],
        imported_bytes=access["imported_bytes"],
        open_bytes=access["open_bytes"],
        access_bytes=access["peak_bytes"],
        whole_s=whole.get("open_s"),
        whole_bytes=whole.get("open_bytes"),
    )
    # The index too, and before the next manifest: the disk need not hold all of them.
    for path in folder.glob(f"*{rows}.jsonl*"):
        path.unlink()
    return line


def write_rows(manifest: Path, rows: int) -> None:
    """Write synthetic rows as a corpus in tar shards has them.

    Args:
        manifest: the file to write.
        rows: number of rows, each with a clip of 1 to 15 seconds by its bytes in a shard, a
            speaker, and eight words.
    """
    rng = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(rng.choices(letters, k=rng.randint(2, 9))) for _ in range(_WORDS)]
    with manifest.open("w", encoding="utf-8") as out:
        for number in progress(range(rows), f"making {rows:,} rows", unit="row"):
            transcription = " ".join(rng.choices(words, k=8))
            seconds = 1 + rng.randrange(1400) / 100
            # 16-bit samples at 16 kHz behind the header of a wav file.
            length_bytes = 44 + round(32_000 * seconds)
            shard, position = divmod(number, 10_000)
            clip = f"shards/{shard:05d}.tar:{position * 320_512 + 512}:{length_bytes}"
            # Formatted by hand, which is faster than `json.dumps`, for rows that are all alike.
            out.write(
                f'{{"id": "row-{number}", "speaker": "speaker-{rng.randrange(9999)}", '
                f'"conversations": [{{"from": "user", "value": "", '
                f'"audio": "{clip}", "duration_s": {seconds}}}, '
                f'{{"from": "assistant", "value": "", "transcription": "{transcription}"}}]}}\n'
            )


def _run_step(step: str, manifest: Path, number: int) -> dict[str, Any]:
    """The results of a step of `manifest_probe`."""
    start_s = time.perf_counter()
    command = [sys.executable, "-m", "echox.bench.manifest_probe", step, str(manifest), str(number)]
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode:
        seconds = time.perf_counter() - start_s
        raise RuntimeError(
            f"{step} of {manifest} failed after {seconds:.0f} s: {process.stderr[-_SHOWN_ERROR:]}"
        )
    return json.loads(process.stdout)


HEAD = [
    "rows",
    "manifest",
    "index",
    "index made in",
    "of CPU",
    "peak making it",
    "opened in",
    "one row anywhere",
    "before opening",
    "peak when open",
    "peak after reading",
    "read whole instead",
    "peak",
]


def _page(lines: list[ManifestTime], config: ManifestBenchConfig, facts: dict[str, str]) -> str:
    largest = max(lines, key=lambda line: line.rows)
    is_kept = largest.open_s < OPEN_S and largest.access_bytes / 1e6 < OPEN_MB
    verdict = "kept" if is_kept else "missed"
    notes = [
        "Each step in a process of its own, files in the page cache, index made by "
        f"{config.processes} process(es). Opening is to the first row;",
        f"a row anywhere is the median of {config.accesses:,}, parsed and checked, its audio file "
        "not opened. Memory is the process's peak",
        "resident size, Python and imports in it; PyTorch is not imported (training imports it, "
        "which alone takes some 490 MB here).",
        f"The bar is {OPEN_S:g} s and {OPEN_MB:g} MB: {verdict} at {largest.rows:,} rows.",
    ]
    table = table_lines(HEAD, map(_row, lines))
    return "\n".join(["# Indexed manifests", "", *table, "", *notes, "", facts_line(facts)]) + "\n"


def _row(line: ManifestTime) -> list[str]:
    return [
        f"{line.rows:,}",
        _mb(line.manifest_bytes),
        _mb(line.index_bytes),
        f"{line.build_s:.1f} s",
        f"{line.build_cpu_s:.1f} s",
        _mb(line.build_bytes),
        f"{1e3 * line.open_s:.1f} ms",
        f"{line.access_us:.0f} us",
        _mb(line.imported_bytes),
        _mb(line.open_bytes),
        _mb(line.access_bytes),
        "" if line.whole_s is None else f"{line.whole_s:.1f} s",
        _mb(line.whole_bytes),
    ]


def _mb(size_bytes: int | None) -> str:
    return "" if size_bytes is None else f"{size_bytes / 1e6:.0f} MB"
