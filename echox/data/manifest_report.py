"""Counts and findings of a manifest's check, in memory that does not grow with the manifest."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from echox.core.durations import duration_text
from echox.data.histogram import (
    Histogram,
    Tally,
    geometric_histogram,
    number_text,
    uniform_histogram,
)
from echox.data.row_measures import RowMeasure
from echox.data.rows import Problem, Role

BROKEN = "broken"
REPEATED_ID = "id used before"
REPEATED_AUDIO = "audio used before"
RATIO = "text-to-unit ratio"
# Kinds of findings with which a row cannot be trained on.
FATAL = (BROKEN, REPEATED_ID, "units")
# Names that one line of the report lists.
_LISTED_NAMES = 8


def _histograms() -> dict[str, Histogram]:
    """Empty histograms by the label that reports print; seconds and counts span magnitudes."""
    return {
        "questions, s": geometric_histogram(0.05, 600, 48),
        "answers, s": geometric_histogram(0.05, 600, 48),
        "loudest 20 ms, dBFS": uniform_histogram(-100, 0, 50),
        "silent share of a clip": uniform_histogram(0, 1, 50),
        "samples at full scale, %": geometric_histogram(1e-4, 100, 48),
        "letters a second": uniform_histogram(0, 50, 50),
        "words of a transcription": geometric_histogram(1, 1000, 40),
        "words of an answer": geometric_histogram(1, 1000, 40),
        "units of a row": geometric_histogram(1, 20_000, 48),
        "units a second": uniform_histogram(0, 120, 60),
        "units a letter": geometric_histogram(0.1, 100, 60),
        "word error rate": uniform_histogram(0, 1, 40),
        "character error rate": uniform_histogram(0, 1, 40),
    }


@dataclass(slots=True)
class ManifestReport:
    """Contents of a manifest, and the findings against its rows."""

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
    histograms: dict[str, Histogram] = field(default_factory=_histograms)

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
        """Number of rows that cannot be used as they are."""
        return sum(self.findings[kind] for kind in FATAL)

    def lines(self) -> list[str]:
        """Return the report as lines of text for a terminal."""
        suspect = self.left_out - self.broken
        return [
            f"{self.path}: {self.rows} good rows, {self.broken} broken, "
            f"{suspect} with something against them",
            f"audio: {duration_text(self.question_s)} of questions, "
            f"{duration_text(self.answer_s)} of answers; {self._clips()}",
            *(
                f"{name}: {_spread(histogram)}"
                for name, histogram in self.histograms.items()
                if histogram.count
            ),
            *([f"units: {self.units}, the highest {self.highest_unit}"] if self.units else []),
            *_listing("kinds", self.kinds),
            *_listing("speakers", self.speakers),
        ]

    def _clips(self) -> str:
        clips = [
            f"{count} clips at {rate_hz} Hz" for rate_hz, count in sorted(self.rates_hz.items())
        ]
        # Seconds without a sampling rate are those that rows state.
        unread = "no header read" if any(self.seconds.values()) else "no audio"
        return ", ".join(clips) or unread

    def plain(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        speakers = {"names": self.speakers.names, "most": dict(self.speakers.most())}
        return {
            "path": str(self.path),
            "rows": self.rows,
            "broken": self.broken,
            "left_out": self.left_out,
            "findings": dict(self.findings),
            "examples": {
                kind: list(map(_plain_problem, problems))
                for kind, problems in self.examples.items()
            },
            "hours": {role.value: seconds / 3600 for role, seconds in self.seconds.items()},
            "rates_hz": {str(rate): count for rate, count in self.rates_hz.items()},
            "channels": {str(number): count for number, count in self.channels.items()},
            "kinds": dict(self.kinds.most()),
            "speakers": speakers,
            "units": self.units,
            "highest_unit": self.highest_unit,
            "histograms": {name: histogram.plain() for name, histogram in self.histograms.items()},
        }


def count_row(measure: RowMeasure, report: ManifestReport) -> None:
    """Add the measures of a good row to a report."""
    report.rows += 1
    report.kinds.add(measure.kind)
    if measure.speaker is not None:
        report.speakers.add(measure.speaker)
    _count_clips(measure, report)
    _count_texts(measure, report)
    _count_units(measure, report)


def _count_clips(measure: RowMeasure, report: ManifestReport) -> None:
    histograms = report.histograms
    for clip in measure.clips:
        report.seconds[clip.role] += clip.seconds
        if clip.rate_hz:
            report.rates_hz[clip.rate_hz] += 1
            report.channels[clip.channels] += 1
        histograms["questions, s" if clip.role is Role.USER else "answers, s"].add(clip.seconds)
        if clip.letters:
            histograms["letters a second"].add(clip.letters_per_s)
        # NaN where the clip was not decoded; a histogram has no bin for it.
        if not math.isnan(clip.loudest_dbfs):
            histograms["loudest 20 ms, dBFS"].add(clip.loudest_dbfs)
            histograms["silent share of a clip"].add(clip.silence)
            histograms["samples at full scale, %"].add(100 * clip.clipped)


def _count_texts(measure: RowMeasure, report: ManifestReport) -> None:
    histograms = report.histograms
    for count in measure.transcription_words:
        histograms["words of a transcription"].add(count)
    for count in measure.answer_words:
        histograms["words of an answer"].add(count)
    for name, value in measure.errors:
        # JSON as Python reads it may state NaN and infinity.
        if math.isfinite(value):
            label = "word error rate" if name == "wer" else "character error rate"
            histograms[label].add(value)


def _count_units(measure: RowMeasure, report: ManifestReport) -> None:
    if not measure.units:
        return
    # Counts of rows without units would only say how many have none.
    report.units += measure.units
    report.highest_unit = max(report.highest_unit, measure.highest_unit)
    report.histograms["units of a row"].add(measure.units)
    if measure.unit_s:
        report.histograms["units a second"].add(measure.units / measure.unit_s)
    if measure.unit_letters:
        report.histograms["units a letter"].add(measure.units / measure.unit_letters)


def _plain_problem(problem: Problem) -> dict[str, Any]:
    return {"line": problem.line, "id": problem.row_id, "reason": problem.reason}


def _spread(histogram: Histogram) -> str:
    return (
        f"{histogram.count:,} from {number_text(histogram.low)} to {number_text(histogram.high)}, "
        f"median {number_text(histogram.quantile(0.5))}, mean {number_text(histogram.mean)}"
    )


def _listing(label: str, tally: Tally) -> Iterable[str]:
    if not tally.counts:
        return []
    names = ", ".join(f"{name} {count}" for name, count in tally.most(_LISTED_NAMES))
    if len(tally.counts) <= _LISTED_NAMES:
        return [f"{label}: {names}"]
    return [f"{label}: {tally.names} of them, most {names}"]
