"""The check of a manifest that people run: every broken row named, and what the good ones hold."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from echox.data.audio import audio_header, load_audio
from echox.data.manifest import Problem, Role, Row, examine_manifest
from echox.errors import ConfigError, SignalError

# A terminal's worth; the count says how many more there are.
SHOWN_PROBLEMS = 50


@dataclass(kw_only=True, slots=True)
class ManifestCheckConfig:
    """What `echox-prepare manifest` checks."""

    path: str = ""
    """File of the manifest, .jsonl or .json."""
    check_audio: bool = True
    """Decode every clip, which finds truncated files and samples that are not numbers; otherwise read the headers alone."""
    allow_outside: bool = False
    """Accept audio outside the manifest's folder."""


@dataclass(slots=True)
class ManifestReport:
    """What a manifest holds."""

    path: Path
    rows: int = 0
    problems: list[Problem] = field(default_factory=list)
    question_s: float = 0.0  # seconds of the users' audio
    answer_s: float = 0.0  # seconds of the assistants' audio
    rates_hz: Counter[int] = field(default_factory=Counter)  # sampling rate -> clips
    kinds: Counter[str] = field(default_factory=Counter)
    voices: Counter[str] = field(default_factory=Counter)
    answer_words: list[int] = field(default_factory=list)
    transcription_words: list[int] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The report for people."""
        clips = ", ".join(f"{count} clips at {rate_hz} Hz" for rate_hz, count in sorted(self.rates_hz.items())) or "no audio"
        return [
            f"{self.path}: {self.rows} good rows, {len(self.problems)} broken",
            f"audio: {self.question_s / 3600:.2f} h of questions, {self.answer_s / 3600:.2f} h of answers; {clips}",
            f"answers: {_spread(self.answer_words)}; transcriptions: {_spread(self.transcription_words)}",
            *_listing("kinds", self.kinds),
            *_listing("voices", self.voices),
        ]


def validate_manifest(path: str | Path, check_audio: bool = True, *, allow_outside: bool = False, progress: bool = False) -> ManifestReport:
    """Check every row of a manifest and count what the good ones hold.

    Args:
        path: the manifest.
        check_audio: decode all audio instead of reading headers alone.
        allow_outside: accept audio outside the manifest's folder.
        progress: show a bar.
    Raises:
        ManifestError: the file is missing, unreadable or empty (broken rows are in the report instead).
    """
    manifest = examine_manifest(path, allow_outside=allow_outside)
    report = ManifestReport(Path(path), problems=list(manifest.problems))
    for line, row in zip(manifest.lines, tqdm(manifest.rows, desc="checking", unit="row", disable=not progress)):
        reason = _undecodable(row) if check_audio else None
        if reason is None:
            _count(row, report)
        else:
            report.problems.append(Problem(line, row.id, reason))
    report.problems.sort(key=lambda problem: problem.line)
    return report


def check_manifest(config: ManifestCheckConfig) -> int:
    """Print every broken row by line and reason, then the statistics.

    Returns:
        the exit status: 0 when no row is broken, 1 otherwise.
    Raises:
        ConfigError: no path. ManifestError: the file is missing, unreadable or empty.
    """
    if not config.path:
        raise ConfigError("no manifest was named; give path=FILE.jsonl")
    report = validate_manifest(config.path, config.check_audio, allow_outside=config.allow_outside, progress=True)
    for problem in report.problems[:SHOWN_PROBLEMS]:
        print(f"{config.path}, {problem}")
    if len(report.problems) > SHOWN_PROBLEMS:
        print(f"... and {len(report.problems) - SHOWN_PROBLEMS} more broken rows")
    print("\n".join(report.lines()))
    return 1 if report.problems else 0


def _undecodable(row: Row) -> str | None:
    for number, item in enumerate(row.turns, start=1):
        if item.audio is None:
            continue
        try:
            load_audio(item.audio, audio_header(item.audio).rate_hz)
        except SignalError as error:
            return f"item {number}: {error}"
    return None


def _count(row: Row, report: ManifestReport) -> None:
    report.rows += 1
    report.kinds[str(row.extra.get("kind", "none"))] += 1
    if "voice" in row.extra:
        report.voices[str(row.extra["voice"])] += 1
    for item in row.turns:
        if item.audio is not None:
            about = audio_header(item.audio)
            report.rates_hz[about.rate_hz] += 1
            report.question_s += about.duration_s if item.role is Role.USER else 0.0
            report.answer_s += about.duration_s if item.role is Role.ASSISTANT else 0.0
        if item.transcription:
            report.transcription_words.append(len(item.transcription.split()))
        if item.role is Role.ASSISTANT and item.text:
            report.answer_words.append(len(item.text.split()))


def _spread(lengths: Sequence[int]) -> str:
    if not lengths:
        return "none"
    ordered = sorted(lengths)
    return f"{len(ordered)} of {ordered[0]} to {ordered[-1]} words, median {ordered[math.ceil(len(ordered) / 2) - 1]}"


def _listing(label: str, counts: Counter[str]) -> Iterable[str]:
    return [f"{label}: " + ", ".join(f"{name} {count}" for name, count in counts.most_common())] if counts else []
