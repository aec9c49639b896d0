"""What the check of a manifest found, in numbers that do not grow with the manifest."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from echox.data.histogram import Histogram, Tally, even, geometric
from echox.data.row_measures import RowMeasure
from echox.data.rows import Problem, Role

BROKEN, REPEATED_ID, REPEATED_AUDIO, RATIO = "broken", "id used before", "audio used before", "text-to-unit ratio"
# Kinds that no training survives or should.
FATAL = (BROKEN, REPEATED_ID, "units")


@dataclass(slots=True)
class ManifestReport:
    """What a manifest holds, and what is wrong with it."""

    path: Path
    rows: int = 0  # that can be used
    broken: int = 0  # that cannot
    left_out: int = 0  # with something against them, broken ones among them
    problems: list[Problem] = field(default_factory=list)  # the first of the broken rows
    findings: Counter[str] = field(default_factory=Counter)  # kind -> rows
    examples: dict[str, list[Problem]] = field(default_factory=dict)  # kind -> the first of them
    seconds: dict[Role, float] = field(default_factory=lambda: dict.fromkeys(Role, 0.0))
    rates_hz: Counter[int] = field(default_factory=Counter)  # sampling rate -> clips
    channels: Counter[int] = field(default_factory=Counter)
    kinds: Tally = field(default_factory=Tally)
    speakers: Tally = field(default_factory=Tally)
    units: int = 0
    highest_unit: int = -1
    histograms: dict[str, Histogram] = field(
        default_factory=lambda: {
            "questions, s": geometric(0.05, 600, 48),
            "answers, s": geometric(0.05, 600, 48),
            "loudest 20 ms, dBFS": even(-100, 0, 50),
            "silent share of a clip": even(0, 1, 50),
            "samples at full scale, %": geometric(1e-4, 100, 48),
            "letters a second": even(0, 50, 50),
            "words of a transcription": geometric(1, 1000, 40),
            "words of an answer": geometric(1, 1000, 40),
            "units of a row": geometric(1, 20_000, 48),
            "units a second": even(0, 120, 60),
            "units a letter": geometric(0.1, 100, 60),
            "word error rate": even(0, 1, 40),
            "character error rate": even(0, 1, 40),
        }
    )

    @property
    def question_s(self) -> float:
        """Seconds of the users' audio."""
        return self.seconds[Role.USER]

    @property
    def answer_s(self) -> float:
        """Seconds of the assistants' audio."""
        return self.seconds[Role.ASSISTANT]

    @property
    def fatal(self) -> int:
        """Rows that cannot be used as they are."""
        return sum(self.findings[kind] for kind in FATAL)

    def lines(self) -> list[str]:
        """The report for people."""
        unread = "no header read" if any(self.seconds.values()) else "no audio"
        clips = ", ".join(f"{count} clips at {rate_hz} Hz" for rate_hz, count in sorted(self.rates_hz.items())) or unread
        return [
            f"{self.path}: {self.rows} good rows, {self.broken} broken, {self.left_out - self.broken} with something against them",
            f"audio: {self.question_s / 3600:.2f} h of questions, {self.answer_s / 3600:.2f} h of answers; {clips}",
            *(f"{name}: {_spread(found)}" for name, found in self.histograms.items() if found.count),
            *([f"units: {self.units}, the highest {self.highest_unit}"] if self.units else []),
            *_listing("kinds", self.kinds),
            *_listing("speakers", self.speakers),
        ]

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "path": str(self.path), "rows": self.rows, "broken": self.broken, "left_out": self.left_out, "findings": dict(self.findings),
            "examples": {kind: [{"line": one.line, "id": one.row_id, "reason": one.reason} for one in found] for kind, found in self.examples.items()},
            "hours": {role.value: seconds / 3600 for role, seconds in self.seconds.items()},
            "rates_hz": {str(rate): count for rate, count in self.rates_hz.items()},
            "channels": {str(number): count for number, count in self.channels.items()},
            "kinds": dict(self.kinds.most()), "speakers": {"names": self.speakers.names, "most": dict(self.speakers.most())},
            "units": self.units, "highest_unit": self.highest_unit,
            "histograms": {name: found.plain() for name, found in self.histograms.items()},
        }  # fmt: skip


def count_row(measure: RowMeasure, report: ManifestReport) -> None:
    """Add a good row to what the report counts."""
    histograms = report.histograms
    report.rows += 1
    report.kinds.add(measure.kind)
    if measure.speaker is not None:
        report.speakers.add(measure.speaker)
    for clip in measure.clips:
        report.seconds[clip.role] += clip.seconds
        if clip.rate_hz:
            report.rates_hz[clip.rate_hz] += 1
            report.channels[clip.channels] += 1
        histograms["questions, s" if clip.role is Role.USER else "answers, s"].add(clip.seconds)
        if clip.letters:
            histograms["letters a second"].add(clip.letters / max(clip.seconds, 1e-3))
        if not math.isnan(clip.loudest_dbfs):
            histograms["loudest 20 ms, dBFS"].add(clip.loudest_dbfs)
            histograms["silent share of a clip"].add(clip.silence)
            histograms["samples at full scale, %"].add(100 * clip.clipped)
    for count in measure.transcription_words:
        histograms["words of a transcription"].add(count)
    for count in measure.answer_words:
        histograms["words of an answer"].add(count)
    for name, value in measure.errors:
        if not math.isfinite(value):
            continue
        histograms["word error rate" if name == "wer" else "character error rate"].add(value)
    _count_units(measure, report)


def _count_units(measure: RowMeasure, report: ManifestReport) -> None:
    if not measure.units:
        return
    report.units += measure.units
    report.highest_unit = max(report.highest_unit, measure.highest_unit)
    report.histograms["units of a row"].add(measure.units)
    if measure.unit_s:
        report.histograms["units a second"].add(measure.units / measure.unit_s)
    if measure.unit_letters:
        report.histograms["units a letter"].add(measure.units / measure.unit_letters)


def _spread(found: Histogram) -> str:
    return f"{found.count:,} from {found.low:.3g} to {found.high:.3g}, median {found.quantile(0.5):.3g}, mean {found.mean:.3g}"


def _listing(label: str, tally: Tally) -> Iterable[str]:
    if not tally.counts:
        return []
    shown = ", ".join(f"{name} {count}" for name, count in tally.most(8))
    return [f"{label}: {shown}" if len(tally.counts) <= 8 else f"{label}: {tally.names} of them, most {shown}"]
