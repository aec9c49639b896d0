"""The check of a manifest: broken rows, findings against others, and what the good ones hold.

The file is read as a stream; a row leaves a note of 24 bytes in a temporary file.
"""

from __future__ import annotations

import functools
import json
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from torch import Tensor

from echox.core.errors import ConfigError, ManifestError, SignalError
from echox.core.files import atomic_write
from echox.core.progress import Bar
from echox.data.audio import load_audio
from echox.data.audio_ref import Audio
from echox.data.corpus_findings import (
    NOTE,
    ids_at,
    repeated_audio,
    repeated_ids,
    unusual_ratios,
)
from echox.data.histogram import uniform_histogram
from echox.data.lines import map_in_order, open_manifest
from echox.data.manifest_report import BROKEN, REPEATED_ID, ManifestReport, count_row
from echox.data.row_batches import line_of, read_batches
from echox.data.row_measures import (
    Finding,
    MeasureSettings,
    RowLimits,
    RowMeasure,
    error_rate_fault,
    measure_rows,
)
from echox.data.rows import Problem
from echox.data.text import error_rates

# Examples kept of each kind of finding; the count says how many more there are.
KEPT_EXAMPLES = 200
# Sampling rate at which clips are transcribed.
TRANSCRIBED_HZ = 16_000
_TRANSCRIBED_AT_ONCE = 64

# Clips [T_i] at a sampling rate in Hz -> their transcripts.
Hear = Callable[[Sequence[Tensor], int], list[str]]


@dataclass(kw_only=True, slots=True)
class ManifestCheckConfig(RowLimits):
    """How a manifest is checked."""

    path: str = ""
    """File of the manifest, .jsonl or .json."""
    check_audio: bool = True
    """Decode every clip, which finds truncated files, samples that are no numbers, silence and
    clipping; off, headers alone are read."""
    allow_outside: bool = False
    """Accept audio outside the manifest's folder."""
    hash_audio: bool = False
    """Find rows whose first clip is there twice, by its bytes."""
    ratio_deviations: float = 6.0
    """How far units per letter may lie from the median, in standard deviations of their
    logarithm."""
    filtered: str | None = None
    """Manifest of the rows that nothing speaks against, in the same folder; NAME.left_out.jsonl
    beside it says why the others are not there."""
    processes: int = 1
    """Processes that read and decode."""


def check_rows(
    config: ManifestCheckConfig, transcribe: Hear | None = None, *, progress: bool = True
) -> ManifestReport:
    """Check every row of a manifest, and write the rows without findings where the config says so.

    Args:
        config: limits, and what is checked.
        transcribe: turns clips [T_i] at a rate in Hz into texts, which are compared with the rows'
            words; None leaves these unchecked.
        progress: show the progress bar.

    Raises:
        ConfigError: no path is named, the filtered manifest would be in another folder or replace
            the manifest, or `processes` is below 1.
        ManifestError: the file is missing, unreadable or empty, or the filtered one cannot be
            written.
    """
    if not config.path:
        raise ConfigError("no manifest was named; give path=FILE.jsonl")
    path = Path(config.path)
    _refuse_target(config, path)
    try:
        with tempfile.TemporaryFile() as notes, tempfile.TemporaryFile() as suspects:
            report = _ManifestCheck(config, path, transcribe, notes, suspects).run(progress)
            if config.filtered:
                _write_filtered(path, Path(config.filtered), suspects)
            return report
    except OSError as error:
        raise ManifestError(
            f"checking {path} failed: {error.strerror or error}: "
            f"{error.filename or 'temporary files'}; free some space"
        ) from error


def _refuse_target(config: ManifestCheckConfig, path: Path) -> None:
    if config.filtered is None:
        return
    target = Path(config.filtered)
    # Audio paths are relative to the manifest's folder.
    if (
        target.suffix != ".jsonl"
        or target.parent.resolve() != path.parent.resolve()
        or target.resolve() == path.resolve()
    ):
        raise ConfigError(
            f"filtered is {target}; it must be another .jsonl file in {path.parent}, "
            "for rows name their audio from there"
        )


class _ManifestCheck:
    """One pass over a manifest.

    Args:
        config: limits, and what is checked.
        path: the manifest.
        transcribe: turns clips into texts, or None.
        notes: empty file, which takes an entry per good row.
        suspects: empty file, which takes a line [line, id, [[kind, reason], ...]] per row with
            findings; a row whose findings are made at two times has two.
    """

    def __init__(
        self,
        config: ManifestCheckConfig,
        path: Path,
        transcribe: Hear | None,
        notes: BinaryIO,
        suspects: BinaryIO,
    ) -> None:
        self.config, self.path, self.transcribe = config, path, transcribe
        self.notes, self.suspects = notes, suspects
        self.report = ManifestReport(path)
        # By the natural logarithm of units per letter, finely enough for a median and a deviation.
        self.ratios = uniform_histogram(-6, 6, 2400)

    def run(self, progress: bool) -> ManifestReport:
        measure = functools.partial(measure_rows, self.path, self._settings())
        # Opened for its errors, which name the manifest.
        with open_manifest(self.path):
            size = self.path.stat().st_size
        label = f"checking {self.path.name}"
        with Bar(label, size, unit="B", in_bytes=True, shows=progress) as bar:
            batches = map_in_order(measure, read_batches(self.path), self.config.processes)
            for measures, read_bytes in batches:
                self._add(measures)
                bar.update(read_bytes)
        if not self.report.rows and not self.report.broken:
            raise ManifestError(f"the manifest {self.path} is empty; it needs at least one row")
        self._add_late_findings(self._late_findings())
        return self.report

    def _settings(self) -> MeasureSettings:
        # The limits alone: the whole config would be pickled with every batch.
        names = RowLimits.__dataclass_fields__
        return MeasureSettings(
            RowLimits(**{name: getattr(self.config, name) for name in names}),
            self.config.check_audio,
            self.config.allow_outside,
            self.config.hash_audio,
            transcribed=self.transcribe is not None,
        )

    def _add(self, measures: list[RowMeasure]) -> None:
        """Count the rows of a batch, and note them and their findings."""
        # First, for it adds error rates and findings to the measures.
        if self.transcribe is not None:
            whole = [measure for measure in measures if measure.broken is None]
            self._check_words(whole, self.transcribe)
        notes = []
        for measure in measures:
            if measure.broken is None:
                count_row(measure, self.report)
                content = measure.clips[0].content if measure.clips else 0
                notes.append((measure.line, self._log_ratio(measure), measure.id_hash, content))
            else:
                self._add_broken(measure, measure.broken)
            if measure.findings:
                self._add_findings(measure.line, measure.row_id, measure.findings)
        self.notes.write(np.array(notes, dtype=NOTE).tobytes())

    def _add_broken(self, measure: RowMeasure, reason: str) -> None:
        measure.findings = [Finding(BROKEN, reason)]
        self.report.broken += 1
        if len(self.report.problems) < KEPT_EXAMPLES:
            self.report.problems.append(Problem(measure.line, measure.row_id, reason))

    def _add_findings(self, line: int, row_id: str | None, findings: list[Finding]) -> None:
        # A row counts once for each kind, however many of its clips have a finding of it.
        for kind in dict.fromkeys(finding.kind for finding in findings):
            self.report.findings[kind] += 1
            examples = self.report.examples.setdefault(kind, [])
            if len(examples) < KEPT_EXAMPLES:
                reasons = "; ".join(finding.reason for finding in findings if finding.kind == kind)
                examples.append(Problem(line, row_id, reasons))
        noted = [[finding.kind, finding.reason] for finding in findings]
        self.suspects.write(json.dumps([line, row_id, noted]).encode() + b"\n")
        self.report.left_out += 1

    def _log_ratio(self, measure: RowMeasure) -> float:
        """Logarithm of units per letter, NaN where there are none."""
        if not measure.units or not measure.unit_letters:
            return math.nan
        ratio = math.log(measure.units / measure.unit_letters)
        self.ratios.add(ratio)
        return ratio

    def _check_words(self, measures: list[RowMeasure], transcribe: Hear) -> None:
        """Compare the transcripts of clips with the words of their rows."""
        clips = [(measure, audio, text) for measure in measures for audio, text in measure.spoken]
        # Decoded batch by batch, so that memory holds the samples of one alone.
        for start in range(0, len(clips), _TRANSCRIBED_AT_ONCE):
            batch = clips[start : start + _TRANSCRIBED_AT_ONCE]
            transcripts = transcribe([_samples(audio) for _, audio, _ in batch], TRANSCRIBED_HZ)
            for (measure, _, text), transcript in zip(batch, transcripts):
                self._compare(measure, text, transcript)

    def _compare(self, measure: RowMeasure, text: str, transcript: str) -> None:
        for name, value in error_rates(text, transcript):
            measure.errors.append((name, value))
            if reason := error_rate_fault(name, value, self.config):
                reason = f"{reason}: {text!r} is heard as {transcript!r}"
                measure.findings.append(Finding("transcript", reason))

    def _late_findings(self) -> dict[int, list[Finding]]:
        """Line -> findings that need all rows: repeated ids and clips, unusual ratios."""
        self.notes.flush()
        size = self.notes.tell()
        # An empty file cannot be mapped.
        notes = (
            np.memmap(self.notes, dtype=NOTE, mode="r", shape=(size // NOTE.itemsize,))
            if size
            else np.empty(0, dtype=NOTE)
        )
        late: dict[int, list[Finding]] = {}
        for findings in (
            repeated_ids(self.path, notes),
            repeated_audio(notes),
            unusual_ratios(notes, self.ratios, self.config.ratio_deviations),
        ):
            for line, finding in findings:
                late.setdefault(line, []).append(finding)
        return late

    def _add_late_findings(self, late: dict[int, list[Finding]]) -> None:
        """Add the findings that need all rows to those that were made row by row."""
        if not late:
            return
        # Read back from the file: in memory they would grow with the manifest.
        self.suspects.seek(0)
        counted = sum(line in late for line, _, _ in map(json.loads, self.suspects))
        self.suspects.seek(0, 2)
        ids = ids_at(self.path, set(late))
        # By line, so that the examples of a kind are its first rows.
        for line, findings in sorted(late.items()):
            self._add_findings(line, ids[line], findings)
        # Rows that had findings before are counted twice by now.
        self.report.left_out -= counted
        # A row whose id is taken counted as good, for only all rows together show it.
        repeats = self.report.findings[REPEATED_ID]
        self.report.rows -= repeats
        self.report.broken += repeats
        problems = [*self.report.problems, *self.report.examples.get(REPEATED_ID, [])]
        self.report.problems = sorted(problems, key=lambda problem: problem.line)


def _samples(audio: Audio) -> Tensor:
    try:
        return load_audio(audio, TRANSCRIBED_HZ)
    except SignalError:  # not decoded so far, because check_audio is off
        return Tensor()


def _write_filtered(path: Path, target: Path, suspects: BinaryIO) -> None:
    """Write the rows without findings as they are, and the findings of the others beside them."""
    suspects.seek(0)
    findings_by_line: dict[int, tuple[str | None, list[Any]]] = {}
    for line, row_id, findings in map(json.loads, suspects):
        findings_by_line.setdefault(line, (row_id, []))[1].extend(findings)
    reasons_path = target.with_name(target.name.removesuffix(".jsonl") + ".left_out.jsonl")
    # Both files appear together, when the manifest was read to its end.
    with (
        atomic_write(reasons_path) as unfinished_reasons,
        atomic_write(target) as unfinished,
        unfinished_reasons.open("w", encoding="utf-8") as reasons_out,
        unfinished.open("wb") as out,
    ):
        for batch, _ in read_batches(path):
            out.writelines(line_of(raw) for line, raw in batch if line not in findings_by_line)
        for line, (row_id, findings) in sorted(findings_by_line.items()):
            named = [{"kind": kind, "reason": reason} for kind, reason in findings]
            record = {"line": line, "id": row_id, "reasons": named}
            reasons_out.write(json.dumps(record, ensure_ascii=False) + "\n")
