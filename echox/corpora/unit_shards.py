"""The shards of a manifest whose units are being made: by whom, what is finished, and the manifest they become.

A finished shard is a `.jsonl` with its rows as the manifest will hold them, and a `.json` written after it that says so. Whoever works on
a shard holds its lock, which the operating system takes from a process that ends in any way.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock, Timeout

from echox.data.line_shards import LineShards
from echox.data.row_reader import row_record
from echox.data.rows import Problem, Row
from echox.data.writing import appearing
from echox.errors import AssetError, ManifestError

# How long a process that has nothing else to do waits before it looks again at the shards that others hold.
POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class Made:
    """What became of a shard."""

    rows: list[tuple[int, Row]]  # with units, each with its line
    problems: list[Problem]
    audio_s: float  # seconds encoded


@dataclass(frozen=True, slots=True)
class Finished:
    """What is remembered of a finished shard."""

    rows: int
    broken: int
    audio_s: float
    size_bytes: int  # of its rows


class UnitShards:
    """The shards of one manifest under one codec.

    Args:
        source: the manifest.
        folder: of the finished shards; belongs to this manifest, this codec and this size of shards alone.
        target: the manifest with units.
    """

    def __init__(self, source: LineShards, folder: Path, target: Path) -> None:
        self.source = source
        self.folder = folder
        self.target = target
        self._done: dict[int, Finished] = {}

    def __len__(self) -> int:
        return len(self.source)

    def done(self) -> dict[int, Finished]:
        """The finished shards, whoever finished them."""
        for path in self.folder.glob("[0-9]*.json"):
            self._is_done(int(path.stem))
        return self._done

    def _is_done(self, number: int) -> bool:
        """Whether one shard is finished, without a look at the others, of which there may be thousands."""
        if number not in self._done:
            try:
                about = self._marker(number)
                finished = Finished(len(about["lines"]), len(about["problems"]), about["audio_s"], about["size_bytes"])
                if self._rows_file(number).stat().st_size == finished.size_bytes:
                    self._done[number] = finished
            except (FileNotFoundError, ValueError, KeyError):
                # Not there yet, or cut off with the machine's power: it is made again.
                return False
        return number in self._done

    def make(self, numbers: Sequence[int], make: Callable[[int], Made]) -> None:
        """Work until all of `numbers` are finished, here or by another process; a shard that another process is at is left to it.

        Raises:
            AssetError: the disk is full, or the folder cannot be written.
        """
        with self._writable():
            self.folder.mkdir(parents=True, exist_ok=True)
            waiting, patience_s = list(numbers), 0.0
            while waiting := [number for number in waiting if not self._is_done(number)]:
                held = [number for number in waiting if not self._make_one(number, make, patience_s)]
                # Then it waits for the others, and takes over where one has died.
                patience_s = POLL_S if len(held) == len(waiting) else 0.0

    def merge(self) -> bool:
        """Write the target from the shards, if all are finished; one that is up to date is left alone.

        Returns:
            whether the target is complete.
        Raises:
            ManifestError: there is no row with units. AssetError: the disk is full.
        """
        if len(self.done()) < len(self):
            return False
        stamp = self.folder / "merged.stamp"
        with self._writable(), FileLock(self.folder / "merge.lock"):
            if not (self.target.is_file() and stamp.is_file() and stamp.read_text() == _state(self.target)):
                self._write_target()
                stamp.write_text(_state(self.target))
        return True

    @property
    def broken_path(self) -> Path:
        """The side file that names every row left out for a fault and says why; it exists if there is one."""
        return self.target.with_suffix(".broken.jsonl")

    def _make_one(self, number: int, make: Callable[[int], Made], patience_s: float) -> bool:
        """Make a shard unless another process holds it; returns whether it is finished."""
        try:
            with FileLock(self.folder / f"{number:06d}.lock", timeout=patience_s):
                if not self._is_done(number):
                    self._write(number, make(number))
        except Timeout:
            return False
        return True

    def _write(self, number: int, made: Made) -> None:
        root = self.target.parent
        content = "".join(json.dumps(row_record(row, root), ensure_ascii=False) + "\n" for _, row in made.rows).encode()
        with appearing(self._rows_file(number)) as unfinished:
            unfinished.write_bytes(content)
        marker = {
            "audio_s": round(made.audio_s, 3),
            "size_bytes": len(content),
            "lines": [line for line, _ in made.rows],
            "ids": "".join(_short(row.id) for _, row in made.rows),
            "problems": [_record(problem) for problem in made.problems],
        }
        with appearing(self.folder / f"{number:06d}.json") as unfinished:
            unfinished.write_text(json.dumps(marker))

    def _rows_file(self, number: int) -> Path:
        return self.folder / f"{number:06d}.jsonl"

    def _marker(self, number: int) -> dict[str, Any]:
        return json.loads((self.folder / f"{number:06d}.json").read_text("utf-8"))

    def _write_target(self) -> None:
        used_twice, first_line = self._hashes_used_twice(), {}
        written = broken = 0
        self.broken_path.unlink(missing_ok=True)
        with appearing(self.target) as rows_file, rows_file.open("wb") as out, appearing(self.broken_path) as side_file, side_file.open("wb") as side:
            for number in range(len(self)):
                marker = self._marker(number)
                problems = marker["problems"] + self._copy(number, marker, used_twice, first_line, out)
                problems.sort(key=lambda problem: problem["line"])
                side.write("".join(json.dumps(problem, ensure_ascii=False) + "\n" for problem in problems).encode())
                broken += len(problems)
                written += len(marker["lines"])
            if not written:
                raise ManifestError(f"no row of {self.source.path} has an answer with usable audio: {broken} are broken, the others have none")
        if not broken:
            self.broken_path.unlink()

    def _copy(self, number: int, marker: dict[str, Any], used_twice: set[str], first_line: dict[str, int], out: BinaryIO) -> list[dict[str, Any]]:
        """Copy a shard's rows, without those whose id a shard before had; returns these as problems."""
        shorts = _shorts(marker)
        with self._rows_file(number).open("rb") as rows:
            if used_twice.isdisjoint(shorts):
                shutil.copyfileobj(rows, out, 1 << 20)
                return []
            problems = []
            for line, short, raw in zip(marker["lines"], shorts, rows, strict=True):
                row_id = json.loads(raw)["id"] if short in used_twice else None
                if row_id is not None and first_line.setdefault(row_id, line) != line:
                    problems.append(_record(Problem(line, row_id, f"id {row_id!r} was already used in line {first_line[row_id]}")))
                else:
                    out.write(raw)
            return problems

    def _hashes_used_twice(self) -> set[str]:
        """Of all ids; eight bytes a row are held for that."""
        hashes = [np.frombuffer(bytes.fromhex(self._marker(number)["ids"]), dtype=">u8") for number in range(len(self))]
        values, counts = np.unique(np.concatenate(hashes), return_counts=True)
        return {f"{value:016x}" for value in values[counts > 1].tolist()}

    @contextmanager
    def _writable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            where = error.filename or self.folder
            way_out = "finished shards are kept: free space or choose another folder, and start again to go on"
            raise AssetError(f"units could not be made, for {where} says: {error.strerror or error}; {way_out}") from error


def _short(row_id: str) -> str:
    return hashlib.blake2b(row_id.encode(), digest_size=8).hexdigest()


def _shorts(marker: dict[str, Any]) -> list[str]:
    return [marker["ids"][start : start + 16] for start in range(0, len(marker["ids"]), 16)]


def _record(problem: Problem) -> dict[str, Any]:
    return {"line": problem.line, "id": problem.row_id, "reason": problem.reason}


def _state(path: Path) -> str:
    about = path.stat()
    return f"{about.st_size} {about.st_mtime_ns}"
