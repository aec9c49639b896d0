"""Progress on stderr, with a terminal and without."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
import time

import pytest

from echox.core import progress as progress_module
from echox.core.progress import Bar, print_message, progress, step_of, waiting
from echox.core.step_costs import PlannedStep, StepCosts, clock_of, duration


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_the_first_of_many_units_gives_no_time_left(clock):
    with Bar("speaking", 4000, unit="clip") as bar:
        clock[0] += 50  # processes start
        bar.update()
        assert bar.left_s() is None
        clock[0] += 1
        bar.update(31)
        assert bar.left_s() == pytest.approx(3968 * 51 / 32)


def test_a_line_every_half_minute_and_one_at_the_end_with_the_time_left(capsys, clock):
    with Bar("encoding clips", 40, unit="clip") as bar:
        for _ in range(40):
            clock[0] += 2
            bar.update(note="loss 1.5")
    assert capsys.readouterr().err.splitlines() == [
        "encoding clips: 15 of 40 clips, loss 1.5, 50 s left",
        "encoding clips: 30 of 40 clips, loss 1.5, 20 s left",
        "encoding clips: 40 of 40 clips, loss 1.5, took 1 min 20 s",
    ]


def test_lines_are_written_while_one_unit_takes_long(capsys, monkeypatch):
    monkeypatch.setattr(progress_module, "LINE_EVERY_S", 0.05)
    with Bar("answering", 2) as bar:
        until = time.monotonic() + 30
        while not (output := capsys.readouterr().err) and time.monotonic() < until:
            time.sleep(0.01)
        bar.update(2)
    assert output.startswith("answering: 0 of 2 rows\n")


def test_work_that_is_done_at_once_prints_nothing(capsys, clock):
    assert list(progress([1, 2, 3], "counting")) == [1, 2, 3]
    with waiting("loading a model"):
        clock[0] += 1
    assert capsys.readouterr().err == ""


def test_bytes_and_work_without_an_end(capsys, clock):
    with Bar("fetching it", 1 << 20, in_bytes=True) as bar:
        clock[0] += 31
        bar.update(1 << 19)
    with Bar("writing rows", None) as bar:
        clock[0] += 31
        bar.update(7)
    assert capsys.readouterr().err.splitlines()[::2] == [
        "fetching it: 512kB of 1.00MB, 31 s left",
        "writing rows: 7 rows",
    ]


@pytest.mark.parametrize("shows", [True, False])
def test_processes_that_share_work_with_one_that_prints_are_silent(
    capsys, clock, monkeypatch, shows
):
    monkeypatch.setattr(progress_module, "_is_enabled", shows)
    with Bar("training", 2, unit="step") as bar:
        clock[0] += 100
        bar.update()
    assert bool(capsys.readouterr().err) == shows


def test_time_in_an_inner_bar_does_not_count_for_the_outer(clock):
    with Bar("training", 10, unit="step") as outer:
        clock[0] += 4
        outer.update(2)
        with Bar("validating", 1) as inner:
            clock[0] += 100
            inner.update()
        assert (outer.spent_s, inner.spent_s, outer.left_s()) == (4, 100, 16)


def test_work_that_takes_long_is_named(capsys, monkeypatch):
    monkeypatch.setattr(progress_module, "WAIT_S", 0.01)
    with waiting("loading the language model"):
        until = time.monotonic() + 30
        while not (output := capsys.readouterr().err) and time.monotonic() < until:
            time.sleep(0.01)
    assert output == "loading the language model ...\n"


def test_bars_of_a_step_show_its_number_and_its_cost_is_recorded(capsys, clock, tmp_path):
    steps = [PlannedStep("corpus", "the corpus"), PlannedStep("train", "training")]
    with step_of(clock_of(tmp_path / "costs.json", steps, 1)):
        with Bar("speaking", 10, unit="clip") as bar:
            clock[0] += 31
            bar.update(10)
    assert capsys.readouterr().err == "[1/2] speaking: 10 of 10 clips, took 31 s\n"
    assert StepCosts(tmp_path / "costs.json").steps["corpus"].phases["speaking"].seconds == 31


SCRIPT = """
import time
from echox.core import progress
from echox.core.progress import Bar, print_message
progress.LINE_EVERY_S = 0.3
with Bar("speaking", 5, unit="clip") as bar:
    for _ in range(5):
        time.sleep(0.12)
        bar.update(note="0 failed")
    print_message("a sentence")
"""


@pytest.mark.parametrize(
    ("columns", "lines", "draws"), [(100, 40, True), (0, 0, False), (0, 40, False)]
)
def test_a_terminal_gets_a_bar_where_it_has_room(columns, lines, draws):
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    process = subprocess.Popen([sys.executable, "-c", SCRIPT], stderr=terminal)
    os.close(terminal)
    text = b""
    try:
        while block := os.read(controller, 4096):
            text += block
    except OSError:  # the other side is closed
        pass
    assert process.wait() == 0
    assert ("/5 clips" in text.decode()) == draws and "a sentence" in text.decode()
    # One of the two there is, whatever the terminal says of itself.
    assert (" of 5 clips" in text.decode()) != draws


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (80, "1 min 20 s"), (120, "2 min"), (840, "14 min"), (7500, "2 h 5 min")],
)
def test_durations_as_people_write_them(seconds, text):
    assert duration(seconds) == text


def test_a_sentence_goes_to_stderr(capsys):
    print_message("hello")
    assert capsys.readouterr() == ("", "hello\n")
