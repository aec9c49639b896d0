"""Stopping by signal: the first SIGTERM or Ctrl-C ends the run after its step, the second now."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)

# Ctrl-C reaches torchrun and its workers alike, and torchrun passes it on: two signals within this
# time, in seconds, count as one.
ECHO_S = 1.0


class Interrupted(SystemExit):
    """The run saved and stopped because of a signal; exit status 128 + signal."""

    # As a SystemExit it sets the exit status without code in any command.
    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum

    # Exceptions are pickled by their arguments, which here are not those of the constructor.
    def __reduce__(self) -> tuple[type[Interrupted], tuple[int]]:
        return Interrupted, (self.signum,)


class StopRequest:
    """A request to stop the run, made by a signal."""

    def __init__(self) -> None:
        self.signum: int | None = None  # the first signal received
        self._at_s = 0.0
        self._pid = os.getpid()

    def handle(self, signum: int, frame: FrameType | None) -> None:
        """Record the first signal; pass a later one to the default handler."""
        # Data loading processes inherit this handler; they are signalled with the group, and must
        # live until the step is done.
        if os.getpid() != self._pid:
            return
        if self.signum is None:
            self.signum, self._at_s = signum, time.monotonic()
            # Not print: a handler may run in the middle of another write to the same stream.
            os.write(
                2, b"\nasked to stop: finishing this step and saving; ask again to stop at once\n"
            )
        elif time.monotonic() - self._at_s > ECHO_S:
            default = signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL
            signal.signal(signum, default)
            signal.raise_signal(signum)


@contextmanager
def listening() -> Iterator[StopRequest]:
    """Catch SIGTERM and SIGINT inside the block, and record them in the request."""
    request = StopRequest()
    # Python sets signal handlers in the main thread only.
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {signum: signal.signal(signum, request.handle) for signum in SIGNALS}
    try:
        yield request
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
