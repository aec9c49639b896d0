"""Work in a process of its own: it ends as it would end here, hears signals, and dies with its parent."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from echox.engine.interruption import Interrupted
from echox.engine.own_process import in_own_process
from echox.errors import ConfigError

WORK = """
import os, signal, sys, time
from pathlib import Path
import torch
from echox.engine.interruption import Interrupted, listening
from echox.engine.own_process import in_own_process
from echox.errors import ConfigError

def writes(path): Path(path).write_text(str(os.getpid()))
def counts_threads(path): Path(path).write_text(str(torch.get_num_threads()))
def refuses(): raise ConfigError("nothing here")
def fills_the_disk(): raise OSError(28, "No space left on device", "here")
def is_interrupted(): raise Interrupted(15)
def has_a_bug(): raise ValueError("a bug")
def is_killed(): os.kill(os.getpid(), signal.SIGKILL)

def trains(path):
    with listening() as request:
        writes(path)
        while request.signum is None:
            time.sleep(0.01)
    Path(path + ".saved").touch()
    raise Interrupted(request.signum)

def waits(path):
    try:
        writes(path)
        time.sleep(60)
    except KeyboardInterrupt:
        Path(path + ".interrupted").touch()
        time.sleep(0.2)
        raise

if __name__ == "__main__":
    import work
    in_own_process(getattr(work, sys.argv[1]), sys.argv[2])
"""


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A module that any process can import."""
    (tmp_path / "work.py").write_text(WORK)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("work", None)
    import work

    yield work
    sys.modules.pop("work", None)


def test_it_works_elsewhere(work, tmp_path):
    in_own_process(work.writes, str(tmp_path / "pid"))
    assert int((tmp_path / "pid").read_text()) != os.getpid()


@pytest.mark.parametrize("threads", [1, 3])
def test_it_has_the_threads_of_its_parent(work, tmp_path, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        in_own_process(work.counts_threads, str(tmp_path / "threads"))
    finally:
        torch.set_num_threads(before)
    assert int((tmp_path / "threads").read_text()) == threads


@pytest.mark.parametrize(
    ("function", "error", "holds"),
    [
        ("refuses", ConfigError, lambda error: str(error) == "nothing here"),
        ("fills_the_disk", OSError, lambda error: (error.errno, error.filename) == (errno.ENOSPC, "here")),
        ("is_interrupted", Interrupted, lambda error: error.code == 143),
        ("has_a_bug", SystemExit, lambda error: error.code == 1),
        ("is_killed", SystemExit, lambda error: error.code == 137),
    ],
)
def test_it_ends_as_it_would_end_here(work, capfd, function, error, holds):
    with pytest.raises(error) as raised:
        in_own_process(getattr(work, function))
    assert type(raised.value) is error and holds(raised.value)
    handed_over = function not in ("has_a_bug", "is_killed")
    assert (f"in {function}" in str(raised.value.__cause__)) == handed_over
    assert ("ValueError: a bug" in capfd.readouterr().err) == (function == "has_a_bug")


@pytest.mark.parametrize(
    ("function", "signum", "to_group", "left", "status"),
    [
        ("trains", signal.SIGTERM, False, "saved", 143),
        ("trains", signal.SIGINT, True, "saved", 130),  # as a terminal does: both are told
        ("waits", signal.SIGINT, True, "interrupted", -signal.SIGINT),
        ("waits", signal.SIGINT, False, "interrupted", -signal.SIGINT),
        ("waits", signal.SIGTERM, False, None, 143),
    ],
)
def test_signals_reach_it(tmp_path, function, signum, to_group, left, status):
    parent, child = start(tmp_path, function)
    os.killpg(parent.pid, signum) if to_group else os.kill(parent.pid, signum)
    assert parent.wait(30) == status
    assert left is None or (tmp_path / f"pid.{left}").exists()
    assert not is_alive(child)


def test_it_does_not_outlive_a_parent_that_is_killed(tmp_path):
    parent, child = start(tmp_path, "trains")
    parent.kill()
    parent.wait(30)
    assert within(10, lambda: not is_alive(child))
    assert not (tmp_path / "pid.saved").exists()


def start(folder: Path, function: str) -> tuple[subprocess.Popen, int]:
    """A process that has started another, and the other's id."""
    (folder / "work.py").write_text(WORK)
    parent = subprocess.Popen([sys.executable, "work.py", function, "pid"], cwd=folder, start_new_session=True, stderr=subprocess.DEVNULL)
    assert within(60, lambda: (folder / "pid").is_file() and (folder / "pid").read_text())
    return parent, int((folder / "pid").read_text())


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def within(seconds: float, holds) -> bool:
    """Whether it comes to hold in time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if holds():
            return True
        time.sleep(0.02)
    return False
