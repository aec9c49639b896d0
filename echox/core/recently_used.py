"""A cache of bounded size, which forgets first what was not asked for the longest."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

Value = TypeVar("Value")


class RecentlyUsed(Generic[Value]):
    """Values by the hash of what they were computed from."""

    def __init__(self, limit: int) -> None:
        """Begin empty.

        Args:
            limit: of the sum of the values' sizes.
        """
        self._limit, self._size = limit, 0
        self._kept: OrderedDict[bytes, tuple[Value, int]] = OrderedDict()

    def __len__(self) -> int:
        """How many values are kept."""
        return len(self._kept)

    def get(self, key: bytes) -> Value | None:
        """Return a value, if it is kept."""
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return self._kept[key][0]

    def put(self, key: bytes, value: Value, size: int) -> None:
        """Keep a value; one that is larger than the limit is not kept."""
        self._size += size - (self._kept.pop(key)[1] if key in self._kept else 0)
        self._kept[key] = value, size
        while self._size > self._limit:
            self._size -= self._kept.popitem(last=False)[1][1]
