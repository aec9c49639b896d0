"""Files on the disk: where echox keeps its own, what they hash to, and a full disk said in a sentence."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from echox.errors import TrainingError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def cache_folder() -> Path:
    """Where echox keeps what can be had again: ECHOX_CACHE, or `~/.cache/echox`."""
    return Path(os.environ.get("ECHOX_CACHE") or "~/.cache/echox").expanduser()


@contextmanager
def room_for(path: Path) -> Iterator[None]:
    """Around writing `path`.

    Raises:
        TrainingError: the disk, or the user's quota of it, is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        way_out = "earlier checkpoints are untouched: free some space and start again to resume"
        raise TrainingError(f"no space left on the disk to write {path}; {way_out}") from error


def sha256_of(path: Path) -> str:
    """The sha256 of a file in hex, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
