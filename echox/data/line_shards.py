"""A manifest in shards of so many lines: each can be read by itself, so nothing grows with the number of rows but a place per shard."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from echox.data.manifest import Problem, Row, checked_rows, examine_manifest, line_records
from echox.errors import ManifestError


class LineShards:
    """Shards of a .jsonl manifest; of a .json list, which has to be read whole, one shard.

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
        self._starts, self.lines = ([0], 1) if path.suffix == ".json" else _places(path, size)
        if not self.lines:
            raise ManifestError(f"the manifest {path} is empty; it needs at least one row")

    def __len__(self) -> int:
        return len(self._starts)

    def rows(self, number: int) -> Iterator[tuple[int, Row | Problem]]:
        """The rows of a shard, each with its line, and in place of a broken one what is wrong with it; an id used twice is found where
        both are in the shard."""
        if self.path.suffix == ".json":
            manifest = examine_manifest(self.path, allow_outside=self.allow_outside)
            found: list[tuple[int, Row | Problem]] = [*zip(manifest.lines, manifest.rows), *((problem.line, problem) for problem in manifest.problems)]
            yield from sorted(found, key=lambda pair: pair[0])
            return
        with self.path.open("rb") as file:
            file.seek(self._starts[number])
            records = line_records(islice(file, self.size), first=number * self.size + 1)
            yield from checked_rows(self.path, records, allow_outside=self.allow_outside)


def _places(path: Path, size: int) -> tuple[array[int], int]:
    """The first byte of every shard, and the number of lines."""
    starts, at, lines = array("q"), 0, 0
    try:
        with path.open("rb") as file:
            for raw in file:
                if lines % size == 0:
                    starts.append(at)
                at += len(raw)
                lines += 1
    except FileNotFoundError as error:
        raise ManifestError(f"the manifest {path} does not exist") from error
    except OSError as error:
        raise ManifestError(f"the manifest {path} could not be read: {error.strerror or error}") from error
    return starts, lines
