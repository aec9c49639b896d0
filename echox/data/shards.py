"""Tar shards that clips are copied into, so that a manifest can point to their bytes."""

from __future__ import annotations

import gzip
import os
import tarfile
import zlib
from pathlib import Path
from typing import BinaryIO

from echox.core.errors import ManifestError
from echox.core.files import atomic_write

_BLOCK = tarfile.BLOCKSIZE
_COPY_BYTES = 1 << 20
# Audio shrinks to a third at best, silence more. What unpacks to more than a hundred times its
# size, and to more than a gigabyte, is no archive of clips but fills the disk.
_UNPACKED_RATIO, _UNPACKED_BYTES = 100, 1 << 30


class ShardWriter:
    """Appends clips to `folder`/00000.tar and so on.

    Its position is two numbers, `state`; begun from an earlier state, what was written after it is
    cut off.

    Args:
        folder: folder of the shards.
        shard_bytes: bytes from which a shard is closed.
        state: number of the current shard, and bytes in it.
    """

    def __init__(self, folder: Path, shard_bytes: int, state: tuple[int, int] = (0, 0)) -> None:
        self.folder, self.shard_bytes = folder, shard_bytes
        self.number, self.size = state
        self._file: BinaryIO | None = None
        self._truncate()

    @property
    def state(self) -> tuple[int, int]:
        """Number of the shard that takes the next clip, and bytes in it."""
        return self.number, self.size

    def add(self, name: str, data: bytes) -> str:
        """Append a clip.

        Args:
            name: name of the clip in the tar.
            data: bytes of an audio file.

        Returns:
            path of the clip with `:OFFSET:LENGTH`, its bytes in the shard.

        Raises:
            OSError: the disk is full or the folder cannot be written.
        """
        file = self._open()
        # Header and padding by hand, because the manifest needs the offset of the data.
        member = tarfile.TarInfo(name)
        member.size = len(data)
        header = member.tobuf(tarfile.PAX_FORMAT)
        place = f"{self._path}:{self.size + len(header)}:{len(data)}"
        padding = bytes(-len(data) % _BLOCK)
        self.size += file.write(b"".join((header, data, padding)))
        # The clip's header is read from the file before it is closed.
        file.flush()
        if self.size >= self.shard_bytes:
            self.close()
            self.number, self.size = self.number + 1, 0
        return place

    def sync(self) -> None:
        """Wait until what was written is on the disk."""
        # A shard that is closed was synchronized then.
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """End the current shard with the two empty blocks that end a tar.

        The state does not count them: a later clip is written over them.
        """
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
            # Over the end of the tar, where the shard was closed.
            self._file.seek(self.size)
        return self._file

    def _truncate(self) -> None:
        """Delete what was written after the state."""
        # The current shard itself, where nothing in it is good.
        first = self.number + (self.size > 0)
        for path in list(self.folder.glob("[0-9]" * 5 + ".tar")):
            if int(path.stem) >= first:
                path.unlink()
        if self.size:
            with self._path.open("r+b") as file:
                file.truncate(self.size)


def unpack(archive: Path, target: Path) -> Path:
    """Unpack a .tar.gz to the .tar that is in it, unless the target exists.

    The target appears only when complete, so one that exists is whole.

    Returns:
        the target.

    Raises:
        ManifestError: the archive is damaged or unpacks to far more than its own size, or the disk
            is full.
    """
    # An earlier start may have unpacked it.
    if target.exists():
        return target
    try:
        with (
            atomic_write(target) as unfinished,
            gzip.open(archive) as packed,
            unfinished.open("wb") as out,
        ):
            _copy(archive, packed, out)
    # A truncated archive is an EOFError, a damaged one a BadGzipFile or an error of zlib.
    except (EOFError, zlib.error, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ManifestError(
            f"{archive} could not be unpacked to {target}: {reason}; "
            "copy it again, or free some space"
        ) from error
    return target


def _copy(archive: Path, packed: gzip.GzipFile, out: BinaryIO) -> None:
    """Copy what an archive unpacks to, unless it is far more than an archive of clips holds."""
    limit = max(_UNPACKED_BYTES, _UNPACKED_RATIO * archive.stat().st_size)
    written = 0
    while block := packed.read(_COPY_BYTES):
        written += out.write(block)
        if written > limit:
            raise ManifestError(
                f"{archive} unpacks to more than {limit >> 20} MiB, far more than audio would; "
                "unpack it yourself if it is meant to, and name the .tar"
            )
