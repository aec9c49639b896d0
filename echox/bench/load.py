"""`echox-bench load`: what a busy machine costs, alone, beside processes that keep the cores busy, and two at once."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from echox.bench.load_probe import STEPS
from echox.bench.measure import machine, write_tables
from echox.device import multiplies_bf16_fast
from echox.errors import ConfigError, EchoxError
from echox.number_format import VARIABLE
from echox.progress import progress

SPINS = "GOMP_SPINCOUNT"
BUSY_RATIO, TOGETHER_SHARE = 3.0, 0.85  # bars of the project, with as many busy processes as cores


@dataclass(kw_only=True, slots=True)
class LoadBenchConfig:
    """A busy machine: steps of training and of speaking alone, beside processes that keep the cores busy, and two at once."""

    busy: int = field(default_factory=lambda: os.cpu_count() or 1)
    """Processes that compute without end beside the measured one; by default one for each core."""
    spins: list[int] = field(default_factory=list)
    """How often waiting threads look before they sleep (GOMP_SPINCOUNT), each measured; none takes what every command uses. GNU's own
    default is 300000."""
    seconds: float = 4.0
    """Time of one measurement."""
    rounds: int = 3
    """Measurements of each case, which take turns, and of which medians are taken."""
    output: Path = Path("runs/bench/load")
    """Where the tables go: this name with .md and .json."""

    def __post_init__(self) -> None:
        if min(self.busy, self.rounds) < 1 or self.seconds <= 0 or min(self.spins, default=0) < 0:
            raise ConfigError(
                f"busy {self.busy} and rounds {self.rounds} must be 1 or more, seconds {self.seconds:g} more than 0, spins {self.spins} 0 or more"
            )


@dataclass(frozen=True, slots=True)
class LoadTime:
    """A step under load; medians."""

    step: str
    spins: str
    alone_ms: float
    alone_cpu_ms: float  # of all the process's threads
    busy_ratio: float  # its time beside busy processes over its time alone
    busy_cpu_ms: float
    together_share: float  # steps of two at once over those of one alone


def bench_load(config: LoadBenchConfig) -> None:
    """Measure, print and write the tables."""
    cases = [(step, str(spins)) for step in STEPS for spins in config.spins or [os.environ.get(SPINS, "default")]]
    with ExitStack() as stack:
        pairs = {case: [stack.enter_context(_probe(*case)) for _ in range(2)] for case in cases}
        times = [_measured(*case, pairs[case], config) for case in progress(cases * config.rounds, "measuring", unit="case")]
    lines = [_median([time for time in times if (time.step, time.spins) == case]) for case in cases]
    facts = machine(torch.device("cpu")) | {"busy processes": str(config.busy), "rounds": f"{config.rounds} of {config.seconds:g} s"}
    page = _page(lines, config, facts)
    write_tables(config.output, page, {"machine": facts, "lines": [asdict(line) for line in lines]})
    print(page)


def _measured(step: str, spins: str, pair: Sequence[subprocess.Popen[str]], config: LoadBenchConfig) -> LoadTime:
    (alone,) = _repeat(pair[:1], config.seconds)
    with _busy(config.busy):
        (beside,) = _repeat(pair[:1], config.seconds)
    two = _repeat(pair, config.seconds)
    return LoadTime(
        step,
        spins,
        alone_ms=alone["step_ms"],
        alone_cpu_ms=alone["cpu_ms"],
        busy_ratio=beside["step_ms"] / alone["step_ms"],
        busy_cpu_ms=beside["cpu_ms"],
        together_share=sum(alone["step_ms"] / each["step_ms"] for each in two),
    )


def _median(times: Sequence[LoadTime]) -> LoadTime:
    names = ("alone_ms", "alone_cpu_ms", "busy_ratio", "busy_cpu_ms", "together_share")
    return LoadTime(times[0].step, times[0].spins, **{name: statistics.median(getattr(time, name) for time in times) for name in names})


@contextmanager
def _probe(step: str, spins: str) -> Iterator[subprocess.Popen[str]]:
    """A process that is ready to repeat a step; OpenMP reads the spins when it starts.

    Raises:
        EchoxError: it failed.
    """
    environment = os.environ | {VARIABLE: "bf16" if multiplies_bf16_fast(torch.device("cpu")) else "fp32"}
    environment |= {SPINS: spins} if spins.isdigit() else {}
    command = [sys.executable, "-m", "echox.bench.load_probe", step]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        _answer(process)
        yield process


def _repeat(processes: Sequence[subprocess.Popen[str]], seconds: float) -> list[dict[str, float]]:
    """Let processes repeat their steps at the same time."""
    for process in processes:
        print(seconds, file=process.stdin, flush=True)
    return [json.loads(_answer(process)) for process in processes]


def _answer(process: subprocess.Popen[str]) -> str:
    if not (line := process.stdout.readline()):
        raise EchoxError("a process that was to be measured ended with an error, which it printed above")
    return line


@contextmanager
def _busy(count: int) -> Iterator[None]:
    """Within, so many processes compute without end."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


HEAD = ["step", "spins", "alone", "of CPU", "beside busy processes", "of CPU", "two at once"]


def _page(lines: Sequence[LoadTime], config: LoadBenchConfig, facts: dict[str, str]) -> str:
    table = [HEAD, ["---"] * len(HEAD), *map(_row, lines)]
    body = "\n".join("| " + " | ".join(row) + " |" for row in table)
    notes = [
        f"Medians of {config.rounds} rounds in turns, each measurement in a process of its own. Beside {config.busy} processes that compute without end, a step takes so",
        "many times as long as alone; two at once do so many of the steps that one does alone. CPU is of all threads of the process: what",
        "grows beside others is spent on waiting. A thread that waits for another looks so many times (GOMP_SPINCOUNT; GNU's default is",
        f"300000) before it sleeps. The bars, with a busy process for each core: at most {BUSY_RATIO:g} times, and at least {TOGETHER_SHARE:g}.",
    ]
    return "\n".join(["# Under load", "", body, "", *notes, "", "; ".join(f"{name} {value}" for name, value in facts.items()) + "."]) + "\n"


def _row(line: LoadTime) -> list[str]:
    return [
        line.step,
        line.spins,
        f"{line.alone_ms:.1f} ms",
        f"{line.alone_cpu_ms:.1f} ms",
        f"{line.busy_ratio:.2f} times",
        f"{line.busy_cpu_ms:.1f} ms",
        f"{line.together_share:.2f}",
    ]
