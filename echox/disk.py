"""A full disk, said in a sentence."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from echox.errors import TrainingError


@contextmanager
def room_for(path: Path) -> Iterator[None]:
    """Around writing `path`.

    Raises:
        TrainingError: the disk, or the user's quota of it, is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise TrainingError(f"no space left on the disk to write {path}; earlier checkpoints are untouched: free some space and start again to resume") from error
