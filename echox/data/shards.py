"""Tar shards that clips are copied into, so that a manifest can point to their bytes."""

from __future__ import annotations

import gzip
import os
import shutil
import tarfile
from pathlib import Path
from typing import BinaryIO

from echox.data.writing import appearing
from echox.errors import ManifestError

_BLOCK = tarfile.BLOCKSIZE


class ShardWriter:
    """Appends clips to `folder`/00000.tar and so on.

    Its place is two numbers, `state`; begun from an earlier one, what was written after it is cut off.

    Args:
        folder: of the shards.
        shard_bytes: a shard that has so many is closed.
        state: number of the shard at hand, and bytes in it.
    """

    def __init__(self, folder: Path, shard_bytes: int, state: tuple[int, int] = (0, 0)) -> None:
        self.folder, self.shard_bytes = folder, shard_bytes
        self.number, self.size = state
        self._file: BinaryIO | None = None
        self._cut_off()

    @property
    def state(self) -> tuple[int, int]:
        """Where the next clip goes."""
        return self.number, self.size

    def add(self, name: str, data: bytes) -> str:
        """Append a clip; its path with `:OFFSET:LENGTH`."""
        file = self._open()
        member = tarfile.TarInfo(name)
        member.size = len(data)
        header = member.tobuf(tarfile.PAX_FORMAT)
        place = f"{self._path}:{self.size + len(header)}:{len(data)}"
        self.size += file.write(b"".join((header, data, bytes(-len(data) % _BLOCK))))
        # Whoever reads the clip's header reads the file.
        file.flush()
        if self.size >= self.shard_bytes:
            self.close()
            self.number, self.size = self.number + 1, 0
        return place

    def sync(self) -> None:
        """See that what was written is on the disk."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """End the shard at hand as a tar ends."""
        if self._file is not None:
            self._file.write(bytes(2 * _BLOCK))
            self._file.flush()
            self.sync()
            self._file.close()
            self._file = None

    @property
    def _path(self) -> Path:
        return self.folder / f"{self.number:05d}.tar"

    def _open(self) -> BinaryIO:
        if self._file is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("r+b" if self._path.exists() else "wb")
            self._file.seek(self.size)
        return self._file

    def _cut_off(self) -> None:
        later = [path for path in self.folder.glob("[0-9]" * 5 + ".tar") if int(path.stem) >= self.number + (self.size > 0)]
        for path in later:
            path.unlink()
        if self.size:
            with self._path.open("r+b") as file:
                file.truncate(self.size)


def unpack(archive: Path, target: Path) -> Path:
    """A .tar.gz as the .tar that is in it, which appears only when complete; one that is there already is taken.

    Raises:
        ManifestError: it is damaged, or the disk is full.
    """
    if target.exists():
        return target
    try:
        with appearing(target) as unfinished, gzip.open(archive) as packed, unfinished.open("wb") as out:
            shutil.copyfileobj(packed, out, 1 << 20)
    except (EOFError, gzip.BadGzipFile, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ManifestError(f"{archive} could not be unpacked to {target}: {reason}; copy it again, or free some space") from error
    return target
