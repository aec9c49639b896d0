"""A process of its own: it ends as a call would, receives signals, and dies with its parent."""

import errno
import multiprocessing
import os
import signal
import sys
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from echox.core.errors import ConfigError
from echox.core.number_format import VARIABLE, NumberFormat, adopt, adopted
from echox.engine.interruption import Interrupted
from echox.engine.own_process import in_own_process

PATIENCE_S = 600  # starting takes two seconds, and minutes where others keep every core

WORK = """
import os, signal, time
from pathlib import Path
import torch
from echox.engine.distribution import join
from echox.engine.interruption import Interrupted, listening
from echox.core.errors import ConfigError
from echox.core.number_format import number_format

def writes(path): Path(path).write_text(str(os.getpid()))
def writes_settings(path):
    Path(path).write_text(f"{os.getpid()} {torch.get_num_threads()} {number_format()!r}")
def refuses(): raise ConfigError("nothing here")
def fills_the_disk(): raise OSError(28, "No space left on device", "here")
def is_interrupted(): raise Interrupted(15)
def adds_up(path):
    world = join()
    total = world.sum([world.rank + 1.0])[0]
    facts = f"{world.size} {total:g} {torch.get_num_threads()} {os.getpid()}"
    Path(f"{path}.{world.rank}").write_text(facts)

def one_fails(end):
    world = join()
    if world.rank == 1:
        {"refuses": refuses, "is_killed": is_killed}[end]()
    world.barrier()

def both_train(path):
    world = join()
    with listening() as request:
        world.barrier()
        if world.is_main: writes(path)
        while not world.any(request.signum is not None):
            time.sleep(0.01)
    if world.is_main:
        time.sleep(0.5)  # it saves, and the other has ended
        Path(path + ".saved").touch()
    raise Interrupted(request.signum or 15)

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


@pytest.mark.parametrize(
    ("function", "error", "holds"),
    [
        ("refuses", ConfigError, lambda error: str(error) == "nothing here"),
        (
            "fills_the_disk",
            OSError,
            lambda error: (error.errno, error.filename) == (errno.ENOSPC, "here"),
        ),
        ("is_interrupted", Interrupted, lambda error: error.code == 143),
        ("has_a_bug", SystemExit, lambda error: error.code == 1),
        ("is_killed", SystemExit, lambda error: error.code == 137),
    ],
)
def test_it_ends_as_a_call_here_would(work, capfd, function, error, holds):
    with pytest.raises(error) as raised:
        in_own_process(getattr(work, function))
    assert type(raised.value) is error and holds(raised.value)
    handed_over = function not in ("has_a_bug", "is_killed")
    assert (f"in {function}" in str(raised.value.__cause__)) == handed_over
    assert ("ValueError: a bug" in capfd.readouterr().err) == (function == "has_a_bug")


def test_it_has_its_parent_s_threads_and_number_format(work, tmp_path, monkeypatch, set_threads):
    monkeypatch.delenv(VARIABLE, raising=False)
    set_threads(3)
    before, parent_format = adopted(), NumberFormat(False, "measurement", 12.0, 3.0, "a processor")
    adopt(parent_format)
    try:
        in_own_process(work.writes_settings, str(tmp_path / "settings"))
    finally:
        adopt(before)
    pid, threads, number_format = (tmp_path / "settings").read_text().split(" ", 2)
    assert int(pid) != os.getpid() and (int(threads), number_format) == (3, repr(parent_format))


def test_ranks_form_a_world_and_share_the_threads(work, tmp_path, set_threads):
    set_threads(4)
    in_own_process(work.adds_up, str(tmp_path / "rank"), ranks=2)
    (*first, pid), (*second, other) = (
        (tmp_path / f"rank.{rank}").read_text().split() for rank in range(2)
    )
    assert first == second == ["2", "3", "2"]
    assert len({pid, other, str(os.getpid())}) == 3
    assert "WORLD_SIZE" not in os.environ


@pytest.mark.parametrize(
    ("end", "error", "holds"),
    [
        ("refuses", ConfigError, lambda error: str(error) == "nothing here"),
        ("is_killed", SystemExit, lambda error: error.code == 137),
    ],
)
def test_a_rank_that_fails_ends_the_others_too(work, end, error, holds):
    with pytest.raises(error) as raised:
        in_own_process(work.one_fails, end, ranks=2)
    assert holds(raised.value)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("function", "signum", "to_group", "left", "status"),
    [
        ("both_train", signal.SIGTERM, False, "saved", 143),
        ("both_train", signal.SIGINT, True, "saved", 130),
        ("trains", signal.SIGTERM, False, "saved", 143),
        ("trains", signal.SIGINT, True, "saved", 130),  # as a terminal does: both receive it
        ("waits", signal.SIGINT, True, "interrupted", -signal.SIGINT),
        ("waits", signal.SIGINT, False, "interrupted", -signal.SIGINT),
        ("waits", signal.SIGTERM, False, None, 143),
    ],
)
def test_signals_are_forwarded(tmp_path, function, signum, to_group, left, status):
    parent, child = start(tmp_path, function, ranks=2 if function == "both_train" else 1)
    os.killpg(parent.pid, signum) if to_group else os.kill(parent.pid, signum)
    parent.join(PATIENCE_S)
    assert parent.exitcode == status
    assert left is None or (tmp_path / f"pid.{left}").exists()
    assert not is_alive(child)


@pytest.mark.parametrize(("function", "ranks"), [("trains", 1), ("both_train", 2)])
def test_it_does_not_outlive_a_parent_that_is_killed(tmp_path, function, ranks):
    parent, child = start(tmp_path, function, ranks)
    parent.kill()
    parent.join(PATIENCE_S)
    assert within(PATIENCE_S, lambda: not is_alive(child))
    assert not (tmp_path / "pid.saved").exists()


def start(folder: Path, function: str, ranks: int = 1) -> tuple[ForkServerProcess, int]:
    """A process that has started another, and the other's id."""
    (folder / "work.py").write_text(WORK)
    # A server that has imported PyTorch once is forked for each.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["echox.engine.distribution", "echox.engine.own_process"])
    parent = context.Process(target=run_as_a_script, args=(folder, function, ranks))
    parent.start()
    assert within(
        PATIENCE_S,
        lambda: (
            not parent.is_alive() or ((folder / "pid").is_file() and (folder / "pid").read_text())
        ),
    )
    return parent, int((folder / "pid").read_text())


def run_as_a_script(folder: Path, function: str, ranks: int) -> None:
    """Call a function of `work.py` in its own process, in a session of this one's own."""
    os.setsid()
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    sys.stderr = open(os.devnull, "w")
    import work

    try:
        in_own_process(getattr(work, function), "pid", ranks=ranks)
    except KeyboardInterrupt:
        # As Python ends a script that is interrupted.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def within(seconds: float, holds) -> bool:
    """Whether a condition becomes true in time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if holds():
            return True
        time.sleep(0.02)
    return False
