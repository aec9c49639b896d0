"""`echox-bench manifest`: opening and reading an indexed manifest of any size, each step in a process of its own."""

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
from echox.data.writing import appearing
from echox.errors import ConfigError
from echox.progress import progress

# A bar of the project: ten million rows open in under 2 s and 300 MB.
OPEN_S, OPEN_MB = 2.0, 300.0
# Larger manifests are not read whole for comparison: it takes some 2 kB of memory a row.
WHOLE_ROWS = 1_000_000
_WORDS = 4000


@dataclass(kw_only=True, slots=True)
class ManifestBenchConfig:
    """Manifests of any size: making their index, opening them, and reading rows anywhere in them."""

    rows: list[int] = field(default_factory=lambda: [100_000, 1_000_000, 10_000_000])
    """Rows of the manifests that are made up and measured, each in turn; ten million take 3 GB of disk."""
    accesses: int = 20_000
    """Rows read anywhere, whose median time is taken."""
    processes: int = 1
    """Processes that make the index."""
    folder: str | None = None
    """Where the manifests are made; null is the system's folder for temporary files. They are deleted afterwards."""
    output: Path = Path("runs/bench/manifest")
    """Where the tables go: this name with .md and .json."""

    def __post_init__(self) -> None:
        if min([self.accesses, self.processes, *self.rows], default=0) < 1:
            raise ConfigError(f"rows {self.rows}, accesses {self.accesses} and processes {self.processes} must be 1 or more")


@dataclass(frozen=True, slots=True)
class ManifestTime:
    """What one manifest takes."""

    rows: int
    manifest_bytes: int
    index_bytes: int
    build_s: float
    build_cpu_s: float
    build_bytes: int  # peak of the process that makes the index
    open_s: float
    access_us: float  # median of one row anywhere
    imported_bytes: int  # of the reading process before it opens anything
    open_bytes: int  # its peak when open
    access_bytes: int  # its peak after all rows were read
    whole_s: float | None  # all lines parsed into a list instead
    whole_bytes: int | None


def bench_manifest(config: ManifestBenchConfig) -> None:
    """Measure, print and write the tables."""
    with tempfile.TemporaryDirectory(prefix="echox-manifests-", dir=config.folder) as folder:
        lines = [_measured(Path(folder), rows, config) for rows in config.rows]
    facts = machine(torch.device("cpu"))
    page = _page(lines, config, facts)
    print(page)
    for ending, text in ((".md", page), (".json", json.dumps({"machine": facts, "manifests": [asdict(line) for line in lines]}, indent=1) + "\n")):
        with appearing(Path(f"{config.output}{ending}")) as unfinished:
            unfinished.write_text(text, encoding="utf-8")


def _measured(folder: Path, rows: int, config: ManifestBenchConfig) -> ManifestTime:
    manifest = folder / f"{rows}.jsonl"
    write_rows(manifest, rows)
    built, read = _in_a_process("build", manifest, config.processes), _in_a_process("open", manifest, config.accesses)
    whole = _in_a_process("whole", manifest, 0) if rows <= WHOLE_ROWS else {}
    line = ManifestTime(
        rows=read["rows"],
        manifest_bytes=manifest.stat().st_size,
        index_bytes=built["index_bytes"],
        build_s=built["wall_s"],
        build_cpu_s=built["cpu_s"],
        build_bytes=built["peak_bytes"],
        open_s=read["open_s"],
        access_us=read["access_us"],
        imported_bytes=read["imported_bytes"],
        open_bytes=read["open_bytes"],
        access_bytes=read["peak_bytes"],
        whole_s=whole.get("open_s"),
        whole_bytes=whole.get("open_bytes"),
    )
    for path in folder.glob(f"*{rows}.jsonl*"):
        path.unlink()
    return line


def write_rows(manifest: Path, rows: int) -> None:
    """Made-up rows as a corpus in tar shards has them: a clip by its bytes, its seconds, eight words, a speaker."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(_WORDS)]
    with manifest.open("w", encoding="utf-8") as out:
        for number in progress(range(rows), f"making {rows:,} rows", unit="row"):
            said, seconds = " ".join(draw.choices(words, k=8)), 1 + draw.randrange(1400) / 100
            clip = f"shards/{number // 10_000:05d}.tar:{number % 10_000 * 320_512 + 512}:{44 + round(32_000 * seconds)}"
            out.write(
                f'{{"id": "row-{number}", "speaker": "speaker-{draw.randrange(9999)}", "conversations": [{{"from": "user", "value": "", '
                f'"audio": "{clip}", "duration_s": {seconds}}}, {{"from": "assistant", "value": "", "transcription": "{said}"}}]}}\n'
            )


def _in_a_process(step: str, manifest: Path, number: int) -> dict[str, Any]:
    began_s = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "echox.bench.manifest_probe", step, str(manifest), str(number)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{step} of {manifest} failed after {time.perf_counter() - began_s:.0f} s: {done.stderr[-2000:]}")
    return json.loads(done.stdout)


HEAD = [
    "rows", "manifest", "index", "index made in", "of CPU", "peak making it", "opened in", "one row anywhere",
    "before opening", "peak when open", "peak after reading", "read whole instead", "peak",
]  # fmt: skip


def _page(lines: list[ManifestTime], config: ManifestBenchConfig, facts: dict[str, str]) -> str:
    table = [HEAD, ["---"] * len(HEAD), *map(_row, lines)]
    largest = max(lines, key=lambda line: line.rows)
    within = largest.open_s < OPEN_S and largest.access_bytes / 1e6 < OPEN_MB
    notes = [
        f"Each step in a process of its own, files in the page cache, index made by {config.processes} process(es). Opening is to the first row;",
        f"a row anywhere is the median of {config.accesses:,}, parsed and checked, its audio file not opened. Memory is the process's peak",
        "resident size, Python and imports in it; PyTorch is not imported (training imports it, which alone takes some 490 MB here).",
        f"The bar is {OPEN_S:g} s and {OPEN_MB:g} MB: {'kept' if within else 'missed'} at {largest.rows:,} rows.",
    ]
    body = "\n".join("| " + " | ".join(row) + " |" for row in table)
    return "\n".join(["# Indexed manifests", "", body, "", *notes, "", "; ".join(f"{name} {value}" for name, value in facts.items()) + "."]) + "\n"


def _row(line: ManifestTime) -> list[str]:
    return [
        f"{line.rows:,}", _mb(line.manifest_bytes), _mb(line.index_bytes), f"{line.build_s:.1f} s", f"{line.build_cpu_s:.1f} s",
        _mb(line.build_bytes), f"{1e3 * line.open_s:.1f} ms", f"{line.access_us:.0f} us", _mb(line.imported_bytes), _mb(line.open_bytes),
        _mb(line.access_bytes), "" if line.whole_s is None else f"{line.whole_s:.1f} s", _mb(line.whole_bytes),
    ]  # fmt: skip


def _mb(size: int | None) -> str:
    return "" if size is None else f"{size / 1e6:.0f} MB"
