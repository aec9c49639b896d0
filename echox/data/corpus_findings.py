"""Findings that only all rows of a manifest together show.

They are repeated ids, repeated clips, and unusual numbers of units per letter. Each row leaves a
note of 24 bytes, in which ids and clips are hashes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from echox.data.histogram import Histogram
from echox.data.id_hashes import duplicate_positions
from echox.data.manifest_report import RATIO, REPEATED_AUDIO, REPEATED_ID
from echox.data.row_batches import read_batches, record_of
from echox.data.row_measures import Finding
from echox.data.row_reader import Headers, RowReader

NOTE = np.dtype(
    [
        ("line", "<u4"),  # counted from 1
        ("ratio", "<f4"),  # logarithm of units per letter, NaN where there are none
        ("id", "<u8"),  # hash of the row's id
        ("audio", "<u8"),  # hash of the first clip's bytes, 0 where they were not hashed
    ]
)
# A standard deviation is so many median absolute deviations of a normal distribution.
_DEVIATIONS_PER_MAD = 1.4826
# Of the logarithm of units per letter: where all rows are alike, any other would be unusual.
_SMALLEST_DEVIATION = 0.05


def repeated_ids(path: Path, notes: np.ndarray) -> Iterator[tuple[int, Finding]]:
    """Yield line and finding of each row whose id an earlier row has.

    Args:
        path: the manifest, which is read again where hashes repeat.
        notes: notes [N] of its good rows, in its order.
    """
    lines = notes["line"][duplicate_positions(notes["id"])].tolist()
    # Equal hashes are no proof; the ids themselves are read again.
    ids = ids_at(path, set(lines))
    first_lines: dict[str, int] = {}
    for line in lines:
        row_id = ids[line]
        if row_id in first_lines:
            reason = f"id {row_id!r} was already used in line {first_lines[row_id]}"
            yield line, Finding(REPEATED_ID, reason)
        else:
            first_lines[row_id] = line


def repeated_audio(notes: np.ndarray) -> Iterator[tuple[int, Finding]]:
    """Yield line and finding of each row whose first clip has the bytes of an earlier row's.

    Args:
        notes: notes [N] of the manifest's good rows, in its order.
    """
    hashed = np.flatnonzero(notes["audio"])
    first_lines: dict[int, int] = {}
    for number in hashed[duplicate_positions(notes["audio"][hashed])].tolist():
        line, content = int(notes["line"][number]), int(notes["audio"][number])
        if content in first_lines:
            reason = f"its clip has the bytes of the one in line {first_lines[content]}"
            yield line, Finding(REPEATED_AUDIO, reason)
        else:
            first_lines[content] = line


def unusual_ratios(
    notes: np.ndarray, ratios: Histogram, deviations: float
) -> Iterator[tuple[int, Finding]]:
    """Yield line and finding of each row whose units per letter are far from the median.

    Args:
        notes: notes [N] of the manifest's good rows, in its order.
        ratios: logarithms of units per letter of the same rows.
        deviations: standard deviations of the logarithm that a row may lie from the median.
    """
    if not ratios.count:
        return
    median = ratios.quantile(0.5)
    logs = notes["ratio"]  # [N], NaN where a row has no units
    stated = logs[~np.isnan(logs)]
    # By the median deviation: a standard deviation would grow with the outliers it is to find.
    deviation = _DEVIATIONS_PER_MAD * float(np.median(np.abs(stated - median)))
    limit = deviations * max(deviation, _SMALLEST_DEVIATION)
    outliers = np.flatnonzero(np.abs(logs - median) > limit)
    for line, log in zip(notes["line"][outliers].tolist(), logs[outliers].tolist()):
        typical = math.exp(median)
        reason = f"{math.exp(log):.2f} units a letter, where the median is {typical:.2f}"
        yield line, Finding(RATIO, reason)


def ids_at(path: Path, lines: set[int]) -> dict[int, str]:
    """Read the ids of good rows at some lines of a manifest: line -> id."""
    ids: dict[int, str] = {}
    if not lines:
        return ids
    # The rows were checked before; neither their audio nor its place matters here.
    reader = RowReader(path, True, Headers.NONE)
    for batch, _ in read_batches(path):
        ids |= {line: reader.row(line, record_of(raw)).id for line, raw in batch if line in lines}
        # The rest of a large manifest need not be read.
        if len(ids) == len(lines):
            break
    return ids
