"""Row ids as 64-bit hashes: eight bytes a row, where the ids of ten million rows would take a gigabyte."""

from __future__ import annotations

import hashlib

import numpy as np


def hash_of(row_id: str) -> int:
    """64 bits of an id; two of ten million differing ids share theirs with a probability of 3e-6, so equal ones are read to be sure."""
    return int.from_bytes(hashlib.blake2b(row_id.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def repeated(hashes: np.ndarray) -> np.ndarray:
    """Places, in order, of the hashes [N] uint64 that occur more than once."""
    ordered = np.sort(hashes)
    values = ordered[1:][ordered[1:] == ordered[:-1]]
    return np.flatnonzero(np.isin(hashes, values)) if len(values) else np.empty(0, dtype=np.int64)
