"""A manifest in shards of so many lines: each can be read by itself, so nothing grows with the number of rows but a place per shard."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from echox.data.lines import chunks_of, reading, records_of
from echox.data.row_reader import Broken, RowReader, id_of, parsed
from echox.data.rows import Problem, Row
from echox.errors import ManifestError


class LineShards:
    """Shards of a .jsonl manifest; a .json list, in which lines mean nothing, is one shard.

    Args:
        path: the manifest.
        size: lines in a shard.
        allow_outside: accept audio outside the manifest's folder.
    Raises:
        ManifestError: the manifest is missing, unreadable or empty.
    """

    def __init__(self, path: Path, size: int, *, allow_outside: bool = False) -> None:
        self.path = path
        self.size = size
        self.allow_outside = allow_outside
        self._starts, self.lines = (array("q", [0]), size) if path.suffix == ".json" else _places(path, size)
        if not self.lines:
            raise ManifestError(f"the manifest {path} is empty; it needs at least one row")

    def __len__(self) -> int:
        return len(self._starts)

    def rows(self, number: int) -> Iterator[tuple[int, Row | Problem]]:
        """The rows of a shard, each with its line, and in place of a broken one what is wrong with it; an id used twice is found where
        both are in the shard."""
        reader = RowReader(self.path, self.allow_outside)
        first_line: dict[str, int] = {}
        for line, record in self._records(number):
            try:
                row = reader.row(line, record)
                if first_line.setdefault(row.id, line) != line:
                    raise Broken(f"id {row.id!r} was already used in line {first_line[row.id]}")
                yield line, row
            except Broken as broken:
                yield line, Problem(line, id_of(record), str(broken))

    def _records(self, number: int) -> Iterator[tuple[int, Any]]:
        if self.path.suffix == ".json":
            yield from records_of(self.path)
            return
        with reading(self.path) as file:
            file.seek(self._starts[number])
            for line, raw in enumerate(islice(file, self.size), start=number * self.size + 1):
                if raw.strip():
                    yield line, parsed(raw)


def _places(path: Path, size: int) -> tuple[array[int], int]:
    """The first byte of every shard, and the number of lines."""
    starts, lines = array("q"), 0
    for chunk in chunks_of(path):
        at = chunk.offset
        for raw in chunk.lines:
            if lines % size == 0:
                starts.append(at)
            at += len(raw)
            lines += 1
    return starts, lines
