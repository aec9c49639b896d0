"""`echox-prepare stats`: contents of manifests, counted from rows and headers alone."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from echox.core.durations import duration_text
from echox.core.errors import ConfigError, ManifestError
from echox.core.files import atomic_write
from echox.core.progress import Bar
from echox.data.lines import map_in_order, open_manifest
from echox.data.manifest_report import ManifestReport, count_row
from echox.data.row_batches import read_batches
from echox.data.row_measures import MeasureSettings, RowLimits, RowMeasure, measure_rows


@dataclass(kw_only=True, slots=True)
class StatsConfig:
    """Count hours, rows, speakers, sampling rates, words, tokens and units of manifests.

    Clips are not decoded.
    """

    manifests: list[str] = field(default_factory=list)
    """Manifests to count."""
    headers: bool = True
    """Open every clip for its sampling rate; off, only clips whose seconds the row does not
    state."""
    tokenizer: str | None = None
    """Tokenizer that texts are counted with: catalogue name, hub id or local folder; null counts
    words and letters alone."""
    allow_outside: bool = False
    """Count clips outside the manifest's folder too."""
    processes: int = 1
    """Processes that read."""
    output: str | None = None
    """File for the numbers as JSON; null prints them alone."""


@dataclass(slots=True)
class Stats:
    """Contents of one manifest."""

    report: ManifestReport
    words: int = 0
    letters: int = 0
    tokens: int = 0

    def lines(self) -> Iterator[str]:
        """Yield the numbers as lines of text for a terminal."""
        yield from self.report.lines()
        tokens = f", {self.tokens:,} tokens" if self.tokens else ""
        yield f"texts: {self.words:,} words, {self.letters:,} letters{tokens}"

    def plain(self) -> dict[str, Any]:
        """Return the numbers as JSON values."""
        texts = {"words": self.words, "letters": self.letters, "tokens": self.tokens}
        return {**self.report.plain(), **texts}


def print_stats(config: StatsConfig) -> None:
    """Count manifests, print the numbers, and write them where the config names a file.

    Raises:
        ConfigError: no manifest is named.
        ManifestError: a manifest is missing, unreadable or empty, or the numbers cannot be written.
        AssetError: the tokenizer cannot be had.
    """
    if not config.manifests:
        raise ConfigError("no manifest was named; give manifests=[FILE.jsonl,...]")
    # All are counted before the first is printed, so that an error comes alone.
    all_stats = [count_manifest(Path(path), config) for path in config.manifests]
    for stats in all_stats:
        print("\n".join(stats.lines()))
    if len(all_stats) > 1:
        rows = sum(stats.report.rows for stats in all_stats)
        seconds = sum(sum(stats.report.seconds.values()) for stats in all_stats)
        print(f"together: {rows:,} rows, {duration_text(seconds)}")
    if config.output:
        _write_json(config.output, [stats.plain() for stats in all_stats])


def _write_json(output: str, values: list[dict[str, Any]]) -> None:
    try:
        with atomic_write(Path(output)) as unfinished:
            text = json.dumps(values, indent=1, ensure_ascii=False) + "\n"
            unfinished.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ManifestError(
            f"{output} could not be written: {error.strerror or error}; choose another output"
        ) from error


def count_manifest(path: Path, config: StatsConfig, *, progress: bool = True) -> Stats:
    """Count one manifest; broken rows are counted as such.

    Raises:
        ConfigError: `processes` is below 1.
        ManifestError: the manifest is missing, unreadable or empty.
        AssetError: the tokenizer cannot be had.
    """
    # The limits do not matter: findings are not counted here.
    settings = MeasureSettings(
        RowLimits(),
        decode=False,
        allow_outside=config.allow_outside,
        hash_audio=False,
        headers=config.headers,
        tokenizer=config.tokenizer,
    )
    measure = functools.partial(measure_rows, path, settings)
    stats = Stats(ManifestReport(path))
    # Opened for its errors, which name the manifest.
    with open_manifest(path):
        size = path.stat().st_size
    with Bar(f"counting {path.name}", size, unit="B", in_bytes=True, shows=progress) as bar:
        batches = map_in_order(measure, read_batches(path), config.processes)
        for measures, read_bytes in batches:
            _add(measures, stats)
            bar.update(read_bytes)
    if not stats.report.rows and not stats.report.broken:
        raise ManifestError(f"the manifest {path} is empty; it needs at least one row")
    return stats


def _add(measures: list[RowMeasure], stats: Stats) -> None:
    for measure in measures:
        if measure.broken is not None:
            # As in the report of the check, where broken rows are among those left out.
            stats.report.broken += 1
            stats.report.left_out += 1
            continue
        count_row(measure, stats.report)
        stats.words += measure.words
        stats.letters += measure.letters
        stats.tokens += measure.tokens
