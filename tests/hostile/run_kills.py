"""Kill trainings by SIGKILL at random file operations, resume them, and compare the weights.

    python tests/hostile/run_kills.py --kills 200

Each trial trains all stages in two processes that share one cache; one is killed before a file
operation drawn at random, once or several times, and resumed. Both must end with the weights of a
run that nobody disturbed, to the bit, and leave no partial file behind.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import NamedTuple

import hostile_environment  # noqa: F401
from hostile_home import STAGES, training_words, write_questions
from hostile_process import Ending, Outcome, Started, start, wait
from tqdm import tqdm

from echox.core.files import sha256_of
from echox_cli import train

SECONDS = 300.0
# Audit events of what changes files; an `open` counts if it writes.
OPERATIONS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate"}
COUNT = "operations.txt"


class Trial(NamedTuple):
    """One trial and what it needs."""

    seed: int
    folder: Path
    operations: int
    """File operations of a run that nobody disturbs."""
    weights: dict[str, str]
    """SHA-256 of each stage's weights of that run."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the trials, print each that went wrong and a summary, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="trials, of a kill or more each")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first trial")
    parser.add_argument("--workers", type=int, default=1, help="trials at a time")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="kills-") as text:
        folder = Path(text)
        write_questions(folder)
        undisturbed = _undisturbed(folder)
        seeds = range(arguments.seed, arguments.seed + arguments.kills)
        trials = [Trial(seed, folder, *undisturbed) for seed in seeds]
        faults = list(_report(trials, arguments.workers))
    kills = sum(kills for kills, _ in faults)
    wrong = [fault for _, fault in faults if fault]
    print(
        f"{len(trials)} trials, {kills} kills, {len(wrong)} trials that did not end as they should"
    )
    return int(bool(wrong))


def _report(trials: Sequence[Trial], workers: int) -> Iterator[tuple[int, str]]:
    with get_context("fork").Pool(workers) as pool:
        bar = tqdm(pool.imap(run_trial, trials), total=len(trials), unit="trial")
        for trial, (kills, fault) in zip(trials, bar):
            if fault:
                bar.write(f"trial {trial.seed}: {fault}")
            yield kills, fault


def _undisturbed(folder: Path) -> tuple[int, dict[str, str]]:
    work = _work(folder, "undisturbed")
    outcome = wait(_start(work, "a", kill_at=None), SECONDS)
    if outcome.ending is not Ending.done:
        raise RuntimeError(f"the undisturbed run ended otherwise: {outcome.message}")
    weights = _weights(work / "a")
    operations = int((work / COUNT).read_text())
    shutil.rmtree(work)
    return operations, weights


def _work(folder: Path, name: str) -> Path:
    work = folder / name
    work.mkdir()
    shutil.copytree(folder / "clips", work / "clips")
    shutil.copy(folder / "questions.jsonl", work)
    return work


def run_trial(trial: Trial) -> tuple[int, str]:
    """Run one trial: -> kills that happened, and what was wrong, empty if nothing was."""
    random = Random(trial.seed)
    work = _work(trial.folder, f"trial-{trial.seed}")
    beside = _start(work, "b", kill_at=None)
    kills = 0
    try:
        while True:
            kill_at = (
                random.randint(1, trial.operations) if random.random() < 0.3 or not kills else None
            )
            outcome = wait(_start(work, "a", kill_at), SECONDS)
            if outcome.ending is not Ending.died:
                break
            kills += 1
        others = wait(beside, SECONDS)
        return kills, _fault(work, {"a": outcome, "b": others}, trial.weights)
    finally:
        shutil.rmtree(work)


def _start(work: Path, run: str, kill_at: int | None) -> Started:
    words = [*training_words(), f"run_dir={run}"]

    def body() -> int:
        operations = _Operations(kill_at)
        sys.addaudithook(operations)
        code = train.main(words)
        if kill_at is None:
            (work / COUNT).write_text(str(operations.count))
        return code

    return start(body, work, work / f"{run}.txt")


class _Operations:
    """Counts this process's file operations, and kills it before the one of a number."""

    def __init__(self, kill_at: int | None) -> None:
        self.count, self.kill_at = 0, kill_at

    def __call__(self, event: str, arguments: tuple) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING
        if not writes and event not in OPERATIONS:
            return
        self.count += 1
        if self.count == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


_WRITING = os.O_WRONLY | os.O_RDWR


def _fault(work: Path, outcomes: dict[str, Outcome], weights: dict[str, str]) -> str:
    for run, outcome in outcomes.items():
        if outcome.ending is not Ending.done:
            return f"run {run} ended as {outcome.ending.value}: {outcome.message}"
        if others := [
            stage for stage, sha256 in _weights(work / run).items() if sha256 != weights[stage]
        ]:
            return f"run {run} has other weights of {', '.join(others)}"
    left = [str(path.relative_to(work)) for path in work.rglob(".*") if _PARTIAL.search(path.name)]
    return f"left behind: {', '.join(left)}" if left else ""


# Names under which files are written before they are renamed, see `echox.core.partial_files`.
_PARTIAL = re.compile(r"\.[0-9a-f]{6}(-\d+){3}(\.[^.]*)?$|\.partial$")


def _weights(run: Path) -> dict[str, str]:
    return {stage: sha256_of(run / stage / "final" / "model.safetensors") for stage in STAGES}


if __name__ == "__main__":
    sys.exit(main())
