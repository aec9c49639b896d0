"""Files: the cache folder, atomic and durable writes, hashes, and faults of a disk as sentences."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from echox.core.errors import DiskError
from echox.core.partial_files import is_owned, partial_path, remove_abandoned

_KEPT = "what was finished is kept"
_WAYS_OUT = {
    errno.ENOSPC: f"free some space and start again, {_KEPT}",
    errno.EDQUOT: f"free some of your space on that disk and start again, {_KEPT}",
    errno.EROFS: f"make that disk writable and start again, {_KEPT}, or choose another folder",
}
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
def translate_disk_faults(
    path: Path, size_bytes: int | None = None, partial: Path | None = None
) -> Iterator[None]:
    """Translate the errors of a full or read-only disk within a block that writes `path`.

    Args:
        path: the file or folder that the block writes.
        size_bytes: what it takes, where that is known.
        partial: file or folder in which the block writes first; what is in there was needed too.

    Raises:
        DiskError: the disk, or the user's quota on it, is full, or it cannot be written.
    """
    try:
        yield
    except DiskError:
        raise  # of a file that the block wrote, and said already
    except Exception as error:
        number = _number_of(error)
        if number not in _WAYS_OUT:
            raise
        reason = os.strerror(number)
        if number != errno.EROFS:
            reason += f" ({_space(path, size_bytes, partial)})"
        raise DiskError(number, reason, str(path), _WAYS_OUT[number]) from error


def _number_of(error: Exception) -> int:
    if isinstance(error, OSError):
        return error.errno or 0
    # safetensors writes files by itself, and tells the system's error in its text, as Rust does.
    match = re.search(r"(?:os error|Os { code:) (\d+)", str(error))
    return int(match[1]) if match else 0


def _space(path: Path, size_bytes: int | None, partial: Path | None) -> str:
    """Return what a write needs and what is free in its folder, as `1.2 GB needed, 0.1 GB free`."""
    # Without a size, what was written before the disk was full is the least.
    written = _bytes_in(partial) if partial is not None else 0
    needed = f"{_size(size_bytes)} needed, " if size_bytes is not None else ""
    if not needed and written:
        needed = f"more than {_size(written)} needed, "
    folder = next(folder for folder in path.absolute().parents if folder.exists())
    return f"{needed}{_size(shutil.disk_usage(folder).free)} free in {folder}"


def _bytes_in(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _size(count: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} bytes"


@contextmanager
def atomic_write(path: Path, size_bytes: int | None = None) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which becomes `path` when the block succeeds.

    The temporary path has the ending of `path`, because some libraries choose a format by it, and
    names this process. If the block fails, the temporary file is removed and `path` stays as it
    was. The folder is made, and the first write to it deletes what killed processes left there.

    Args:
        path: the file to write.
        size_bytes: its size where it is known and may be large, for the error of a full disk.

    Raises:
        DiskError: the disk is full or cannot be written.
        NotADirectoryError: a file stands where the folder of `path` should be.
    """
    # Of processes that write the same file at once, the last one wins.
    unfinished = partial_path(path)
    try:
        with translate_disk_faults(path, size_bytes, unfinished):
            make_folder(path.parent)
            if path.parent not in _tidied:
                _tidied.add(path.parent)
                remove_abandoned(path.parent)
            yield unfinished
            unfinished.replace(path)
    finally:
        # What went wrong in the block is what counts; a disk may be read-only by now.
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, unless they are there.

    Raises:
        DiskError: the disk is full or cannot be written.
        NotADirectoryError: a file stands where a folder should be.
    """
    try:
        with translate_disk_faults(folder):
            folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        # mkdir says "File exists", which does not tell a user what to do about it.
        raise NotADirectoryError(
            errno.ENOTDIR, "a file stands where a folder is needed", str(folder)
        ) from error


def append_text(path: Path, text: str, *, is_synced: bool = False) -> None:
    """Append text to a file, all of it or nothing; its folder is made.

    Args:
        path: the file, which need not exist.
        text: whole lines.
        is_synced: wait until it is on the disk, for what must survive a crash of the machine.

    Raises:
        DiskError: the disk is full or cannot be written.
    """
    content = text.encode()
    make_folder(path.parent)
    size = path.stat().st_size if path.exists() else 0
    try:
        with translate_disk_faults(path, len(content)), path.open("ab") as file:
            file.write(content)
            # Here at the latest a full disk is noticed, rather than when the file is closed.
            file.flush()
            if is_synced:
                os.fsync(file.fileno())
    except OSError:
        with suppress(OSError):
            os.truncate(path, size)
        raise


@contextmanager
def atomic_folder(folder: Path, size_bytes: int | None = None) -> Iterator[Path]:
    """Yield an empty hidden folder, which becomes `folder` when the block succeeds.

    Hidden folders of this kind that killed processes left beside `folder` are removed first.

    Args:
        folder: the folder to write.
        size_bytes: of all its files where it is known, for the error of a full disk.

    Raises:
        DiskError: the disk is full or cannot be written; what stood at `folder` before stays.
    """
    partial = partial_path(folder, ".partial")
    try:
        with translate_disk_faults(folder, size_bytes, partial):
            make_folder(folder.parent)
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
