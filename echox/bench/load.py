"""`echox-bench load`: steps of training and decoding on a busy machine.

Each step is measured alone, beside processes that keep the cores busy, and twice at once.
"""

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
from echox.bench.measure import machine
from echox.bench.tables import facts_line, table_lines, write_tables
from echox.core.device import multiplies_bf16_fast
from echox.core.errors import ConfigError, EchoxError
from echox.core.number_format import VARIABLE
from echox.core.progress import progress

SPINS = "GOMP_SPINCOUNT"  # variable of the environment that GNU's OpenMP reads
# Bars of the project, with as many busy processes as cores.
BUSY_RATIO, TOGETHER_SHARE = 3.0, 0.85


@dataclass(kw_only=True, slots=True)
class LoadBenchConfig:
    """Time steps of training and decoding alone, beside busy processes, and two at once.

    Raises:
        ConfigError: a number is out of range.
    """

    busy: int = field(default_factory=lambda: os.cpu_count() or 1)
    """Processes that compute without end beside the measured one; by default one for each core."""
    spins: list[int] = field(default_factory=list)
    """How often waiting threads look before they sleep (GOMP_SPINCOUNT), each measured; none takes
    what every command uses. GNU's own default is 300000."""
    seconds: float = 4.0
    """Time of one measurement."""
    rounds: int = 3
    """Measurements of each case, which alternate, and of which medians are taken."""
    output: Path = Path("runs/bench/load")
    """Where the tables go: this name with .md and .json."""

    def __post_init__(self) -> None:
        if min(self.busy, self.rounds) < 1 or self.seconds <= 0 or min(self.spins, default=0) < 0:
            raise ConfigError(
                f"busy {self.busy} and rounds {self.rounds} must be 1 or more, "
                f"seconds {self.seconds:g} more than 0, spins {self.spins} 0 or more"
            )


@dataclass(frozen=True, slots=True)
class LoadTime:
    """Times of a step under load; medians over rounds."""

    step: str
    spins: str
    alone_ms: float
    alone_cpu_ms: float  # of all the process's threads
    busy_ratio: float  # its time beside busy processes over its time alone
    busy_cpu_ms: float
    together_share: float  # steps of two at once over those of one alone


def bench_load(config: LoadBenchConfig) -> None:
    """Measure steps on a busy machine, write the tables and print them.

    Raises:
        EchoxError: a measured process failed.
    """
    spins = list(map(str, config.spins)) or [os.environ.get(SPINS, "default")]
    cases = [(step, each) for step in STEPS for each in spins]
    with ExitStack() as stack:
        # All processes are started first, so that a round measures nothing but steps.
        pairs = {case: [stack.enter_context(_probe(*case)) for _ in range(2)] for case in cases}
        times = [
            _measure(*case, pairs[case], config)
            for case in progress(cases * config.rounds, "measuring", unit="case")
        ]
    lines = [_median([time for time in times if (time.step, time.spins) == case]) for case in cases]
    facts = machine(torch.device("cpu")) | {
        "busy processes": str(config.busy),
        "rounds": f"{config.rounds} of {config.seconds:g} s",
    }
    page = _page(lines, config, facts)
    write_tables(config.output, page, {"machine": facts, "lines": [asdict(line) for line in lines]})
    print(page)


def _measure(
    step: str, spins: str, pair: Sequence[subprocess.Popen[str]], config: LoadBenchConfig
) -> LoadTime:
    """One round of one case, of which the two processes of `pair` are ready."""
    (alone,) = _repeat(pair[:1], config.seconds)
    with _busy_processes(config.busy):
        (beside,) = _repeat(pair[:1], config.seconds)
    together = _repeat(pair, config.seconds)
    return LoadTime(
        step,
        spins,
        alone_ms=alone["step_ms"],
        alone_cpu_ms=alone["cpu_ms"],
        busy_ratio=beside["step_ms"] / alone["step_ms"],
        busy_cpu_ms=beside["cpu_ms"],
        # Both processes' steps per second over those of one alone.
        together_share=sum(alone["step_ms"] / time["step_ms"] for time in together),
    )


def _median(times: Sequence[LoadTime]) -> LoadTime:
    names = ("alone_ms", "alone_cpu_ms", "busy_ratio", "busy_cpu_ms", "together_share")
    return LoadTime(
        times[0].step,
        times[0].spins,
        **{name: statistics.median(getattr(time, name) for time in times) for name in names},
    )


@contextmanager
def _probe(step: str, spins: str) -> Iterator[subprocess.Popen[str]]:
    """A process that is ready to repeat a step.

    Raises:
        EchoxError: it failed.
    """
    # In the environment, because OpenMP reads the spins once, when the process starts. With the
    # number format of this process, which the other then need not measure on a busy machine.
    environment = os.environ | {
        VARIABLE: "bf16" if multiplies_bf16_fast(torch.device("cpu")) else "fp32"
    }
    environment |= {SPINS: spins} if spins.isdigit() else {}
    command = [sys.executable, "-m", "echox.bench.load_probe", step]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        _read_line(process)  # "ready"
        yield process


def _repeat(processes: Sequence[subprocess.Popen[str]], seconds: float) -> list[dict[str, float]]:
    """Let processes repeat their steps at the same time, and return their mean times."""
    # All are started before the first result is read.
    for process in processes:
        print(seconds, file=process.stdin, flush=True)
    return [json.loads(_read_line(process)) for process in processes]


def _read_line(process: subprocess.Popen[str]) -> str:
    # An empty line is the end of the output, not a line without text.
    if process.stdout is None or not (line := process.stdout.readline()):
        raise EchoxError(
            "a process that was to be measured ended with an error, which it printed above"
        )
    return line


@contextmanager
def _busy_processes(count: int) -> Iterator[None]:
    """Keep so many processes computing for the duration of the block."""
    # A bare loop each, which keeps exactly one core busy.
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


HEAD = ["step", "spins", "alone", "of CPU", "beside busy processes", "of CPU", "two at once"]


def _page(lines: Sequence[LoadTime], config: LoadBenchConfig, facts: dict[str, str]) -> str:
    notes = [
        f"Medians of {config.rounds} rounds in turns, each measurement in a process of its own. "
        f"Beside {config.busy} processes that compute without end, a step takes so",
        "many times as long as alone; two at once do so many of the steps that one does alone. CPU "
        "is of all threads of the process: what",
        "grows beside others is spent on waiting. A thread that waits for another looks so many "
        "times (GOMP_SPINCOUNT; GNU's default is",
        "300000) before it sleeps. The bars, with a busy process for each core: at most "
        f"{BUSY_RATIO:g} times, and at least {TOGETHER_SHARE:g}.",
    ]
    table = table_lines(HEAD, map(_row, lines))
    return "\n".join(["# Under load", "", *table, "", *notes, "", facts_line(facts)]) + "\n"


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
