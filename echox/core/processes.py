"""Processes that are started without running the caller's script a second time."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import SpawnContext, SpawnProcess

_HIDING = threading.Lock()


class _Process(SpawnProcess):
    """A spawned process that does not import the main module."""

    def start(self) -> None:
        with _main_hidden():
            super().start()


class _Context(SpawnContext):
    Process = _Process


def spawn_context() -> SpawnContext:
    """Return the context in which echox starts processes, for pools too.

    Python's own runs the main module in each process: a script that calls `echox.train` without
    `if __name__ == "__main__"` would train once more there, and wait for itself. What a process
    runs must therefore not be defined in the main module.
    """
    return _Context()


@contextmanager
def _main_hidden() -> Iterator[None]:
    """Hide, within a block, where the main module is from, so that it cannot be imported again."""
    main = sys.modules["__main__"]
    with _HIDING:
        spec, file = main.__spec__, main.__dict__.pop("__file__", None)
        main.__spec__ = None
        try:
            yield
        finally:
            main.__spec__ = spec
            # A notebook and `python -c` have none.
            if file is not None:
                main.__file__ = file
