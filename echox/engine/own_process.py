"""Running a function in a process of its own, or in several, as if it were called here.

Results and errors are those of a call in this process, to the last bit. Memory is one reason for a
process: after minutes of work of many sizes the C library's heap is full of holes that it searches
at every allocation, and later work in the same process is slower for it. Idle threads are the
other: while one process runs code that only one thread can, its other threads wait, but another
process of one thread goes on.
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

from echox.core.errors import EchoxError
from echox.core.number_format import NumberFormat, adopt, adopted
from echox.core.processes import spawn_context
from echox.engine.interruption import ECHO_S, SIGNALS


class RemoteTraceback(Exception):
    """The traceback of another process, as the cause of the error that came from there."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def in_own_process(function: Callable[..., None], *arguments: Any, ranks: int = 1) -> None:
    """Call a function in one or more new processes, and wait for them.

    Signals are passed on to the processes, and they do not outlive this one.

    Args:
        function: importable by its name.
        arguments: picklable.
        ranks: number of processes, each with its share of the threads; more than one can join a
            world, as those of torchrun can.

    Raises:
        EchoxError, OSError, KeyboardInterrupt: as the function raised it, in the rank that failed
            first; the other ranks are then killed.
        SystemExit: the same, or the process ended in any other way: its traceback is on stderr, or
            the status is 128 + the signal that killed it.
    """
    with _environments(ranks) as environments:
        end, signums = _run(function, arguments, environments)
    if end.error is not None:
        raise end.error from RemoteTraceback(end.traceback)
    # Status codes as a shell gives them: 128 + the signal, whether the process caught it or not.
    if signums and end.status:
        raise SystemExit(128 + signums[0])
    if end.status:
        raise SystemExit(end.status if end.status > 0 else 128 - end.status)


@dataclass(slots=True)
class _End:
    """The end of a process: the exception it sent with its traceback, or else its exit code."""

    error: BaseException | None = None
    traceback: str = ""
    status: int = 0


def _run(
    function: Callable[..., None], arguments: tuple[Any, ...], environments: list[dict[str, str]]
) -> tuple[_End, list[int]]:
    """Run one process an environment: the first failure, and the signals that came meanwhile."""
    # Not fork: the threads of torch and CUDA do not survive it.
    context = spawn_context()
    ranks = len(environments)
    # Together the ranks have as many threads as this process.
    threads = max(1, torch.get_num_threads() // ranks)
    pipes = [context.Pipe(duplex=False) for _ in environments]
    processes = [
        context.Process(
            target=_call,
            args=(sender, threads, adopted(), environment, function, arguments),
            name=function.__name__,
        )
        for (_, sender), environment in zip(pipes, environments)
    ]
    with _forwarded_signals(processes) as signums:
        with _quiet_cpp_logs(ranks):
            for process, (_, sender) in zip(processes, pipes):
                process.start()
                # The process has the only open end, so that its death ends the pipe.
                sender.close()
        for signum in signums:  # that came before a process could receive them
            _send_signal(processes, signum)
        receivers: dict[Connection, BaseProcess] = {
            receiver: process for (receiver, _), process in zip(pipes, processes)
        }
        return _first_failure(receivers), signums


@contextmanager
def _environments(ranks: int) -> Iterator[list[dict[str, str]]]:
    """Describe each rank's world in torchrun's environment variables.

    Inside the block this process hosts the store through which the ranks find each other.
    """
    if ranks == 1:
        yield [{}]
        return
    # Port 0 is any free port, which no other run can take between the choice and its use.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    world = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "WORLD_SIZE": str(ranks),
        # Without these two, rank 0 would try to host a store of its own at that port.
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }
    yield [{**world, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


@contextmanager
def _quiet_cpp_logs(ranks: int) -> Iterator[None]:
    """Let several processes that start inside the block log no warnings of torch's C++ code.

    Each would warn, once, that DDP looked for weights that a step left unused and found none.
    """
    level = "TORCH_CPP_LOG_LEVEL"
    # A level that the user has set is kept.
    if ranks == 1 or level in os.environ:
        yield
        return
    os.environ[level] = "ERROR"
    try:
        yield
    finally:
        del os.environ[level]


def _first_failure(processes: dict[Connection, BaseProcess]) -> _End:
    """Wait for all processes, and return the end of the first that failed.

    The others, which would wait for the failed one, are killed.
    """
    first = _End()
    # By what `wait` returns, which for its types may be more than a pipe.
    running: dict[object, tuple[Connection, BaseProcess]] = {
        receiver: (receiver, process) for receiver, process in processes.items()
    }
    while running:
        for ready in wait([receiver for receiver, _ in running.values()]):
            receiver, process = running.pop(ready)
            end = _end_of(process, receiver)
            # Later failures may be consequences of the first.
            if first.error is None and not first.status:
                first = end
            # A process that was asked to stop has left the others time to save.
            was_stopped = isinstance(end.error, KeyboardInterrupt | SystemExit)
            if not was_stopped and (end.error is not None or end.status):
                for _, other in running.values():
                    other.kill()
    for process in processes.values():
        process.join()
    return first


def _end_of(process: BaseProcess, receiver: Connection) -> _End:
    """Return the end of a process whose pipe has a message or is closed."""
    try:
        return _End(*receiver.recv())
    # Closed without a message: the process returned, was killed, or failed by a bug.
    except EOFError:
        process.join()
        return _End(status=process.exitcode or 0)


def _send_signal(processes: Iterable[BaseProcess], signum: int) -> None:
    for process in processes:
        if process.pid is not None and process.is_alive():
            os.kill(process.pid, signum)


@contextmanager
def _forwarded_signals(processes: Sequence[BaseProcess]) -> Iterator[list[int]]:
    """Forward SIGTERM and Ctrl-C to processes instead of ending, and list the signals."""
    signums: list[int] = []
    # Python sets signal handlers in the main thread only.
    if threading.current_thread() is not threading.main_thread():
        yield signums
        return

    def forward(signum: int, frame: FrameType | None) -> None:
        signums.append(signum)
        _send_signal(processes, signum)

    before = {signum: signal.signal(signum, forward) for signum in SIGNALS}
    try:
        yield signums
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _call(
    sender: Connection,
    threads: int,
    number_format: NumberFormat | None,
    environment: dict[str, str],
    function: Callable[..., None],
    arguments: tuple[Any, ...],
) -> None:
    """Call the function in the new process, and send an exception that has a meaning there."""
    # Sums depend on the number of threads and on the number format, so both are the parent's.
    torch.set_num_threads(threads)
    adopt(number_format)
    os.environ.update(environment)
    # A daemon, so that it does not keep this process from ending.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _ignore_repeated_ctrl_c()
    try:
        function(*arguments)
    except (EchoxError, OSError, KeyboardInterrupt, SystemExit) as error:
        sender.send((error, traceback.format_exc()))


def _end_with_parent() -> None:
    """Wait for the parent's end, and kill this process then, as if the two were one."""
    # Killed, not stopped: what is saved must be what was saved when the parent died.
    parent = multiprocessing.parent_process()
    if parent is None:
        return  # this process was not started by another one of ours
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGKILL)


def _ignore_repeated_ctrl_c() -> None:
    """Count two SIGINT within `ECHO_S` as one: the terminal sends it, the parent forwards it."""
    received_s = -ECHO_S

    def handle(signum: int, frame: FrameType | None) -> None:
        nonlocal received_s
        if time.monotonic() - received_s > ECHO_S:
            received_s = time.monotonic()
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, handle)
