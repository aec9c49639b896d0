"""Costs of the steps of a long command on this machine, and the time that is left.

Each run measures its steps and records their costs in a JSON file: for each step its seconds,
the amount of work that they were for, and its phases, which are the kinds of bars in it with
their units, seconds and number of bars. Nothing is guessed: the time left in all is known once
every step has run on this machine.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from echox.core.files import atomic_write

# Measured seconds that weigh as much as the expectation they correct, so that a step of a few
# seconds does not change the forecast for hours.
STEADY_S = 5.0


@dataclass(slots=True)
class Phase:
    """The bars of one label within a step, added up."""

    units: float = 0.0
    seconds: float = 0.0
    times: int = 0  # how many bars


@dataclass(slots=True)
class StepCost:
    """The cost of a step that ran from its beginning to its end."""

    seconds: float
    work: float  # the amount this was for, in a unit of the step's own
    phases: dict[str, Phase] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """A step of a command that is about to run."""

    name: str
    title: str
    work: float = 1.0  # the amount there is to do in all, in a unit of the step's own
    left: float = 1.0  # the share of it that is not done yet


class StepCosts:
    """The costs in one file; a file that is missing or damaged holds none.

    Args:
        path: the JSON file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.steps: dict[str, StepCost] = {}
        # Step -> seconds of what ran last, and the seconds that were expected of it.
        self.pace: dict[str, tuple[float, float]] = {}
        try:
            self._read(json.loads(path.read_text("utf-8")))
        # Only a forecast depends on the file, so a fault in it must not stop the work.
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            self.steps, self.pace = {}, {}

    def _read(self, data: Mapping[str, dict]) -> None:
        for name, entry in data.items():
            phases = {label: Phase(**phase) for label, phase in entry["phases"].items()}
            self.steps[name] = StepCost(float(entry["seconds"]), float(entry["work"]), phases)
            self.pace[name] = (float(entry["pace"][0]), float(entry["pace"][1]))

    def record(self, name: str, cost: StepCost, pace: tuple[float, float]) -> None:
        """Write one step's cost to the file, beside those of the other steps.

        Args:
            name: the step's name.
            cost: what it took.
            pace: seconds of what ran last, and the seconds that were expected of it.
        """
        self.steps[name], self.pace[name] = cost, pace
        data = {name: asdict(cost) | {"pace": self.pace[name]} for name, cost in self.steps.items()}
        with atomic_write(self.path) as unfinished:
            unfinished.write_text(json.dumps(data, indent=1) + "\n", "utf-8")

    def expected_s(self, step: PlannedStep) -> float | None:
        """Return the seconds that the rest of a step should take, or None if it never ran here."""
        if step.left == 0:
            return 0.0
        cost = self.steps.get(step.name)
        # In proportion to the work, which may have changed with the recipe.
        return None if cost is None else cost.seconds * step.left * step.work / cost.work


@dataclass(slots=True)
class StepClock:
    """Measures one step, and forecasts the time left in it and in the steps after it.

    It is plain data, because it is sent to the process that runs the step.
    """

    path: Path  # of the file with the costs
    number: int  # from 1
    count: int
    step: PlannedStep
    later_s: float = 0.0  # of the steps after it, as far as their costs are known
    unmeasured: int = 0  # steps after it that never ran here
    slowness: float = 1.0  # seconds of the steps before it, over what was expected of them
    known_s: float | None = None  # seconds this step should take; None if it never ran here
    previous: StepCost | None = None
    # The lambda looks the clock up at the call, so that a test can replace it.
    began_s: float = field(default_factory=lambda: time.monotonic())
    phases: dict[str, Phase] = field(default_factory=dict)
    spent_s: float = 0.0  # in bars that are closed
    runs_in_full: bool = True  # False once a part turns out to be done by an earlier run

    def title(self) -> str:
        """Return the line that announces the step, with the time left in all."""
        return f"step {self.number} of {self.count}: {self.step.title}{self._outlook()}"

    def _outlook(self) -> str:
        known_s = self.later_s + (self.known_s or 0.0)
        unmeasured = self.unmeasured + (self.known_s is None)
        never = f"{unmeasured} step{'s' if unmeasured > 1 else ''} never ran here before"
        if not unmeasured:
            return f"; about {duration(known_s)} left in all" if known_s >= 1 else ""
        # "over 2 s left" would mislead where the steps that take hours never ran.
        if known_s < STEADY_S:
            return f"; time left in all is not known: {never}"
        return f"; over {duration(known_s)} left in all: {never}"

    def add(self, label: str, total: float, done: float, seconds: float) -> None:
        """Count a bar that was closed.

        Args:
            label: the bar's label.
            total: units of work in all.
            done: units that this run did; an earlier run did the others.
            seconds: how long these units took.
        """
        self.runs_in_full = self.runs_in_full and done == total
        self.spent_s += seconds
        if not done:
            return
        phase = self.phases.setdefault(label, Phase())
        phase.units += total
        # As if this run had done all units, so that a resumed step does not look cheap.
        phase.seconds += seconds * total / done
        phase.times += 1

    def unit_s(self, label: str) -> float | None:
        """Return the seconds a unit of a bar should take, or None if no such bar ran here."""
        phase = self.previous.phases.get(label) if self.previous is not None else None
        if phase is None or not phase.units:
            return None
        return phase.seconds / phase.units * self.slowness

    def left_in_all(self, label: str, spent_s: float, left_s: float | None) -> str:
        """Return the time left in all as text, or "" while it cannot be told.

        Args:
            label: the bar that is open.
            spent_s: seconds that it has been open.
            left_s: seconds until it ends; None if that is not known.
        """
        # Without an earlier cost, what comes after this bar is known in the last step alone.
        if left_s is None or (self.previous is None and self.number < self.count):
            return ""
        over = "over " if self.unmeasured else ""
        return f"{over}{duration(left_s + self._after(label, spent_s) + self.later_s)} in all"

    def _after(self, label: str, spent_s: float) -> float:
        """Return the seconds of this step outside bars, and in bars that are not open yet."""
        if self.previous is None:
            return 0.0
        earlier = self.previous.phases
        bars_s = sum(
            phase.seconds * max(0, phase.times - self._times(name)) / phase.times
            for name, phase in earlier.items()
            if name != label
        )
        beside_s = self.previous.seconds - sum(phase.seconds for phase in earlier.values())
        passed_s = time.monotonic() - self.began_s - spent_s - self.spent_s
        # Neither may be negative, though updated phases can add up to more than the step took.
        return (bars_s + max(0.0, beside_s - max(0.0, passed_s))) * self.slowness

    def _times(self, label: str) -> int:
        return self.phases[label].times if label in self.phases else 0

    def record(self) -> None:
        """Write the step's cost to the file; work that an earlier run did keeps its cost."""
        costs = StepCosts(self.path)
        previous = costs.steps.get(self.step.name)
        if previous is None and self.step.left == 0:
            return  # nothing ran now, and no earlier cost is known
        # After a resumption only the phases that ran are known anew; the others keep their cost.
        is_complete = self.runs_in_full and self.phases and self.step.left == 1.0
        cost = self._cost() if previous is None or is_complete else _updated(previous, self.phases)
        costs.record(self.step.name, cost, self._pace(previous))

    def _cost(self) -> StepCost:
        # Bars are taken from the phases, which hold the share of an earlier run too.
        beside_s = time.monotonic() - self.began_s - self.spent_s
        seconds = beside_s + sum(phase.seconds for phase in self.phases.values())
        return StepCost(seconds, self.step.work, self.phases)

    def _pace(self, previous: StepCost | None) -> tuple[float, float]:
        """Return the seconds of phases that ran before too, and what as many units took then."""
        earlier = {
            name: phase
            for name, phase in (previous.phases if previous else {}).items()
            if phase.units and name in self.phases
        }
        expected_s = sum(
            phase.seconds / phase.units * self.phases[name].units for name, phase in earlier.items()
        )
        return sum(self.phases[name].seconds for name in earlier), expected_s


def _updated(previous: StepCost, phases: Mapping[str, Phase]) -> StepCost:
    """Return an earlier cost in which the phases that ran again have their new seconds."""
    changed_s = sum(
        phase.seconds - (previous.phases[name].seconds if name in previous.phases else 0.0)
        for name, phase in phases.items()
    )
    seconds = max(0.0, previous.seconds + changed_s)
    return StepCost(seconds, previous.work, {**previous.phases, **phases})


def clock_of(
    path: Path, steps: Sequence[PlannedStep], number: int, done: Sequence[str] = ()
) -> StepClock:
    """Return the clock of one step of a command.

    Args:
        path: of the file with the costs.
        steps: all steps of the command, in order.
        number: the step's number, from 1.
        done: names of the steps that this run did before; their pace corrects the forecast.
    """
    costs = StepCosts(path)
    slowness = _slowness(costs, done)
    expected = [costs.expected_s(step) for step in steps[number - 1 :]]
    expected_s, later = expected[0], expected[1:]
    return StepClock(
        path=path,
        number=number,
        count=len(steps),
        step=steps[number - 1],
        later_s=slowness * sum(seconds for seconds in later if seconds is not None),
        unmeasured=sum(seconds is None for seconds in later),
        slowness=slowness,
        known_s=None if expected_s is None else slowness * expected_s,
        previous=costs.steps.get(steps[number - 1].name),
    )


def _slowness(costs: StepCosts, done: Sequence[str]) -> float:
    """Return the seconds of the steps that are done, over what was expected of them."""
    paces = [costs.pace[name] for name in done if name in costs.pace]
    took_s = sum(seconds for seconds, _ in paces)
    expected_s = sum(seconds for _, seconds in paces)
    return (took_s + STEADY_S) / (expected_s + STEADY_S)


def duration(seconds: float) -> str:
    """Return seconds as people write them: 8 s, 1 min 20 s, 14 min, 2 h 5 min."""
    total_s = round(seconds)
    if total_s < 60:
        return f"{total_s} s"
    # From ten minutes on seconds, and from an hour on half minutes, are false precision.
    if total_s < 600:
        return f"{total_s // 60} min" + (f" {total_s % 60} s" if total_s % 60 else "")
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h" + (f" {minutes % 60} min" if minutes % 60 else "")
