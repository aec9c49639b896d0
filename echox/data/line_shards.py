"""A manifest in shards of a number of lines, each of which can be read by itself.

Memory grows with the number of shards alone, by the offset of each.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from echox.core.errors import ManifestError
from echox.data.lines import bounded_lines, open_manifest, read_chunks, read_records
from echox.data.row_reader import BrokenRow, RowReader, parse_line, stated_id
from echox.data.rows import Problem, Row


class LineShards:
    """Shards of a .jsonl manifest; a .json list, whose rows are not lines, is one shard.

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
        # A list has no lines to count without parsing it.
        self._starts, self.lines = (
            (array("q", [0]), size) if path.suffix == ".json" else _shard_offsets(path, size)
        )
        if not self.lines:
            raise ManifestError(f"the manifest {path} is empty; it needs at least one row")

    def __len__(self) -> int:
        return len(self._starts)

    def rows(self, number: int) -> Iterator[tuple[int, Row | Problem]]:
        """Yield the rows of a shard, each with its line; in place of a broken row its problem.

        An id that is used twice is a problem where both rows are in this shard; across shards it is
        for the caller to find.

        Args:
            number: shard, counted from 0.

        Raises:
            ManifestError: the manifest cannot be read any more.
        """
        reader = RowReader(self.path, self.allow_outside)
        first_line: dict[str, int] = {}
        for line, record in self._records(number):
            try:
                row = reader.row(line, record)
                if first_line.setdefault(row.id, line) != line:
                    raise BrokenRow(f"id {row.id!r} was already used in line {first_line[row.id]}")
                yield line, row
            except BrokenRow as broken:
                yield line, Problem(line, stated_id(record), str(broken))

    def _records(self, number: int) -> Iterator[tuple[int, Any]]:
        if self.path.suffix == ".json":
            yield from read_records(self.path)
            return
        with open_manifest(self.path) as file:
            file.seek(self._starts[number])
            lines = islice(bounded_lines(file), self.size)
            for line, raw in enumerate(lines, start=number * self.size + 1):
                if raw.strip():
                    yield line, parse_line(raw)


def _shard_offsets(path: Path, size: int) -> tuple[array[int], int]:
    """Offset of every shard in bytes, and the number of lines."""
    # An array takes 8 bytes a shard, a list of integers several times as much.
    starts, lines = array("q"), 0
    for chunk in read_chunks(path):
        if chunk.is_rest:
            continue
        offset = chunk.offset
        for raw in chunk.lines:
            if lines % size == 0:
                starts.append(offset)
            offset += len(raw)
            lines += 1
    return starts, lines
