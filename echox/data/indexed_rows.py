"""Rows that are read when they are asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from echox.data.manifest_index import Index, index_path
from echox.data.row_reader import Broken, Headers, RowReader, parsed
from echox.data.rows import Row
from echox.errors import ManifestError

_BLOCK_ROWS = 4096


class IndexedRows(Sequence[Row]):
    """The usable rows of an indexed manifest; each is parsed, and checked again, at every access.

    What an index says of all rows is in `column`, so that lengths need no row to be read.

    Args:
        index: of the manifest, up to date.
        allow_outside: whether audio may lie outside the manifest's folder.
        headers: whose audio files are opened when a row is read.
    """

    def __init__(self, index: Index, *, allow_outside: bool, headers: Headers = Headers.ALL) -> None:
        self._index = index
        self.allow_outside = allow_outside
        self.headers = headers
        self._open()

    def _open(self) -> None:
        self._file = os.open(self._index.manifest, os.O_RDONLY)
        self._reader = RowReader(self._index.manifest, self.allow_outside, self.headers)
        self._offsets, self._sizes, self._lines = map(self._index.column, ("offset", "size", "line"))

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)

    def __getstate__(self) -> dict[str, Any]:
        return {"_index": self._index, "allow_outside": self.allow_outside, "headers": self.headers}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._open()

    def __len__(self) -> int:
        return len(self._index)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> ChosenRows: ...
    def __getitem__(self, index: int | slice) -> Row | ChosenRows:
        """
        Raises:
            ManifestError: the row is broken now, which it was not when it was indexed.
        """
        if isinstance(index, slice):
            return ChosenRows(self, np.arange(len(self))[index])
        number = range(len(self))[index]
        return self._row(int(self._lines[number]), int(self._offsets[number]), int(self._sizes[number]))

    def __iter__(self) -> Iterator[Row]:
        for start in range(0, len(self), _BLOCK_ROWS):
            places = (column[start : start + _BLOCK_ROWS].tolist() for column in (self._lines, self._offsets, self._sizes))
            yield from map(self._row, *places)

    def _row(self, line: int, offset: int, size: int) -> Row:
        try:
            # Without moving a position that loading processes would share.
            return self._reader.row(line, parsed(os.pread(self._file, size, offset)))
        except Broken as broken:
            raise ManifestError(
                f"{self._index.manifest}, line {line}: {broken}; it was good when the manifest was indexed. Mend it, and delete "
                f"{index_path(Path(self._index.manifest.name))} beside it"
            ) from broken

    def column(self, name: str) -> np.ndarray:
        """A column [rows] of the index: offset, size, line, id, heard_s, spoken_s, letters, units."""
        return self._index.column(name)


class ChosenRows(Sequence[Row]):
    """Some of the rows of a sequence, in an order of their own: rows [N], numbers [n]."""

    def __init__(self, rows: Sequence[Row], numbers: np.ndarray) -> None:
        self.rows, self.numbers = rows, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int | slice) -> Row | ChosenRows:
        if isinstance(index, slice):
            return ChosenRows(self.rows, self.numbers[index])
        return self.rows[int(self.numbers[index])]

    def column(self, name: str) -> np.ndarray:
        """A column of the index at these rows."""
        return self.rows.column(name)[self.numbers]


class JoinedRows(Sequence[Row]):
    """The rows of several manifests, one after the other."""

    def __init__(self, parts: Sequence[Sequence[Row]]) -> None:
        self.parts = parts
        self.ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int | slice) -> Row | ChosenRows:
        if isinstance(index, slice):
            return ChosenRows(self, np.arange(len(self))[index])
        number = range(len(self))[index]
        part = int(np.searchsorted(self.ends, number, side="right"))
        return self.parts[part][number - (int(self.ends[part - 1]) if part else 0)]

    def column(self, name: str) -> np.ndarray:
        """A column of the parts' indexes, which all of them have."""
        return np.concatenate([part.column(name) for part in self.parts])

    def __iter__(self) -> Iterator[Row]:
        for part in self.parts:
            yield from part
