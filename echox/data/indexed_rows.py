"""Rows that are read and parsed at access."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from echox.core.errors import ManifestError
from echox.data.manifest_index import Index, index_path
from echox.data.row_reader import BrokenRow, Headers, RowReader, parse_line
from echox.data.rows import Row

_BLOCK_ROWS = 4096


class ColumnRows(Sequence[Row]):
    """Rows [N] of which an index states something beside, so that it is known without reading."""

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> ChosenRows: ...
    @abstractmethod
    def __getitem__(self, index: int | slice) -> Row | ChosenRows:
        """Return a row, or the rows of a slice."""

    @abstractmethod
    def column(self, name: str) -> np.ndarray:
        """Return a column [N] of the index."""


class IndexedRows(ColumnRows):
    """The usable rows [N] of an indexed manifest, parsed and checked again at every access.

    What the index states of all rows is in `column`, so that lengths need no row to be read.

    Args:
        index: index of the manifest, up to date.
        allow_outside: accept audio outside the manifest's folder.
        headers: clips whose audio file is opened when a row is read.

    Raises:
        OSError: the manifest cannot be opened.
    """

    def __init__(
        self, index: Index, *, allow_outside: bool, headers: Headers = Headers.ALL
    ) -> None:
        self._index = index
        self.allow_outside = allow_outside
        self.headers = headers
        self._open()

    def _open(self) -> None:
        manifest = self._index.manifest
        self._file = os.open(manifest, os.O_RDONLY)
        self._reader = RowReader(manifest, self.allow_outside, self.headers)
        self._offsets = self._index.column("offset")  # [N]
        self._sizes = self._index.column("size")  # [N]
        self._lines = self._index.column("line")  # [N]

    def __del__(self) -> None:
        # The attribute is missing where opening failed.
        if hasattr(self, "_file"):
            os.close(self._file)

    def __getstate__(self) -> dict[str, Any]:
        # A loading process opens the manifest itself: file descriptors and maps do not pickle.
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
        """Read a row, or return the rows of a slice, which are read at access in turn.

        Raises:
            ManifestError: the row broke since it was indexed.
        """
        if isinstance(index, slice):
            return ChosenRows(self, np.arange(len(self))[index])
        # Through a range, for negative numbers and the IndexError of those beyond the end.
        number = range(len(self))[index]
        line, offset, size = self._lines[number], self._offsets[number], self._sizes[number]
        return self._row(int(line), int(offset), int(size))

    def __iter__(self) -> Iterator[Row]:
        # In blocks: one conversion of an array is cheaper than one of each of its elements.
        for start in range(0, len(self), _BLOCK_ROWS):
            block = slice(start, start + _BLOCK_ROWS)
            columns = (self._lines, self._offsets, self._sizes)
            yield from map(self._row, *(column[block].tolist() for column in columns))

    def _row(self, line: int, offset: int, size: int) -> Row:
        try:
            # `pread` does not move a file position, which loading processes would share.
            return self._reader.row(line, parse_line(os.pread(self._file, size, offset)))
        except BrokenRow as broken:
            manifest = self._index.manifest
            raise ManifestError(
                f"{manifest}, line {line}: {broken}; it was good when the manifest was indexed. "
                f"Mend it, and delete {index_path(Path(manifest.name))} beside it"
            ) from broken

    def column(self, name: str) -> np.ndarray:
        """Return a column [N] of the index, mapped into memory.

        Args:
            name: offset, size, line, id, heard_s, spoken_s, letters or units.
        """
        return self._index.column(name)


class ChosenRows(ColumnRows):
    """Some rows of a sequence, in an order of their own.

    Args:
        rows: sequence of rows [N].
        numbers: numbers [M] of the chosen rows in the sequence.
    """

    def __init__(self, rows: Sequence[Row], numbers: np.ndarray) -> None:
        self.rows, self.numbers = rows, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> ChosenRows: ...
    def __getitem__(self, index: int | slice) -> Row | ChosenRows:
        if isinstance(index, slice):
            return ChosenRows(self.rows, self.numbers[index])
        return self.rows[int(self.numbers[index])]

    def column(self, name: str) -> np.ndarray:
        """Return a column [M] of the index at the chosen rows."""
        return _column(self.rows, name)[self.numbers]


class JoinedRows(ColumnRows):
    """The rows [N] of several manifests, one manifest after the other.

    Args:
        parts: rows of each manifest; at least one part.
    """

    def __init__(self, parts: Sequence[Sequence[Row]]) -> None:
        self.parts = parts
        self.ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self.ends[-1])

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> ChosenRows: ...
    def __getitem__(self, index: int | slice) -> Row | ChosenRows:
        if isinstance(index, slice):
            return ChosenRows(self, np.arange(len(self))[index])
        # Through a range, for negative numbers and the IndexError of those beyond the end.
        number = range(len(self))[index]
        part = int(np.searchsorted(self.ends, number, side="right"))
        return self.parts[part][number - (int(self.ends[part - 1]) if part else 0)]

    def column(self, name: str) -> np.ndarray:
        """Return a column [N] of the parts' indexes, which every part must have."""
        return np.concatenate([_column(part, name) for part in self.parts])

    def __iter__(self) -> Iterator[Row]:
        # Part by part: a search for the part of every row would be slower.
        for part in self.parts:
            yield from part


def _column(rows: Sequence[Row], name: str) -> np.ndarray:
    if not isinstance(rows, ColumnRows):
        raise TypeError(f"rows in a {type(rows).__name__} have no index, so no column {name!r}")
    return rows.column(name)
