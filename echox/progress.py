"""What a person sees while work goes on: which step of how many, a bar on a terminal or a line now and then elsewhere, time left.

    with Bar("encoding questions", len(clips), unit="clip") as bar: ... bar.update(8)
    for row in progress(rows, "measuring rows", unit="row"): ...
    with waiting("loading the language model"): ...     # speaks only if it takes long

All of it goes to stderr. Within a `StepClock` (see `echox.step_costs`) bars also say how long the whole command will take.
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

from echox.step_costs import StepClock, duration

LINE_EVERY_S = 30.0  # between lines where there is no terminal to draw a bar on
WAIT_S = 2.0  # work that is done sooner needs no word
SETTLED = 32  # units after which their rate is believed, or one in a hundred where that is less
NARROWEST = 20  # columns of a terminal below which a bar says nothing

T = TypeVar("T")

_clock: StepClock | None = None
_speaks = True


def be_silent() -> None:
    """Say nothing any more: for processes that share their work with one that speaks."""
    global _speaks
    _speaks = False


def skip() -> None:
    """A part of this step was found done by an earlier run, so that its cost is not the whole step's."""
    if _clock is not None:
        _clock.is_whole = False


def say(sentence: str) -> None:
    """A sentence on stderr that does not break a bar."""
    tqdm.write(sentence, file=sys.stderr)
    sys.stderr.flush()


@contextmanager
def step_of(clock: StepClock) -> Iterator[None]:
    """Bars in this block belong to a step of a longer work; what it cost is written down at the end, if it ends well."""
    global _clock
    before, _clock = _clock, clock
    try:
        yield
        if _speaks:
            clock.keep()
    finally:
        _clock = before


class Bar:
    """How far a piece of work is: drawn on a terminal; elsewhere a line every half minute, and one at the end of what took long.

    Time spent in a bar inside another, as validation is inside training, counts as the inner one's alone.
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
        """
        Args:
            label: what is done, which the same work has in every run.
            total: units of work in all; None where nobody knows.
            initial: units that were done by an earlier run.
            shows: False draws nothing, as for work of which another process tells.
            in_bytes: units are bytes, shown as kB and MB.
        """
        self.label, self.total, self.unit, self.n = label, total, unit, initial
        self.initial, self.shows, self.in_bytes = initial, shows and _speaks, in_bytes
        self._note = ""
        self._spent_s, self._since_s = 0.0, time.monotonic()
        self._line_s = self._since_s
        self._drawn: tqdm | None = None
        self._ended = threading.Event()

    def __enter__(self) -> Bar:
        if Bar._open:
            Bar._open[-1]._pause()
        Bar._open.append(self)
        self._since_s = self._line_s = time.monotonic()
        if self.shows and self.total != self.initial:
            if _on_terminal():
                self._drawn = self._draw()
            else:
                threading.Thread(target=self._tell, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._ended.set()
        self._pause()
        Bar._open.remove(self)
        if Bar._open:
            Bar._open[-1]._since_s = time.monotonic()
        if kind is None and _clock is not None and self.n:
            _clock.add(self.label, self.total or self.n, self.done, self._spent_s)
        if self._drawn is not None:
            self._drawn.close()
        elif kind is None and self.shows and self._spent_s >= WAIT_S:
            self._write_line(", ".join([*([self._note] if self._note else []), f"took {duration(self._spent_s)}"]))

    def update(self, count: int = 1, note: str | None = None) -> None:
        """So many units more are done; `note` stands beside the bar until another does."""
        self.n += count
        if note is not None:
            self._note = note
        if self._drawn is not None:
            # The time left is worked out where the bar is drawn, a few times a second.
            if self._drawn.update(count):
                self._drawn.set_postfix_str(self._beside(), refresh=False)
        elif self.shows and self.n != self.total:
            self._write_line_if_due()

    def _tell(self) -> None:
        """Lines for work whose units take minutes each, from a thread beside it."""
        while not self._ended.wait(LINE_EVERY_S / 10):
            # Inside this bar another may be open, which tells for both.
            if Bar._open and Bar._open[-1] is self:
                self._write_line_if_due()

    def _write_line_if_due(self) -> None:
        if time.monotonic() - self._line_s >= LINE_EVERY_S:
            self._write_line(self._beside())

    @property
    def done(self) -> int:
        """Units done since the bar was opened."""
        return self.n - self.initial

    @property
    def spent_s(self) -> float:
        """Seconds in this bar and in none inside it."""
        running = Bar._open and Bar._open[-1] is self
        return self._spent_s + (time.monotonic() - self._since_s if running else 0.0)

    def left_s(self) -> float | None:
        """Seconds until the end at the rate so far, or at an earlier run's while this one has hardly begun; None where nobody knows."""
        if self.total is None:
            return None
        left = max(0, self.total - self.n)
        # The first of many units also wait for processes to start, which says nothing of the others.
        if self.done >= min(SETTLED, self.total / 100) and self.done and self.spent_s >= WAIT_S:
            return left * self.spent_s / self.done
        known_s = _clock.unit_s(self.label) if _clock is not None else None
        return None if known_s is None else left * known_s

    def _pause(self) -> None:
        self._spent_s = self.spent_s
        self._since_s = time.monotonic()

    def _draw(self) -> tqdm:
        return tqdm(
            desc=_headed(self.label),
            total=self.total,
            initial=self.initial,
            unit=self.unit,
            unit_scale=self.in_bytes,
            unit_divisor=1024,
            bar_format=self._format(),
            dynamic_ncols=True,
            leave=False,
        )

    def _format(self) -> str:
        """The bar's line for tqdm, whose own time left would count bars inside this one."""
        unit = "B" if self.in_bytes else f" {self.unit}s"
        if self.total is None:
            return f"{{desc}}: {{n_fmt}}{unit}{{postfix}}"
        return f"{{desc}}: {{percentage:3.0f}}%|{{bar}}| {{n_fmt}}/{{total_fmt}}{unit}{{postfix}}"

    def _beside(self) -> str:
        parts = [self._note] if self._note else []
        if (left_s := self.left_s()) is not None:
            parts.append(f"{duration(left_s)} left")
        if _clock is not None and (in_all := _clock.left_in_all(self.label, self.spent_s, left_s)):
            parts.append(in_all)
        return ", ".join(parts)

    def _write_line(self, facts: str) -> None:
        self._line_s = time.monotonic()
        shown = _in_bytes if self.in_bytes else "{:,}".format
        of_all = f" of {shown(self.total)}" if self.total is not None else ""
        unit = "" if self.in_bytes else f" {self.unit}" if (self.total or self.n) == 1 else f" {self.unit}s"
        say(f"{_headed(self.label)}: {shown(self.n)}{of_all}{unit}" + (f", {facts}" if facts else ""))


def progress(
    items: Iterable[T], label: str, *, unit: str = "row", total: int | None = None, shows: bool = True
) -> Iterator[T]:
    """The items, with a bar that counts those which are done."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Bar(label, total, unit=unit, shows=shows) as bar:
        for item in items:
            yield item
            bar.update()


@contextmanager
def waiting(label: str) -> Iterator[None]:
    """Around work that cannot say how far it is: it is named once it takes long, and again every half minute."""
    ended = threading.Event()
    teller = threading.Thread(target=_tell_of, args=(label, ended), daemon=True)
    teller.start()
    try:
        with Bar(label, 1, shows=False) as bar:
            yield
            bar.update()
    finally:
        ended.set()
        teller.join()


def _tell_of(label: str, ended: threading.Event) -> None:
    began_s = time.monotonic()
    if not _speaks or ended.wait(WAIT_S):
        return
    say(f"{_headed(label)} ...")
    while not ended.wait(LINE_EVERY_S):
        say(f"{_headed(label)} ... {duration(time.monotonic() - began_s)} so far")


def _headed(label: str) -> str:
    return label if _clock is None else f"[{_clock.number}/{_clock.count}] {label}"


def _in_bytes(count: int) -> str:
    return tqdm.format_sizeof(count, "B", 1024)


def _on_terminal() -> bool:
    """Whether stderr is a terminal that has room for a bar; some say that they have no columns, or no lines, at all."""
    try:
        size = os.get_terminal_size(sys.stderr.fileno())
        return sys.stderr.isatty() and size.columns >= NARROWEST and size.lines > 1
    except (OSError, ValueError, AttributeError):
        return False
