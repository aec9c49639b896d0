"""Files: the cache folder, atomic and durable writes, hashes, and a full disk as a sentence."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from echox.core.errors import TrainingError
from echox.core.partial_files import is_owned, partial_path, remove_abandoned

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)  # the disk itself, or the user's quota on it
BLOCK_BYTES = 1 << 20  # read at once, so that memory does not grow with the file
# Folders in which this process has deleted what killed ones left; a folder of a million clips is
# not listed for each of them.
_tidied: set[Path] = set()


def cache_folder() -> Path:
    """Return the folder of files that can be downloaded or computed again.

    It is the environment variable ECHOX_CACHE, or `~/.cache/echox` where that is unset or empty.
    """
    return Path(os.environ.get("ECHOX_CACHE") or "~/.cache/echox").expanduser()


def complete_lines(path: Path) -> list[str]:
    """Return the lines of a text file that a line feed ends, without it; none where no file is.

    A process that was killed may have left part of a line, which is left out. Other characters that
    Unicode counts as line ends (U+2028, U+0085, form feed ...) may stand inside a JSON string.
    """
    if not path.exists():
        return []
    # Without the translation of carriage returns that text files have by default. Bytes that are
    # not UTF-8 spoil their own line alone.
    return path.read_bytes().decode("utf-8", errors="replace").split("\n")[:-1]


@contextmanager
def translate_disk_full(path: Path) -> Iterator[None]:
    """Translate the operating system's error of a full disk within a block that writes `path`.

    Raises:
        TrainingError: the disk, or the user's quota on it, is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        way_out = "earlier checkpoints are untouched: free some space and start again to resume"
        raise TrainingError(f"no space left on the disk to write {path}; {way_out}") from error


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which becomes `path` when the block succeeds.

    The temporary path has the ending of `path`, because some libraries choose a format by it, and
    names this process. If the block fails, the temporary file is removed and `path` stays as it
    was. The folder is made, and the first write to it deletes what killed processes left there.

    Raises:
        NotADirectoryError: a file stands where the folder of `path` should be.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        # mkdir says "File exists", which does not tell a user what to do about it.
        raise NotADirectoryError(
            errno.ENOTDIR, "a file stands where a folder is needed", str(path.parent)
        ) from error
    if path.parent not in _tidied:
        _tidied.add(path.parent)
        remove_abandoned(path.parent)
    # Of processes that write the same file at once, the last one wins.
    unfinished = partial_path(path)
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty hidden folder, which becomes `folder` when the block succeeds.

    Hidden folders of this kind that killed processes left beside `folder` are removed first.

    Raises:
        TrainingError: the disk is full; what stood at `folder` before stays.
    """
    partial = partial_path(folder, ".partial")
    with translate_disk_full(folder):
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            # All of them: a resumed run may save at other steps and never use that name again.
            remove_abandoned(folder.parent)
            # Those of earlier versions, which named no process.
            for leftover in folder.parent.glob(".*.partial"):
                if not is_owned(leftover):
                    shutil.rmtree(leftover, ignore_errors=True)
            partial.mkdir()
            yield partial
            _replace_folder(partial, folder)
        finally:
            # After a success the folder was renamed and is gone; otherwise it only takes space.
            shutil.rmtree(partial, ignore_errors=True)


def _replace_folder(partial: Path, folder: Path) -> None:
    # The entries of the new folder reach the disk before its name, and the name before return.
    _sync_folder(partial)
    if folder.exists():
        # Only a damaged checkpoint is ever written again, so a crash between these two lines
        # loses nothing.
        shutil.rmtree(folder)
    partial.rename(folder)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    # Python's file objects cannot open a folder, and fsync needs a descriptor.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_synced(path: Path, content: bytes | memoryview) -> dict[str, int | str]:
    """Write a file and flush it to the disk.

    Returns:
        The file's size in bytes and its SHA-256 in hex, as `bytes` and `sha256`.
    """
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def copy_synced(source: Path, path: Path) -> dict[str, int | str]:
    """Copy a file of any size and flush the copy to the disk.

    Returns:
        The copy's size in bytes and its SHA-256 in hex, as `bytes` and `sha256`.
    """
    digest, size = hashlib.sha256(), 0
    with source.open("rb") as source_file, path.open("wb") as file:
        # Hashed while it is copied: shards of several GiB are read once, not twice.
        while block := source_file.read(BLOCK_BYTES):
            file.write(block)
            digest.update(block)
            size += len(block)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": size, "sha256": digest.hexdigest()}


# Names of caches, clips and rows, and the fingerprints of fitted codecs and corpora are made with
# it: with another hash none of those on disk would be recognized.
def json_hash(value: object, digits: int = 16) -> str:
    """Return the first hex digits of the SHA-256 of a value that JSON can write.

    The order of a mapping's keys does not matter.
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:digits]


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hex."""
    # hashlib.file_digest does the same from Python 3.11 on; 3.10 is supported.
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
