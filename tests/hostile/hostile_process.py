"""Runs a command in a process of its own, with limits of memory and time, and says how it ended.

The process is forked from one that has imported everything already, so that a case costs what its
command does and not what importing PyTorch does. Linux only.
"""

from __future__ import annotations

import enum
import os
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

SECONDS = 30.0
ADDRESS_SPACE_BYTES = 8 << 30  # beside what the parent process has mapped already
RESIDENT_BYTES = 4 << 30
MESSAGE_BYTES = 4_000
EXIT_CODES = (0, 1, 2)  # done, done and faults were found, refused
TRACEBACK_CODE = 70
OUT_OF_MEMORY = "memory ran out"  # begins the sentence of `echox.core.memory`


class Ending(enum.Enum):
    """How a case ended; the first two are as they should be."""

    done = "done"
    refused = "refused"
    traceback = "traceback"
    died = "died"
    hung = "hung"
    memory = "memory"
    trespassed = "trespassed"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of one case."""

    ending: Ending
    seconds: float
    peak_bytes: int
    """Largest resident memory, in bytes, what the parent process shares included."""
    message: str
    """The end of what the command printed; what was changed, for `trespassed`."""


def run_isolated(body: Callable[[], int], folder: Path) -> Outcome:
    """Run a function in a process of its own.

    Args:
        body: returns the exit code of a command.
        folder: where the process begins; it holds `work`, in which the function runs, and
            `outside`, which must stay as it is.
    """
    before = _contents(folder / "outside")
    outcome = wait(start(body, folder / "work", folder / "output.txt"), SECONDS)
    if outcome.peak_bytes > RESIDENT_BYTES:
        outcome = replace(outcome, ending=Ending.memory)
    if changed := _contents(folder / "outside") ^ before:
        message = f"changed outside: {sorted(changed)}"
        outcome = replace(outcome, ending=Ending.trespassed, message=message)
    return outcome


class Started(NamedTuple):
    """A process that runs a function."""

    child: int
    output: Path
    begun: float


def start(body: Callable[[], int], work: Path, output: Path) -> Started:
    """Start a function in a process of its own.

    Args:
        body: returns the exit code of a command.
        work: the process's working folder.
        output: file that takes what it prints.
    """
    begun = time.perf_counter()
    child = os.fork()
    if child == 0:
        _run_and_exit(body, work, output)
    return Started(child, output, begun)


def wait(started: Started, seconds: float) -> Outcome:
    """Wait for a process, end it after so many seconds, and say how it ended."""
    left = seconds - (time.perf_counter() - started.begun)
    is_late = not _ended_within(started.child, left)
    _kill_group(started.child)
    _, status, usage = os.wait4(started.child, 0)
    message = _tail(started.output)
    return Outcome(
        Ending.hung if is_late else _ending(status, message),
        time.perf_counter() - started.begun,
        usage.ru_maxrss * 1024,  # kilobytes on Linux
        message,
    )


def _run_and_exit(body: Callable[[], int], work: Path, output: Path) -> None:
    code = TRACEBACK_CODE
    try:
        os.setsid()
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(descriptor, stream)
        # The parent's may write elsewhere, as pytest's do.
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        limit = _mapped_bytes() + ADDRESS_SPACE_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        os.chdir(work)
        code = body()
    except BaseException:
        traceback.print_exc()
    finally:
        # Without the end of the interpreter, whose cleaning up is the parent's; and whatever
        # happens, for otherwise there would be two of the parent.
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def _mapped_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _ended_within(child: int, seconds: float) -> bool:
    handle = os.pidfd_open(child)
    try:
        return bool(select.select([handle], [], [], max(0.0, seconds))[0])
    finally:
        os.close(handle)


def _kill_group(child: int) -> None:
    # The child has a session of its own; what it started and left behind ends here too.
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:
        return


def _ending(status: int, message: str) -> Ending:
    if os.WIFSIGNALED(status):
        return Ending.died
    code = os.WEXITSTATUS(status)
    if "Traceback (most recent call last)" in message or code not in EXIT_CODES:
        return Ending.traceback
    if OUT_OF_MEMORY in message:
        return Ending.memory
    return Ending.refused if code == 2 else Ending.done


def _tail(path: Path) -> str:
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - MESSAGE_BYTES))
        return file.read().decode(errors="replace")


def _contents(folder: Path) -> set[tuple[str, int, int]]:
    """Return (path, size in bytes, time of the last change) of everything below a folder."""
    entries = [folder, *folder.rglob("*")]
    stats = [(str(path), path.lstat()) for path in entries]
    return {(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats}
