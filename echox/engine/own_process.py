"""Work in a process of its own, which behaves towards its user as if it were done here, to the last bit; or in several, which share it.

Memory is one reason: after minutes of work of many sizes the C library's heap is full of holes that it searches at every allocation,
and what comes next in the same process pays for it. A process that ends leaves none.
Waiting is the other: while one process does what only one thread can, its other threads idle; another process of one thread works on.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

import torch
from torch.distributed import TCPStore

from echox.engine.interruption import ECHO_S, SIGNALS
from echox.errors import EchoxError
from echox.number_format import NumberFormat, adopt, adopted


class Elsewhere(Exception):
    """The traceback of the other process, as the cause of the error that came from there."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def in_own_process(function: Callable[..., None], *arguments: Any, ranks: int = 1) -> None:
    """Call a function in a new process and wait for it. Signals are passed on to it, and it does not outlive this one.

    Args:
        function: importable by its name, as its arguments can be pickled.
        ranks: processes that call it, each with its share of the threads; more than one can join a world, as those of torchrun can.
    Raises:
        EchoxError, OSError, KeyboardInterrupt, SystemExit: as the function did, in the rank that ended so first; the others are then
            killed. SystemExit: it ended in any other way; a traceback was printed there, or the status is 128 + the signal that killed it.
    """
    context = multiprocessing.get_context("spawn")
    threads = max(1, torch.get_num_threads() // ranks)
    with _worlds(ranks) as worlds:
        pipes = [context.Pipe(duplex=False) for _ in worlds]
        settings = [(there, threads, adopted(), world, function, arguments) for (_, there), world in zip(pipes, worlds)]
        processes = [context.Process(target=_call, args=each, name=function.__name__) for each in settings]
        with _passing_on(processes) as told:
            with _quiet(ranks):
                for process, (_, there) in zip(processes, pipes):
                    process.start()
                    there.close()
            for signum in told:  # before there was anyone to tell
                _tell(processes, signum)
            end = _first_bad_end({here: process for (here, _), process in zip(pipes, processes)})
    if end.error is not None:
        raise end.error from Elsewhere(end.where)
    if told and end.status:
        raise SystemExit(128 + told[0])
    if end.status:
        raise SystemExit(end.status if end.status > 0 else 128 - end.status)


@contextmanager
def _worlds(ranks: int) -> Iterator[list[dict[str, str]]]:
    """What the environment of each rank says of its world, as torchrun words it, while this process keeps the store where they meet."""
    if ranks == 1:
        yield [{}]
        return
    # Port 0 is whichever is free, which no other run can take between being found and being used.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    kept_here = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": str(ranks), **kept_here}
    yield [{**world, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


@contextmanager
def _quiet(ranks: int) -> Iterator[None]:
    """Processes that start meanwhile print no warnings of torch's C++ code, if they are several: each would say, once, that DDP looked for
    weights that a step left unused and found none. A level that the user has set is kept."""
    level = "TORCH_CPP_LOG_LEVEL"
    if ranks == 1 or level in os.environ:
        yield
        return
    os.environ[level] = "ERROR"
    try:
        yield
    finally:
        del os.environ[level]


@dataclass(slots=True)
class _End:
    """How a process ended: by an exception it handed over, with its traceback, or with an exit code, which is 0 if all went well."""

    error: BaseException | None = None
    where: str = ""
    status: int = 0


def _first_bad_end(processes: dict[Connection, BaseProcess]) -> _End:
    """Wait for all; of those that failed the first, after which the others, which would wait for it, are killed."""
    first, running = _End(), dict(processes)
    while running:
        for here in wait(list(running)):
            end = _end_of(running.pop(here), here)
            if first.error is None and not first.status:
                first = end
            # Who was asked to stop has left the others time to save.
            if not isinstance(end.error, KeyboardInterrupt | SystemExit) and (end.error is not None or end.status):
                for process in running.values():
                    process.kill()
    for process in processes.values():
        process.join()
    return first


def _end_of(process: BaseProcess, here: Connection) -> _End:
    """How a process that has spoken or gone ended."""
    try:
        return _End(*here.recv())
    except EOFError:
        process.join()
        return _End(status=process.exitcode)


def _tell(processes: Iterable[BaseProcess], signum: int) -> None:
    for process in processes:
        if process.is_alive():
            os.kill(process.pid, signum)


@contextmanager
def _passing_on(processes: Sequence[BaseProcess]) -> Iterator[list[int]]:
    """Hand SIGTERM and Ctrl-C to processes and stay, and list them; outside the main thread, where Python forbids it, do nothing."""
    told: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield told
        return

    def hand_over(signum: int, frame: FrameType | None) -> None:
        told.append(signum)
        _tell(processes, signum)

    before = {signum: signal.signal(signum, hand_over) for signum in SIGNALS}
    try:
        yield told
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _call(
    there: Connection,
    threads: int,
    number_format: NumberFormat | None,
    world: dict[str, str],
    function: Callable[..., None],
    arguments: tuple[Any, ...],
) -> None:
    """The other process: do the work, and hand over how it ended. Sums depend on the number of
    threads, so it is the parent's or its share, and on the format of the numbers, which is the parent's."""
    torch.set_num_threads(threads)
    adopt(number_format)
    os.environ.update(world)
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
