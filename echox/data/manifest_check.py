"""The check of a manifest that people run: every broken row named, what speaks against others, and what the good ones hold.

The file is read as a stream; what is kept of a row is 24 bytes, in a file that vanishes.
"""

from __future__ import annotations

import functools
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from torch import Tensor

from echox.data.audio import load_audio
from echox.data.histogram import even
from echox.data.id_hashes import repeated
from echox.data.lines import in_order, reading
from echox.data.manifest_report import BROKEN, RATIO, REPEATED_AUDIO, REPEATED_ID, ManifestReport, count_row
from echox.data.row_measures import (
    Finding,
    MeasureSettings,
    RowLimits,
    RowMeasure,
    batches_of,
    measure_rows,
    too_wrong,
)  # fmt: skip
from echox.data.row_reader import Headers, RowReader, parsed
from echox.data.rows import Problem
from echox.data.text import error_rates
from echox.data.writing import appearing
from echox.errors import ConfigError, ManifestError, SignalError
from echox.progress import Bar

# Kept of each kind of finding; the count says how many more there are.
KEPT_EXAMPLES = 200
# A standard deviation is so many median absolute deviations of a normal distribution.
_MAD = 1.4826
_SMALLEST_SPREAD = 0.05
HEAR_HZ = 16_000
_HEARD_AT_ONCE = 64
_NOTE = np.dtype([("line", "<u4"), ("ratio", "<f4"), ("id", "<u8"), ("audio", "<u8")])

Hear = Callable[[Sequence[Tensor], int], list[str]]


@dataclass(kw_only=True, slots=True)
class ManifestCheckConfig(RowLimits):
    """How a manifest is checked."""

    path: str = ""
    """File of the manifest, .jsonl or .json."""
    check_audio: bool = True
    """Decode every clip, which finds truncated files, samples that are no numbers, silence and clipping; off, headers alone are read."""
    allow_outside: bool = False
    """Accept audio outside the manifest's folder."""
    hash_audio: bool = False
    """Find rows whose first clip is there twice, by its bytes."""
    ratio_deviations: float = 6.0
    """How far units per letter may lie from the median, in standard deviations of their logarithm."""
    filtered: str | None = None
    """Manifest of the rows that nothing speaks against, in the same folder; NAME.left_out.jsonl beside it says why the others are not there."""
    processes: int = 1
    """Processes that read and decode."""


def validate_manifest(path: str | Path, check_audio: bool = True, *, allow_outside: bool = False, progress: bool = False) -> ManifestReport:
    """Check every row of a manifest by the limits of old, and count what the good ones hold.

    Raises:
        ManifestError: the file is missing, unreadable or empty (broken rows are in the report instead).
    """
    return check_rows(ManifestCheckConfig(path=str(path), check_audio=check_audio, allow_outside=allow_outside), progress=progress)


def check_rows(config: ManifestCheckConfig, hear: Hear | None = None, *, progress: bool = True) -> ManifestReport:
    """Check every row of a manifest, and write what is left of it where the config names a place.

    Args:
        hear: writes down clips [T] at a rate; None leaves transcripts unchecked.
    Raises:
        ConfigError: no path, or no place for the filtered manifest. ManifestError: the file is missing, unreadable or empty, or the
            filtered one cannot be written.
    """
    if not config.path:
        raise ConfigError("no manifest was named; give path=FILE.jsonl")
    path = Path(config.path)
    _refuse_place(config, path)
    try:
        with tempfile.TemporaryFile() as notes, tempfile.TemporaryFile() as found:
            report = _Check(config, path, hear, notes, found).run(progress)
            if config.filtered:
                _write_filtered(path, Path(config.filtered), found)
            return report
    except OSError as error:
        raise ManifestError(f"checking {path} failed: {error.strerror or error}: {error.filename or 'temporary files'}; free some space") from error


def _refuse_place(config: ManifestCheckConfig, path: Path) -> None:
    if config.filtered is None:
        return
    target = Path(config.filtered)
    if target.suffix != ".jsonl" or target.parent.resolve() != path.parent.resolve() or target.resolve() == path.resolve():
        raise ConfigError(f"filtered is {target}; it must be another .jsonl file in {path.parent}, for rows name their audio from there")


class _Check:
    """One pass over a manifest.

    Args:
        notes: takes an entry per good row.
        found: takes a line [line, id, [[kind, reason], ...]] per row that something speaks against, in the end in the manifest's order.
    """

    def __init__(self, config: ManifestCheckConfig, path: Path, hear: Hear | None, notes: BinaryIO, found: BinaryIO) -> None:
        self.config, self.path, self.hear, self.notes, self.found = config, path, hear, notes, found
        self.report = ManifestReport(path)
        # By the natural logarithm of units per letter, finely enough for a median and a deviation.
        self.ratios = even(-6, 6, 2400)

    def run(self, progress: bool) -> ManifestReport:
        settings = MeasureSettings(
            _plain_limits(self.config), self.config.check_audio, self.config.allow_outside, self.config.hash_audio, transcribed=self.hear is not None
        )
        measure = functools.partial(measure_rows, self.path, settings)
        with reading(self.path):
            size = self.path.stat().st_size
        with Bar(f"checking {self.path.name}", size, unit="B", in_bytes=True, shows=progress) as bar:
            for measures, read_bytes in in_order(measure, batches_of(self.path), self.config.processes):
                self._take(measures)
                bar.update(read_bytes)
        if not self.report.rows and not self.report.broken:
            raise ManifestError(f"the manifest {self.path} is empty; it needs at least one row")
        self._take_later(self._later())
        return self.report

    def _take(self, measures: list[RowMeasure]) -> None:
        if self.hear is not None:
            self._listen([measure for measure in measures if measure.broken is None])
        entries = []
        for measure in measures:
            if measure.broken is None:
                count_row(measure, self.report)
                entries.append((measure.line, self._ratio(measure), measure.id_hash, measure.clips[0].content if measure.clips else 0))
            else:
                measure.findings = [Finding(BROKEN, measure.broken)]
                self.report.broken += 1
                if len(self.report.problems) < KEPT_EXAMPLES:
                    self.report.problems.append(Problem(measure.line, measure.row_id, measure.broken))
            if measure.findings:
                self._note(measure.line, measure.row_id, measure.findings)
        self.notes.write(np.array(entries, dtype=_NOTE).tobytes())

    def _note(self, line: int, row_id: str | None, findings: list[Finding]) -> None:
        for kind in dict.fromkeys(finding.kind for finding in findings):
            self.report.findings[kind] += 1
            examples = self.report.examples.setdefault(kind, [])
            if len(examples) < KEPT_EXAMPLES:
                reasons = "; ".join(finding.reason for finding in findings if finding.kind == kind)
                examples.append(Problem(line, row_id, reasons))
        self.found.write(json.dumps([line, row_id, [[finding.kind, finding.reason] for finding in findings]]).encode() + b"\n")
        self.report.left_out += 1

    def _ratio(self, measure: RowMeasure) -> float:
        """Logarithm of units per letter, NaN where there are none."""
        if not measure.units or not measure.unit_letters:
            return math.nan
        ratio = math.log(measure.units / measure.unit_letters)
        self.ratios.add(ratio)
        return ratio

    def _listen(self, measures: list[RowMeasure]) -> None:
        """Compare what clips are heard to say with the words of their rows."""
        pairs = [(measure, audio, said) for measure in measures for audio, said in measure.spoken]
        for start in range(0, len(pairs), _HEARD_AT_ONCE):
            some = pairs[start : start + _HEARD_AT_ONCE]
            heard = self.hear([_samples(audio) for _, audio, _ in some], HEAR_HZ)
            for (measure, _, said), text in zip(some, heard):
                self._compare(measure, said, text)

    def _compare(self, measure: RowMeasure, said: str, heard: str) -> None:
        for name, value in error_rates(said, heard):
            measure.errors.append((name, value))
            if reason := too_wrong(name, value, self.config):
                measure.findings.append(Finding("transcript", f"{reason}: {said!r} is heard as {heard!r}"))

    def _later(self) -> dict[int, list[Finding]]:
        """Line -> what only all rows together tell."""
        self.notes.flush()
        size = self.notes.tell()
        notes = np.memmap(self.notes, dtype=_NOTE, mode="r", shape=(size // _NOTE.itemsize,)) if size else np.empty(0, dtype=_NOTE)
        later: dict[int, list[Finding]] = {}
        for line, finding in [*self._repeated_ids(notes), *_repeated_audio(notes), *self._odd_ratios(notes)]:
            later.setdefault(line, []).append(finding)
        return later

    def _repeated_ids(self, notes: np.ndarray) -> Iterator[tuple[int, Finding]]:
        lines = notes["line"][repeated(notes["id"])].tolist()
        ids = _ids_at(self.path, set(lines))
        first: dict[str, int] = {}
        for line in lines:
            row_id = ids[line]
            if row_id in first:
                yield line, Finding(REPEATED_ID, f"id {row_id!r} was already used in line {first[row_id]}")
            else:
                first[row_id] = line

    def _odd_ratios(self, notes: np.ndarray) -> Iterator[tuple[int, Finding]]:
        if not self.ratios.count:
            return
        middle = self.ratios.quantile(0.5)
        known = notes["ratio"][~np.isnan(notes["ratio"])]
        spread = max(_MAD * float(np.median(np.abs(known - middle))), _SMALLEST_SPREAD)
        odd = np.flatnonzero(np.abs(notes["ratio"] - middle) > self.config.ratio_deviations * spread)
        for line, ratio in zip(notes["line"][odd].tolist(), notes["ratio"][odd].tolist()):
            reason = f"{math.exp(ratio):.2f} units a letter, where the median is {math.exp(middle):.2f}"
            yield line, Finding(RATIO, reason)

    def _take_later(self, later: dict[int, list[Finding]]) -> None:
        """Join what was found at once with what was found at the end."""
        if not later:
            return
        self.found.seek(0)
        earlier = sum(line in later for line, _, _ in map(json.loads, self.found))
        self.found.seek(0, 2)
        ids = _ids_at(self.path, set(later))
        for line, findings in sorted(later.items()):
            self._note(line, ids[line], findings)
        self.report.left_out -= earlier
        again = self.report.findings[REPEATED_ID]
        self.report.rows, self.report.broken = self.report.rows - again, self.report.broken + again
        self.report.problems = sorted([*self.report.problems, *self.report.examples.get(REPEATED_ID, [])], key=lambda problem: problem.line)


def _plain_limits(config: ManifestCheckConfig) -> RowLimits:
    return RowLimits(**{name: getattr(config, name) for name in RowLimits.__dataclass_fields__})


def _repeated_audio(notes: np.ndarray) -> Iterator[tuple[int, Finding]]:
    known = np.flatnonzero(notes["audio"])
    first: dict[int, int] = {}
    for number in known[repeated(notes["audio"][known])].tolist():
        line, content = int(notes["line"][number]), int(notes["audio"][number])
        if content in first:
            yield line, Finding(REPEATED_AUDIO, f"its clip has the bytes of the one in line {first[content]}")
        else:
            first[content] = line


def _samples(audio: Any) -> Tensor:
    try:
        return load_audio(audio, HEAR_HZ)
    except SignalError:  # not decoded so far, because check_audio is off
        return Tensor()


def _ids_at(path: Path, lines: set[int]) -> dict[int, str]:
    """Ids of good rows by line, read once more."""
    reader = RowReader(path, True, Headers.NONE)
    found: dict[int, str] = {}
    if not lines:
        return found
    for batch, _ in batches_of(path):
        found |= {line: reader.row(line, parsed(raw) if isinstance(raw, bytes) else raw).id for line, raw in batch if line in lines}
        if len(found) == len(lines):
            break
    return found


def _write_filtered(path: Path, target: Path, found: BinaryIO) -> None:
    """Rows that nothing was found against, as they are, and why the others are not among them."""
    found.seek(0)
    against: dict[int, list[Any]] = {}
    for line, row_id, findings in map(json.loads, found):
        against.setdefault(line, [row_id, []])[1].extend(findings)
    reasons = target.with_name(target.name.removesuffix(".jsonl") + ".left_out.jsonl")
    with appearing(reasons) as left_out, appearing(target) as unfinished, left_out.open("w", encoding="utf-8") as why, unfinished.open("wb") as out:
        for batch, _ in batches_of(path):
            for line, raw in batch:
                if line not in against:
                    out.write(raw.rstrip(b"\r\n") + b"\n" if isinstance(raw, bytes) else json.dumps(raw, ensure_ascii=False).encode() + b"\n")
        for line, (row_id, findings) in sorted(against.items()):
            about = {"line": line, "id": row_id, "reasons": [{"kind": kind, "reason": reason} for kind, reason in findings]}
            why.write(json.dumps(about, ensure_ascii=False) + "\n")
