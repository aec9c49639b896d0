"""Work in a process of its own, which behaves towards its user as if it were done here, to the last bit.

Memory is the reason: after minutes of work of many sizes the C library's heap is full of holes that it searches at every allocation,
and what comes next in the same process pays for it. A process that ends leaves none.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

import torch

from echox.engine.interruption import ECHO_S, SIGNALS
from echox.errors import EchoxError


class Elsewhere(Exception):
    """The traceback of the other process, as the cause of the error that came from there."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def in_own_process(function: Callable[..., None], *arguments: Any) -> None:
    """Call a function in a new process and wait for it. Signals are passed on to it, and it does not outlive this one.

    Args:
        function: importable by its name, as its arguments can be pickled.
    Raises:
        EchoxError, OSError, KeyboardInterrupt, SystemExit: as the function did. SystemExit: it ended in any other way; a traceback
            was printed there, or the status is 128 + the signal that killed it.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_call, args=(there, torch.get_num_threads(), function, arguments), name=function.__name__)
    with _passing_on(process) as told:
        process.start()
        for signum in told:  # before there was anyone to tell
            os.kill(process.pid, signum)
        there.close()
        error, where = _received(here)
        process.join()
    if error is not None:
        raise error from Elsewhere(where)
    if told and process.exitcode:
        raise SystemExit(128 + told[0])
    if process.exitcode:
        raise SystemExit(process.exitcode if process.exitcode > 0 else 128 - process.exitcode)


def _received(here: Connection) -> tuple[BaseException | None, str]:
    """How the other process ended, if by an exception that is handed over, and its traceback."""
    try:
        return here.recv()
    except EOFError:
        return None, ""


@contextmanager
def _passing_on(process: BaseProcess) -> Iterator[list[int]]:
    """Hand SIGTERM and Ctrl-C to the process and stay, and list them; outside the main thread, where Python forbids it, do nothing."""
    told: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield told
        return

    def hand_over(signum: int, frame: FrameType | None) -> None:
        told.append(signum)
        if process.is_alive():
            os.kill(process.pid, signum)

    before = {signum: signal.signal(signum, hand_over) for signum in SIGNALS}
    try:
        yield told
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _call(there: Connection, threads: int, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """The other process: do the work on as many threads as the parent would, for sums depend on that, and hand over how it ended."""
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _hear_ctrl_c_once()
    try:
        function(*arguments)
    except (EchoxError, OSError, KeyboardInterrupt, SystemExit) as error:
        there.send((error, traceback.format_exc()))


def _end_with_parent() -> None:
    """A parent that was killed takes this process with it, as if it had been one: what is saved is what was saved then."""
    wait([multiprocessing.parent_process().sentinel])
    os.kill(os.getpid(), signal.SIGKILL)


def _hear_ctrl_c_once() -> None:
    """The terminal tells this process of Ctrl-C, and the parent tells it again."""
    told_s = -ECHO_S

    def handle(signum: int, frame: FrameType | None) -> None:
        nonlocal told_s
        if time.monotonic() - told_s > ECHO_S:
            told_s = time.monotonic()
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, handle)
