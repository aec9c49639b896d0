"""Row ids as 64-bit hashes: 8 bytes a row, where ten million ids would take a gigabyte."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

# Hashes looked up at once, so that temporary arrays do not grow with the number of rows.
BLOCK_ROWS = 1 << 18


def hash_id(row_id: str) -> int:
    """Return 64 bits of an id's BLAKE2b hash.

    Among ten million different ids two share a hash with a probability of 3e-6, so callers read the
    ids of equal hashes to be sure.
    """
    # An id made from a file's name may hold bytes that are no UTF-8, as lone surrogates.
    encoded = row_id.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(encoded, digest_size=8).digest(), "little")


def duplicate_positions(hashes: np.ndarray) -> np.ndarray:
    """Find the hashes that occur more than once.

    Memory beside the result: one sorted copy of the hashes, and blocks of BLOCK_ROWS.

    Args:
        hashes: hashes [N] uint64; they are left as they are.

    Returns:
        ascending positions [M] int64 of all occurrences, the first of each hash included.
    """
    # [N]; sorted, equal hashes are neighbours.
    ordered = np.sort(hashes)
    values = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    del ordered  # as large as the hashes themselves, and not needed below
    if not len(values):
        return np.empty(0, dtype=np.int64)
    blocks = [
        start + _positions_among(hashes[start : start + BLOCK_ROWS], values)
        for start in range(0, len(hashes), BLOCK_ROWS)
    ]
    return np.concatenate(blocks)


def _positions_among(hashes: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Positions of the hashes that are among the sorted values."""
    # A hash above all values is searched to beyond the end; the last value differs from it.
    nearest = values[np.searchsorted(values, hashes).clip(max=len(values) - 1)]
    return np.flatnonzero(nearest == hashes)


def duplicate_rows(rows: Path) -> Iterator[int]:
    """Yield the numbers of the rows of a .jsonl file whose id an earlier row has.

    Every row must have an id. The file is read twice where hashes repeat.
    """
    with rows.open("rb") as file:
        hashes = np.fromiter((hash_id(json.loads(line)["id"]) for line in file), dtype="<u8")
    suspects = set(duplicate_positions(hashes).tolist())
    seen: set[str] = set()
    with rows.open("rb") as file:
        for number, line in enumerate(file if suspects else ()):
            if number in suspects:
                row_id = json.loads(line)["id"]
                if row_id in seen:
                    yield number
                seen.add(row_id)
