"""Stopping on request: the first SIGTERM or Ctrl-C ends the run after the step at hand, the second at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)

# Ctrl-C reaches torchrun and its workers alike, and torchrun passes it on: within this time, in seconds, two signals are one wish.
ECHO_S = 1.0


class Interrupted(SystemExit):
    """The run was asked to stop, and has saved and stopped; as a SystemExit it leaves the shell 128 + signal, which needs no code in a door."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)

    def __reduce__(self) -> tuple[type[Interrupted], tuple[int]]:
        return Interrupted, (self.code - 128,)


class StopRequest:
    """The signal that asked the run to stop, if one has."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self._at_s = 0.0
        self._pid = os.getpid()

    def handle(self, signum: int, frame: FrameType | None) -> None:
        """Note the first signal; hand a later one to the system's own handler."""
        # Data loading processes inherit this handler; they are signalled with the group, and must live until the step is done.
        if os.getpid() != self._pid:
            return
        if self.signum is None:
            self.signum, self._at_s = signum, time.monotonic()
            # Not print: a handler may run in the middle of another write to the same stream.
            os.write(2, b"\nasked to stop: finishing this step and saving; ask again to stop at once\n")
        elif time.monotonic() - self._at_s > ECHO_S:
            signal.signal(signum, signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL)
            signal.raise_signal(signum)


@contextmanager
def listening() -> Iterator[StopRequest]:
    """Catch SIGTERM and SIGINT inside the block; outside the main thread, where Python forbids it, catch nothing."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {signum: signal.signal(signum, request.handle) for signum in SIGNALS}
    try:
        yield request
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
