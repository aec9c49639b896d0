"""`echox-prepare stats`: what manifests hold, from rows and headers alone."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


from echox.data.lines import in_order, reading
from echox.data.manifest_report import ManifestReport, count_row
from echox.data.row_measures import MeasureSettings, RowLimits, batches_of, measure_rows
from echox.data.writing import appearing
from echox.errors import ConfigError, ManifestError
from echox.progress import Bar


@dataclass(kw_only=True, slots=True)
class StatsConfig:
    """Count what manifests hold: hours, rows, speakers, sampling rates, words, tokens, units; clips are not decoded."""

    manifests: list[str] = field(default_factory=list)
    """Manifests to count."""
    headers: bool = True
    """Open every clip for its sampling rate; off, only clips whose seconds the row does not state."""
    tokenizer: str | None = None
    """Tokenizer that texts are counted with: catalogue name, hub id or local folder; null counts words and letters alone."""
    allow_outside: bool = False
    """Count clips outside the manifest's folder too."""
    processes: int = 1
    """Processes that read."""
    output: str | None = None
    """File for the numbers as JSON; null prints them alone."""


@dataclass(slots=True)
class Stats:
    """What one manifest holds."""

    report: ManifestReport
    words: int = 0
    letters: int = 0
    tokens: int = 0

    def lines(self) -> Iterator[str]:
        """For people."""
        yield from self.report.lines()
        tokens = f", {self.tokens:,} tokens" if self.tokens else ""
        yield f"texts: {self.words:,} words, {self.letters:,} letters{tokens}"

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        return {**self.report.plain(), "words": self.words, "letters": self.letters, "tokens": self.tokens}


def print_stats(config: StatsConfig) -> None:
    """Count, print, and write where the config says so.

    Raises:
        ConfigError: no manifest is named. ManifestError: one is missing, unreadable or empty, or the numbers cannot be written.
    """
    if not config.manifests:
        raise ConfigError("no manifest was named; give manifests=[FILE.jsonl,...]")
    found = [stats_of(Path(path), config) for path in config.manifests]
    for stats in found:
        print("\n".join(stats.lines()))
    if len(found) > 1:
        print(f"together: {sum(stats.report.rows for stats in found):,} rows, {sum(sum(stats.report.seconds.values()) for stats in found) / 3600:.2f} h")
    if config.output:
        try:
            with appearing(Path(config.output)) as unfinished:
                unfinished.write_text(json.dumps([stats.plain() for stats in found], indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        except OSError as error:
            raise ManifestError(f"{config.output} could not be written: {error.strerror or error}; choose another output") from error


def stats_of(path: Path, config: StatsConfig, *, progress: bool = True) -> Stats:
    """Count one manifest; broken rows are counted as such."""
    settings = MeasureSettings(RowLimits(), False, config.allow_outside, False, headers=config.headers, tokenizer=config.tokenizer)
    stats = Stats(ManifestReport(path))
    with reading(path):
        size = path.stat().st_size
    with Bar(f"counting {path.name}", size, unit="B", in_bytes=True, shows=progress) as bar:
        for measures, read_bytes in in_order(functools.partial(measure_rows, path, settings), batches_of(path), config.processes):
            for measure in measures:
                if measure.broken is not None:
                    stats.report.broken += 1
                    stats.report.left_out += 1
                    continue
                count_row(measure, stats.report)
                stats.words, stats.letters, stats.tokens = stats.words + measure.words, stats.letters + measure.letters, stats.tokens + measure.tokens
            bar.update(read_bytes)
    if not stats.report.rows and not stats.report.broken:
        raise ManifestError(f"the manifest {path} is empty; it needs at least one row")
    return stats
