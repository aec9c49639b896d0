"""Row ids as 64-bit hashes: eight bytes a row, where the ids of ten million rows would take a gigabyte."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

# Looked up at once, so that what that takes does not grow with the number of rows.
BLOCK_ROWS = 1 << 18


def hash_of(row_id: str) -> int:
    """64 bits of an id; two of ten million differing ids share theirs with a probability of 3e-6, so equal ones are read to be sure."""
    return int.from_bytes(hashlib.blake2b(row_id.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def repeated(hashes: np.ndarray) -> np.ndarray:
    """Places, in order, of the hashes [N] uint64 that occur more than once; takes a sorted copy beside what is found."""
    ordered = np.sort(hashes)
    values = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    del ordered
    if not len(values):
        return np.empty(0, dtype=np.int64)
    return np.concatenate([start + _places(hashes[start : start + BLOCK_ROWS], values) for start in range(0, len(hashes), BLOCK_ROWS)])


def _places(hashes: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Places of hashes that are among the sorted values."""
    nearest = values[np.searchsorted(values, hashes).clip(max=len(values) - 1)]
    return np.flatnonzero(nearest == hashes)


def repeated_ids(rows: Path) -> Iterator[int]:
    """Numbers of the rows of a .jsonl file, each with an id, whose id an earlier row has."""
    with rows.open("rb") as file:
        hashes = np.fromiter((hash_of(json.loads(line)["id"]) for line in file), dtype="<u8")
    suspects = set(repeated(hashes).tolist())
    seen: set[str] = set()
    with rows.open("rb") as file:
        for number, line in enumerate(file if suspects else ()):
            if number in suspects:
                row_id = json.loads(line)["id"]
                if row_id in seen:
                    yield number
                seen.add(row_id)
