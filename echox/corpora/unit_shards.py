"""Shards of a manifest whose units are encoded by any number of processes, and their merging.

A finished shard is a `.jsonl` with its rows as the manifest will have them, and a `.json` marker
that is written after it. The process that works on a shard holds its lock, which the operating
system releases when the process ends in any way.

A marker holds a checksum of itself, and length and hash of the rows. Marker and length are compared
when a shard is met, the hash once, before the rows are merged: millions of rows would otherwise be
read by every process at its start. A shard that does not fit is encoded again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock, Timeout

from echox.core.errors import AssetError, ManifestError
from echox.core.files import atomic_write, json_hash, sha256_of
from echox.data.line_shards import LineShards
from echox.data.row_reader import row_record
from echox.data.rows import Problem, Row

log = logging.getLogger(__name__)

# What reading a marker of any content can raise.
_UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)
# How long a process without other work waits before it tries the shards again that others hold.
POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class EncodedShard:
    """The rows of a shard with their units."""

    rows: list[tuple[int, Row]]  # with units, each with its line
    problems: list[Problem]  # rows that have no units, because they are broken
    audio_s: float  # seconds encoded


@dataclass(frozen=True, slots=True)
class ShardSummary:
    """Counts of a finished shard."""

    rows: int
    broken: int
    audio_s: float


class UnitShards:
    """The shards of one manifest under one codec.

    Args:
        source: the manifest.
        folder: of the finished shards; it belongs to this manifest, this codec and this size of
            shards alone.
        target: the manifest with units.
    """

    def __init__(self, source: LineShards, folder: Path, target: Path) -> None:
        self.source = source
        self.folder = folder
        self.target = target
        # Summaries that were read once: a finished shard does not change any more.
        self._done: dict[int, ShardSummary] = {}
        self._damaged: set[int] = set()  # of which a line told already

    def __len__(self) -> int:
        return len(self.source)

    def done(self) -> dict[int, ShardSummary]:
        """Return the finished shards by number, whichever process finished them."""
        for path in self.folder.glob("[0-9]*.json"):
            self._is_done(int(path.stem))
        return self._done

    def _is_done(self, number: int) -> bool:
        """Whether one shard is finished, without a look at the thousands of others."""
        if number not in self._done:
            try:
                marker = self._marker(number)
                rows, broken = len(marker["lines"]), len(marker["problems"])
                summary, size = ShardSummary(rows, broken, marker["audio_s"]), marker["size_bytes"]
            except FileNotFoundError:
                return False  # not finished
            except _UNREADABLE:
                return self._report(number, "its marker is damaged")
            path = self._rows_file(number)
            # The marker may have reached the disk before the rows, in a loss of power.
            if not path.is_file() or path.stat().st_size != size:
                return self._report(number, f"it does not have the {size} bytes of its marker")
            self._done[number] = summary
        return True

    def _report(self, number: int, reason: str) -> bool:
        """Tell once that a shard is damaged; returns False, for it is not finished then."""
        if number not in self._damaged:
            self._damaged.add(number)
            path = self._rows_file(number)
            log.warning("the shard %s is damaged: %s; it is encoded again", path, reason)
        return False

    def encode(self, numbers: Sequence[int], encode_shard: Callable[[int], EncodedShard]) -> None:
        """Work until all of `numbers` are finished, here or by another process.

        A shard that another process works on is left to it, unless that process dies.

        Args:
            numbers: of the shards, in the order in which they are tried.
            encode_shard: returns the rows of a shard with their units.

        Raises:
            AssetError: the disk is full, or the folder cannot be written.
        """
        with self._writable():
            self.folder.mkdir(parents=True, exist_ok=True)
            waiting, patience_s = list(numbers), 0.0
            while waiting := [number for number in waiting if not self._is_done(number)]:
                held = [
                    number
                    for number in waiting
                    if not self._encode_one(number, encode_shard, patience_s)
                ]
                # A lock is waited for only when all remaining shards are held; that is also how the
                # shard of a process that died is taken over.
                patience_s = POLL_S if len(held) == len(waiting) else 0.0

    def merge(self) -> bool:
        """Write the target from the shards, if all are finished and it is not up to date.

        Returns:
            whether the target is complete. Where it is not, shards may be to be encoded again,
            because they do not have their hash.

        Raises:
            ManifestError: there is no row with units.
            AssetError: the disk is full.
        """
        if len(self.done()) < len(self):
            return False
        stamp = self.folder / "merged.stamp"
        # Processes that finish at the same time merge once.
        with self._writable(), FileLock(self.folder / "merge.lock"):
            files_exist = self.target.is_file() and stamp.is_file()
            if not (files_exist and stamp.read_bytes() == _file_stamp(self.target).encode()):
                if self._discard_damaged():
                    return False
                self._write_target()
                stamp.write_text(_file_stamp(self.target))
        return True

    def _discard_damaged(self) -> bool:
        """Compare all rows with their hashes; returns whether some have to be encoded again."""
        for number in range(len(self)):
            # Earlier versions wrote none.
            sha256 = self._marker(number).get("sha256")
            if sha256 not in (None, sha256_of(self._rows_file(number))):
                self._report(number, "it does not have its checksum")
                self._marker_file(number).unlink(missing_ok=True)
                del self._done[number]
        return len(self._done) < len(self)

    @property
    def broken_path(self) -> Path:
        """Path of the file that names each row left out and why; absent if there is none."""
        return self.target.with_suffix(".broken.jsonl")

    def _encode_one(
        self, number: int, encode_shard: Callable[[int], EncodedShard], patience_s: float
    ) -> bool:
        """Encode a shard unless another process holds it; returns whether it is finished."""
        try:
            with FileLock(self.folder / f"{number:06d}.lock", timeout=patience_s):
                # Again, because another process may have finished it before the lock was free.
                if not self._is_done(number):
                    self._write(number, encode_shard(number))
        except Timeout:
            return False
        return True

    def _write(self, number: int, shard: EncodedShard) -> None:
        root = self.target.parent
        records = [row_record(row, root) for _, row in shard.rows]
        content = "".join(
            json.dumps(record, ensure_ascii=False) + "\n" for record in records
        ).encode()
        with atomic_write(self._rows_file(number)) as unfinished:
            unfinished.write_bytes(content)
        # After the rows: whoever finds the marker finds them complete.
        marker = {
            "audio_s": round(shard.audio_s, 3),
            "size_bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "lines": [line for line, _ in shard.rows],
            "ids": "".join(_id_hash(row.id) for _, row in shard.rows),
            "problems": [_problem_record(problem) for problem in shard.problems],
        }
        with atomic_write(self._marker_file(number)) as unfinished:
            unfinished.write_text(json.dumps(marker | {"checksum": json_hash(marker)}))

    def _rows_file(self, number: int) -> Path:
        return self.folder / f"{number:06d}.jsonl"

    def _marker_file(self, number: int) -> Path:
        return self.folder / f"{number:06d}.json"

    def _marker(self, number: int) -> dict[str, Any]:
        """The marker of a finished shard.

        Raises:
            FileNotFoundError: it is not finished.
            one of _UNREADABLE: it is damaged.
        """
        marker = json.loads(self._marker_file(number).read_text("utf-8"))
        # Earlier versions wrote none.
        checksum = marker.pop("checksum", None)
        if checksum not in (None, json_hash(marker)):
            raise ValueError("the marker does not have its checksum")
        if len(marker["ids"]) != 16 * len(marker["lines"]):
            raise ValueError("the marker does not have an id for each line")
        return marker

    def _write_target(self) -> None:
        self.broken_path.unlink(missing_ok=True)
        with (
            atomic_write(self.target) as rows_file,
            rows_file.open("wb") as out,
            atomic_write(self.broken_path) as side_file,
            side_file.open("wb") as side,
        ):
            written, broken = self._merge_into(out, side)
            # Raised inside the block, so that neither file appears.
            if not written:
                raise ManifestError(
                    f"no row of {self.source.path} has an answer with usable audio: "
                    f"{broken} are broken, the others have none"
                )
        # Created empty above, for whether a row is broken is known at the end alone.
        if not broken:
            self.broken_path.unlink()

    def _merge_into(self, out: BinaryIO, side: BinaryIO) -> tuple[int, int]:
        """Write rows and problems of all shards; returns the numbers of rows and of broken rows."""
        # Ids are compared across shards here, because each shard is encoded by itself.
        repeated = self._repeated_hashes()
        first_line: dict[str, int] = {}
        written = broken = 0
        for number in range(len(self)):
            marker = self._marker(number)
            problems = marker["problems"]
            problems += self._copy_rows(number, marker, repeated, first_line, out)
            problems.sort(key=lambda problem: problem["line"])
            for problem in problems:
                side.write((json.dumps(problem, ensure_ascii=False) + "\n").encode())
            broken += len(problems)
            written += len(marker["lines"])
        return written, broken

    def _copy_rows(
        self,
        number: int,
        marker: dict[str, Any],
        repeated: set[str],
        first_line: dict[str, int],
        out: BinaryIO,
    ) -> list[dict[str, Any]]:
        """Copy a shard's rows to the manifest, without those whose id an earlier shard has.

        Returns those as records of problems, and adds the ids of the others to `first_line`.
        """
        hashes = _id_hashes(marker)
        with self._rows_file(number).open("rb") as rows:
            # The common case, in which no row has to be parsed.
            if repeated.isdisjoint(hashes):
                shutil.copyfileobj(rows, out, 1 << 20)
                return []
            problems = []
            for line, id_hash, content in zip(marker["lines"], hashes, rows, strict=True):
                # Ids of the same hash may differ, so the ids themselves are compared.
                row_id = json.loads(content)["id"] if id_hash in repeated else None
                if row_id is not None and first_line.setdefault(row_id, line) != line:
                    reason = f"id {row_id!r} was already used in line {first_line[row_id]}"
                    problems.append(_problem_record(Problem(line, row_id, reason)))
                else:
                    out.write(content)
            return problems

    def _repeated_hashes(self) -> set[str]:
        """Hashes that several ids of the manifest have; eight bytes a row are held for that."""
        # Big-endian, so that the numbers are in hex again as they stand in the markers.
        hashes = [
            np.frombuffer(bytes.fromhex(self._marker(number)["ids"]), dtype=">u8")
            for number in range(len(self))
        ]
        values, counts = np.unique(np.concatenate(hashes), return_counts=True)
        return {f"{value:016x}" for value in values[counts > 1].tolist()}

    @contextmanager
    def _writable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            path = error.filename or self.folder
            raise AssetError(
                f"units could not be made, for {path} says: {error.strerror or error}; "
                "finished shards are kept: free space or choose another folder, and start again "
                "to go on"
            ) from error


def _id_hash(row_id: str) -> str:
    return hashlib.blake2b(row_id.encode(), digest_size=8).hexdigest()


def _id_hashes(marker: dict[str, Any]) -> list[str]:
    """The hashes of a marker's ids, which stand in one string of 16 hex digits each."""
    return [marker["ids"][start : start + 16] for start in range(0, len(marker["ids"]), 16)]


def _problem_record(problem: Problem) -> dict[str, Any]:
    return {"line": problem.line, "id": problem.row_id, "reason": problem.reason}


def _file_stamp(path: Path) -> str:
    """Size and time of a file, which tell whether it was changed since it was written."""
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns}"
