"""Names of files and folders that are being written: each names the process that writes it.

A name is `.NAME.MACHINE-PID-STARTED-NUMBER.ENDING`. What a killed process left is deleted by the
next one that writes to the folder; files of a process that lives, or whose machine is another, are
left alone, because that process is about to rename them.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import os
import re
import shutil
import socket
from pathlib import Path

_OWNED = re.compile(r"\..+\.([0-9a-f]{6})-(\d+)-(\d+)-\d+(?:\.[^.]*)?")
# Longer names could pass the 255 bytes of a file system with the owner behind them.
_LONGEST_STEM = 180
_numbers = itertools.count()  # keeps threads apart that write one file at once


def partial_path(path: Path, suffix: str | None = None) -> Path:
    """Return a new hidden path beside `path` that names this process.

    Args:
        path: what the file will be called.
        suffix: ending of the hidden name; None takes that of `path`.
    """
    stem, ending = (path.stem, path.suffix) if suffix is None else (path.name, suffix)
    if len(os.fsencode(stem)) > _LONGEST_STEM:
        stem = hashlib.sha256(os.fsencode(stem)).hexdigest()[:32]
    pid = os.getpid()
    owner = f"{_machine()}-{pid}-{_own_start_time(pid)}-{next(_numbers)}"
    return path.with_name(f".{stem}.{owner}{ending}")


def is_owned(path: Path) -> bool:
    """Return whether a name is one of `partial_path`, of any process."""
    return _OWNED.fullmatch(path.name) is not None


def remove_abandoned(folder: Path) -> None:
    """Delete the partial files and folders in `folder` whose processes are dead."""
    with os.scandir(folder) as entries:
        abandoned = [
            Path(entry.path)
            for entry in entries
            if (match := _OWNED.fullmatch(entry.name)) and _is_dead(*match.groups())
        ]
    for path in abandoned:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
            continue
        # Another process may delete it at the same time, or it is another user's.
        with contextlib.suppress(OSError):
            path.unlink()


def _is_dead(machine: str, pid: str, started: str) -> bool:
    # Whether a process of another machine lives cannot be seen from here.
    if machine != _machine():
        return False
    if Path("/proc/self/stat").exists():
        # Process ids are used again, so the time of the start has to be the same too.
        return _start_time(int(pid)) != int(started)
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # another user's, which lives
    return False


@functools.cache
def _machine() -> str:
    """Six hex digits that differ between machines, and between containers of one."""
    try:
        # Processes of two containers may have the same id, but not in one namespace.
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    return hashlib.sha256(f"{socket.gethostname()}|{namespace}".encode()).hexdigest()[:6]


@functools.cache  # corpora of thousands of clips ask for it at every file
def _own_start_time(pid: int) -> int:
    return _start_time(pid) or 0


def _start_time(pid: int) -> int | None:
    """When a process was started, in ticks since the machine was; None where it has ended.

    It is None too where the system has no `/proc`.
    """
    try:
        content = Path(f"/proc/{pid}/stat").read_text("utf-8", errors="replace")
    except OSError:
        return None
    # Behind the command in brackets, which may hold spaces: fields 3 (state) to 22 (start time).
    fields = content.rpartition(")")[2].split()
    # A zombie was killed, and its parent has not asked for its exit code yet.
    return None if fields[0] == "Z" else int(fields[19])
