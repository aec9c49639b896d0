"""Progress on stderr: the step of how many, a bar on a terminal or lines elsewhere, time left.

    with Bar("encoding questions", len(clips), unit="clip") as bar: ... bar.update(8)
    for row in progress(rows, "measuring rows", unit="row"): ...
    with waiting("loading the language model"): ...     # prints only if it takes long

Within a `StepClock` (see `echox.core.step_costs`) bars also show how long the whole command
will take.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

from tqdm import tqdm

from echox.core.step_costs import StepClock, duration

LINE_EVERY_S = 30.0  # between lines where there is no terminal to draw a bar on
WAIT_S = 2.0  # work that is done sooner prints nothing
SETTLED = 32  # units after which their rate is believed, or one in a hundred where that is less
NARROWEST = 20  # columns of a terminal below which a bar shows nothing of use

T = TypeVar("T")

# One of each for the process, because progress belongs to its stderr and not to a caller.
_clock: StepClock | None = None
_is_enabled = True


def be_silent() -> None:
    """Print nothing any more; for processes that share their work with one that prints."""
    global _is_enabled
    _is_enabled = False


def skip() -> None:
    """Note that an earlier run did a part of this step, so that its cost is not the full one."""
    if _clock is not None:
        _clock.runs_in_full = False


def print_message(sentence: str) -> None:
    """Print a sentence to stderr without breaking a bar that is drawn there."""
    tqdm.write(sentence, file=sys.stderr)
    sys.stderr.flush()


@contextmanager
def step_of(clock: StepClock) -> Iterator[None]:
    """Let bars in a block belong to a step of a longer command.

    The step's cost is recorded at the end, unless the block fails.
    """
    global _clock
    before, _clock = _clock, clock
    try:
        yield
        # Of processes that share a step, one records it.
        if _is_enabled:
            clock.record()
    finally:
        _clock = before


class Bar:
    """A progress bar on a terminal; elsewhere a line every 30 seconds and one at the end.

    Without a terminal, work of less than 2 seconds prints no line at its end. Seconds spent in
    a bar inside another, such as validation inside training, count as the inner bar's alone.

    Args:
        label: what is done; the same work has the same label in every run.
        total: units of work in all; None if that is not known.
        unit: the name of a unit, in the singular.
        initial: units that an earlier run did.
        shows: False draws nothing, as for work whose progress another process shows.
        in_bytes: units are bytes, shown as kB and MB.
    """

    _open: list[Bar] = []  # the outermost first

    def __init__(
        self,
        label: str,
        total: int | None,
        *,
        unit: str = "row",
        initial: int = 0,
        shows: bool = True,
        in_bytes: bool = False,
    ) -> None:
        self.label, self.total, self.unit, self.n = label, total, unit, initial
        self.initial, self.shows, self.in_bytes = initial, shows and _is_enabled, in_bytes
        self._note = ""
        self._spent_s, self._since_s = 0.0, time.monotonic()
        self._line_s = self._since_s  # when the last line was written
        self._terminal_bar: tqdm | None = None
        self._closed = threading.Event()

    def within_total(self, units: int) -> int:
        """Return units of work, no more than the total where that is known."""
        return units if self.total is None else min(units, self.total)

    def __enter__(self) -> Bar:
        if Bar._open:
            Bar._open[-1]._pause()
        Bar._open.append(self)
        self._since_s = self._line_s = time.monotonic()
        # Work that an earlier run completed shows nothing.
        if self.shows and self.total != self.initial:
            if _has_terminal():
                self._terminal_bar = self._make_terminal_bar()
            else:
                # A daemon, because a bar in a generator that is dropped may never be closed.
                threading.Thread(target=self._write_lines, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._closed.set()
        self._pause()
        # By identity, not from the end: bars of generators may close in another order.
        Bar._open.remove(self)
        if Bar._open:
            Bar._open[-1]._since_s = time.monotonic()
        # What failed took another time than the work does, so it is no basis for a forecast.
        if kind is None and _clock is not None and self.n:
            _clock.add(self.label, self.total or self.n, self.done, self._spent_s)
        if self._terminal_bar is not None:
            self._terminal_bar.close()
        elif kind is None and self.shows and self._spent_s >= WAIT_S:
            took = f"took {duration(self._spent_s)}"
            self._write_line(f"{self._note}, {took}" if self._note else took)

    def update(self, count: int = 1, note: str | None = None) -> None:
        """Count units that are done.

        Args:
            count: how many more.
            note: text beside the bar, which stays until another replaces it.
        """
        self.n += count
        if note is not None:
            self._note = note
        if self._terminal_bar is not None:
            # The time left is computed only when tqdm draws the bar, a few times a second.
            if self._terminal_bar.update(count):
                self._terminal_bar.set_postfix_str(self._status(), refresh=False)
        elif self.shows and self.n != self.total:
            self._write_line_if_due()

    def _write_lines(self) -> None:
        """Write lines from a thread, for work whose units take minutes each."""
        while not self._closed.wait(LINE_EVERY_S / 10):
            # The innermost bar writes for those around it.
            if Bar._open and Bar._open[-1] is self:
                self._write_line_if_due()

    def _write_line_if_due(self) -> None:
        if time.monotonic() - self._line_s >= LINE_EVERY_S:
            self._write_line(self._status())

    @property
    def done(self) -> int:
        """Units done since the bar was opened."""
        return self.n - self.initial

    @property
    def spent_s(self) -> float:
        """Seconds in this bar and in none inside it."""
        is_innermost = Bar._open and Bar._open[-1] is self
        return self._spent_s + (time.monotonic() - self._since_s if is_innermost else 0.0)

    def left_s(self) -> float | None:
        """Return the seconds until the end, or None if they are not known.

        They follow from the rate so far, or from an earlier run's rate at the beginning.
        """
        if self.total is None:
            return None
        left = max(0, self.total - self.n)
        # The first of many units also wait for processes to start, which makes them slower.
        if self.done >= min(SETTLED, self.total / 100) and self.done and self.spent_s >= WAIT_S:
            return left * self.spent_s / self.done
        unit_s = _clock.unit_s(self.label) if _clock is not None else None
        return None if unit_s is None else left * unit_s

    def _pause(self) -> None:
        self._spent_s = self.spent_s
        self._since_s = time.monotonic()

    def _make_terminal_bar(self) -> tqdm:
        return tqdm(
            desc=_with_step(self.label),
            total=self.total,
            initial=self.initial,
            unit=self.unit,
            unit_scale=self.in_bytes,
            unit_divisor=1024,
            bar_format=self._bar_format(),
            dynamic_ncols=True,
            leave=False,
        )

    def _bar_format(self) -> str:
        # Without tqdm's own time left, which would count bars inside this one.
        unit = "B" if self.in_bytes else f" {self.unit}s"
        if self.total is None:
            return f"{{desc}}: {{n_fmt}}{unit}{{postfix}}"
        return f"{{desc}}: {{percentage:3.0f}}%|{{bar}}| {{n_fmt}}/{{total_fmt}}{unit}{{postfix}}"

    def _status(self) -> str:
        """Return the note, the time left in the bar and the time left in all."""
        parts = [self._note] if self._note else []
        if (left_s := self.left_s()) is not None:
            parts.append(f"{duration(left_s)} left")
        if _clock is not None and (in_all := _clock.left_in_all(self.label, self.spent_s, left_s)):
            parts.append(in_all)
        return ", ".join(parts)

    def _write_line(self, facts: str) -> None:
        self._line_s = time.monotonic()
        of_all = f" of {self._number_text(self.total)}" if self.total is not None else ""
        # Sizes carry their own unit.
        unit = "" if self.in_bytes else f" {self.unit}{'s' if (self.total or self.n) != 1 else ''}"
        line = f"{_with_step(self.label)}: {self._number_text(self.n)}{of_all}{unit}"
        print_message(line + (f", {facts}" if facts else ""))

    def _number_text(self, count: int) -> str:
        return tqdm.format_sizeof(count, "B", 1024) if self.in_bytes else f"{count:,}"


def progress(
    items: Iterable[T],
    label: str,
    *,
    unit: str = "row",
    total: int | None = None,
    shows: bool = True,
) -> Iterator[T]:
    """Yield the items within a bar that counts those which are done.

    Args:
        items: the items; their number is used if they have one.
        label, unit, shows: as of `Bar`.
        total: the number of items, where they do not have one.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Bar(label, total, unit=unit, shows=shows) as bar:
        for item in items:
            yield item
            # After the caller's work on the item, so that a bar never shows more than is done.
            bar.update()


@contextmanager
def waiting(label: str) -> Iterator[None]:
    """Name work that cannot count its progress: after 2 seconds, and then every 30 seconds."""
    ended = threading.Event()
    thread = threading.Thread(target=_write_waiting_lines, args=(label, ended), daemon=True)
    thread.start()
    try:
        # A hidden bar of one unit records what the work costs in its step.
        with Bar(label, 1, shows=False) as bar:
            yield
            bar.update()
    finally:
        ended.set()
        # Otherwise a line could appear after the work's own output.
        thread.join()


def _write_waiting_lines(label: str, ended: threading.Event) -> None:
    began_s = time.monotonic()
    if not _is_enabled or ended.wait(WAIT_S):
        return
    print_message(f"{_with_step(label)} ...")
    while not ended.wait(LINE_EVERY_S):
        print_message(f"{_with_step(label)} ... {duration(time.monotonic() - began_s)} so far")


def _with_step(label: str) -> str:
    return label if _clock is None else f"[{_clock.number}/{_clock.count}] {label}"


def _has_terminal() -> bool:
    """Return whether stderr is a terminal with space for a bar."""
    try:
        size = os.get_terminal_size(sys.stderr.fileno())
        # Some terminals report no columns, or no lines, at all.
        return sys.stderr.isatty() and size.columns >= NARROWEST and size.lines > 1
    # A replaced stderr, as under pytest or in a notebook, may have no descriptor.
    except (OSError, ValueError, AttributeError):
        return False
