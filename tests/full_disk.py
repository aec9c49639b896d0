"""A disk that is full, or read-only, for files that Python opens."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest


class _FullFile:
    """A file that takes half of what is written to it, and then has no space left."""

    def __init__(self, file) -> None:
        self.file = file

    def write(self, content) -> int:
        self.file.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def writelines(self, lines) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.file.close()


def fill_disk(
    patched: pytest.MonkeyPatch,
    number: int = errno.ENOSPC,
    holds: Callable[[Path], bool] = lambda path: True,
) -> None:
    """Let files that are opened for writing fail as on a full or a read-only disk.

    Args:
        patched: takes the fault back.
        number: ENOSPC or EROFS.
        holds: whether the disk that fails holds a path.
    """
    real = Path.open

    def opened(path, mode="r", *arguments, **named):
        is_written = bool(set(mode) & set("wax+")) and holds(path)
        if is_written and number == errno.EROFS:
            raise OSError(number, os.strerror(number), str(path))
        file = real(path, mode, *arguments, **named)
        return _FullFile(file) if is_written else file

    patched.setattr(Path, "open", opened)
