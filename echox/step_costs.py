"""What the steps of a longer work cost on this machine: measured each time, kept in a file, and asked for the time that is left.

The file holds, for each step, its seconds, the amount of work they were for, and its phases: what a bar counted, its units, seconds
and how often it was opened. Nothing is guessed: the time left in all is known once every step has run here before.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

STEADY_S = 5.0  # measured seconds that weigh as much as the expectation they correct


@dataclass(slots=True)
class Phase:
    """One kind of bar within a step."""

    units: float = 0.0
    seconds: float = 0.0
    times: int = 0


@dataclass(slots=True)
class StepCost:
    """What a step took when it was done whole."""

    seconds: float
    work: float  # the amount this was for, in a unit of the step's own
    phases: dict[str, Phase] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """A step that is to come."""

    name: str
    title: str
    work: float = 1.0  # the amount there is to do in all, in a unit of the step's own
    left: float = 1.0  # the share of it that is not done yet


class StepCosts:
    """The costs in one file; a file that is missing or damaged holds none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.steps: dict[str, StepCost] = {}
        self.pace: dict[str, tuple[float, float]] = {}  # step -> seconds of what was done last, and what was expected of that
        try:
            self._read(json.loads(path.read_text("utf-8")))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            self.steps, self.pace = {}, {}

    def _read(self, data: Mapping[str, dict]) -> None:
        for name, found in data.items():
            phases = {label: Phase(**phase) for label, phase in found["phases"].items()}
            self.steps[name] = StepCost(float(found["seconds"]), float(found["work"]), phases)
            self.pace[name] = (float(found["pace"][0]), float(found["pace"][1]))

    def keep(self, name: str, cost: StepCost, pace: tuple[float, float]) -> None:
        """Write down one step's cost beside the others'."""
        self.steps[name], self.pace[name] = cost, pace
        data = {name: asdict(cost) | {"pace": self.pace[name]} for name, cost in self.steps.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_name(f".{self.path.name}.partial")
        unfinished.write_text(json.dumps(data, indent=1) + "\n", "utf-8")
        unfinished.replace(self.path)

    def expected_s(self, step: PlannedStep) -> float | None:
        """Seconds that what is left of a step should take; None where it never ran here."""
        if step.left == 0:
            return 0.0
        cost = self.steps.get(step.name)
        return None if cost is None else cost.seconds * step.left * step.work / cost.work


@dataclass(slots=True)
class StepClock:
    """Measures one step, and says how much time is left in it and in those after it. It travels to a step's own process."""

    path: Path  # of the costs
    number: int  # from 1
    count: int
    step: PlannedStep
    later_s: float = 0.0  # of the steps after it, as far as their costs are known
    unknown: int = 0  # steps after it that never ran here
    slowness: float = 1.0  # what the steps before took, over what was expected of them
    known_s: float | None = None  # seconds this step should take; None where it never ran here
    before: StepCost | None = None
    began_s: float = field(default_factory=lambda: time.monotonic())
    phases: dict[str, Phase] = field(default_factory=dict)
    spent_s: float = 0.0  # in bars that are closed
    is_whole: bool = True  # nothing was found done by an earlier run

    def title(self) -> str:
        """The line a step begins with."""
        return f"step {self.number} of {self.count}: {self.step.title}{self._outlook()}"

    def _outlook(self) -> str:
        known_s = self.later_s + (self.known_s or 0.0)
        unknown = self.unknown + (self.known_s is None)
        never = f"{unknown} step{'s' if unknown > 1 else ''} never ran here before"
        if not unknown:
            return f"; about {duration(known_s)} left in all" if known_s >= 1 else ""
        if known_s < STEADY_S:
            return f"; time left in all is not known: {never}"
        return f"; over {duration(known_s)} left in all: {never}"

    def add(self, label: str, total: float, done: float, seconds: float) -> None:
        """A bar ended: `done` of `total` units took so many seconds; the others were done by an earlier run."""
        self.is_whole = self.is_whole and done == total
        self.spent_s += seconds
        if not done:
            return
        phase = self.phases.setdefault(label, Phase())
        phase.units += total
        phase.seconds += seconds * total / done
        phase.times += 1

    def unit_s(self, label: str) -> float | None:
        """Seconds a unit of a phase should take; None where it never ran here."""
        found = self.before.phases.get(label) if self.before is not None else None
        return None if found is None or not found.units else found.seconds / found.units * self.slowness

    def left_in_all(self, label: str, spent_s: float, left_s: float | None) -> str:
        """The time left in all, while a bar is open that was `spent_s` seconds so far and takes `left_s` more."""
        if left_s is None or self.before is None and self.number < self.count:
            return ""
        over = "over " if self.unknown else ""
        return f"{over}{duration(left_s + self._after(label, spent_s) + self.later_s)} in all"

    def _after(self, label: str, spent_s: float) -> float:
        """Seconds of this step that belong to no bar or to bars that are not opened yet."""
        if self.before is None:
            return 0.0
        known, now = self.before.phases, self.phases
        to_come = sum(
            phase.seconds * max(0, phase.times - (now[name].times if name in now else 0)) / phase.times
            for name, phase in known.items()
            if name != label
        )
        beside_s = self.before.seconds - sum(phase.seconds for phase in known.values())
        passed_s = time.monotonic() - self.began_s - spent_s - self.spent_s
        return (to_come + max(0.0, beside_s - max(0.0, passed_s))) * self.slowness

    def keep(self) -> None:
        """Write down what the step cost; what an earlier run had done of it counts as it did then."""
        costs = StepCosts(self.path)
        before = costs.steps.get(self.step.name)
        if before is None and self.step.left == 0:
            return  # it took nothing now, and what it took then is not known
        if before is None or (self.is_whole and self.phases and self.step.left == 1.0):
            # Of a phase that an earlier run had begun, all of it.
            beside_s = time.monotonic() - self.began_s - self.spent_s
            cost = StepCost(beside_s + sum(phase.seconds for phase in self.phases.values()), self.step.work, self.phases)
        else:
            cost = _corrected(before, self.phases)
        costs.keep(self.step.name, cost, self._pace(before))

    def _pace(self, before: StepCost | None) -> tuple[float, float]:
        """Seconds of phases that ran before too, and what they took then for as many units."""
        known = {name: phase for name, phase in (before.phases if before else {}).items() if phase.units and name in self.phases}
        expected_s = sum(phase.seconds / phase.units * self.phases[name].units for name, phase in known.items())
        return sum(self.phases[name].seconds for name in known), expected_s


def _corrected(before: StepCost, phases: Mapping[str, Phase]) -> StepCost:
    """A step's earlier cost with the phases that ran again, whole or not, as they are now."""
    changed_s = sum(phase.seconds - (before.phases[name].seconds if name in before.phases else 0.0) for name, phase in phases.items())
    return StepCost(max(0.0, before.seconds + changed_s), before.work, {**before.phases, **phases})


def clock_of(path: Path, steps: Sequence[PlannedStep], number: int, done: Sequence[str] = ()) -> StepClock:
    """The clock of a step, from 1, among all.

    Args:
        path: of the file with the costs.
        done: names of the steps that this run did before, by whose pace what is expected is corrected.
    """
    costs = StepCosts(path)
    took_s = sum(costs.pace[name][0] for name in done if name in costs.pace)
    expected_s = sum(costs.pace[name][1] for name in done if name in costs.pace)
    slowness = (took_s + STEADY_S) / (expected_s + STEADY_S)
    expected = [costs.expected_s(step) for step in steps[number - 1 :]]
    here, later = expected[0], expected[1:]
    return StepClock(
        path=path,
        number=number,
        count=len(steps),
        step=steps[number - 1],
        later_s=slowness * sum(seconds for seconds in later if seconds is not None),
        unknown=sum(seconds is None for seconds in later),
        slowness=slowness,
        known_s=None if here is None else slowness * here,
        before=costs.steps.get(steps[number - 1].name),
    )


def duration(seconds: float) -> str:
    """A time as people say it: 8 s, 1 min 20 s, 14 min, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 600:
        return f"{whole // 60} min" + (f" {whole % 60} s" if whole % 60 else "")
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h" + (f" {minutes % 60} min" if minutes % 60 else "")
