"""The index of a cache's shard: where its arrays are, and lengths and checksums to trust them by.

An index is a text of two lines, and its shard's data lie beside it in a `.bin`:

    {"format": 2, "bytes": length of the data, "sha256": of the second line}
    {key: [start, shape, dtype, CRC-32 of the array's bytes]}

`read_index` compares the hash and the length of the data, for which no data are read. The data of
an array are compared by `Location.fits`. Indexes of earlier versions are the second line alone,
without checksums; of those the length is compared.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

_SUPPORTED = (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16)
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in _SUPPORTED}
FORMAT = 2

Entry = tuple[int, list[int], str, int]
"""Start in bytes, shape, name of the dtype, CRC-32."""


# What parsing a file of any content can raise.
_UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)


class DamagedShard(Exception):
    """A shard whose files are not what was written; the text says why."""


@dataclass(frozen=True, slots=True)
class Location:
    """Where one array is stored."""

    shard: str
    start: int  # bytes
    shape: tuple[int, ...]
    dtype: torch.dtype
    crc32: int | None  # None where an earlier version wrote it

    @property
    def size(self) -> int:
        """Bytes of the array."""
        return math.prod(self.shape) * self.dtype.itemsize

    def fits(self, content: bytes | bytearray | memoryview) -> bool:
        """Return whether `content` has the length and the checksum of the array."""
        return len(content) == self.size and self.crc32 in (None, zlib.crc32(content))


@dataclass(frozen=True, slots=True)
class ShardIndex:
    """A shard whose index was read and fits the length of its data."""

    locations: dict[str, Location]
    size: int  # bytes of the data


def index_text(entries: Mapping[str, Entry], size: int) -> str:
    """Return the index of a shard.

    Args:
        entries: key -> where its array is.
        size: bytes of the shard's data.
    """
    body = json.dumps(entries)
    sha256 = hashlib.sha256(body.encode()).hexdigest()
    return json.dumps({"format": FORMAT, "bytes": size, "sha256": sha256}) + "\n" + body


def read_index(path: Path) -> ShardIndex:
    """Read an index, and compare it with its hash and with the length of the data beside it.

    Raises:
        DamagedShard: one of them does not fit.
        FileNotFoundError: there is no index.
    """
    content = path.read_bytes()
    try:
        entries, size = _parsed(content)
        locations = {key: _location(path.stem, entry) for key, entry in entries.items()}
    except _UNREADABLE as error:
        raise DamagedShard(f"{path.name} is no index of a cache") from error
    ends = [location.start + location.size for location in locations.values()]
    # The arrays lie end to end, so the last end is the length.
    size = max(ends, default=0) if size is None else size
    _check_length(path.with_suffix(".bin"), size)
    if max(ends, default=0) > size:
        raise DamagedShard(f"{path.name} names more bytes than the {size} of its data")
    return ShardIndex(locations, size)


def verify(data: Path, index: ShardIndex) -> None:
    """Read a shard's data once and compare the checksum of each array.

    Raises:
        DamagedShard: one of them does not fit.
    """
    with data.open("rb") as file:
        for key, location in index.locations.items():
            file.seek(location.start)
            if not location.fits(file.read(location.size)):
                raise DamagedShard(f"{data.name} does not have the checksum of {key!r}")


def _parsed(content: bytes) -> tuple[dict[str, Any], int | None]:
    """The entries of an index, and bytes of the data; None where an earlier version wrote it."""
    head, line_feed, body = content.partition(b"\n")
    if not line_feed:
        return json.loads(content), None
    header = json.loads(head)
    if header["sha256"] != hashlib.sha256(body).hexdigest():
        raise ValueError("the index does not have its checksum")
    return json.loads(body), int(header["bytes"])


def _location(shard: str, entry: Any) -> Location:
    start, shape, dtype, *checksum = entry
    if any(not isinstance(value, int) or value < 0 for value in (start, *shape)):
        raise ValueError("a start or a size is no whole number")
    return Location(shard, start, tuple(shape), DTYPES[dtype], *checksum or (None,))


def _check_length(data: Path, size: int) -> None:
    try:
        actual = data.stat().st_size
    except FileNotFoundError as error:
        raise DamagedShard(f"{data.name} is missing") from error
    if actual != size:
        raise DamagedShard(f"{data.name} has {actual} bytes, not the {size} that were written")
