"""Run the commands on damaged input, and print a table by kind of how each case ended.

    python tests/hostile/run_hostile.py --cases 10000
    python tests/hostile/run_hostile.py --case checkpoint:17

Every case is a kind and a seed, so one that went wrong is made again by the second form. Ends with
1 where a case ended in a traceback, by a signal, after 30 s, above 4 GB, or changed a file outside
of its folder.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import hostile_environment  # noqa: F401
from hostile_cases import KINDS, prepare_case
from hostile_home import write_home
from hostile_process import Ending, Outcome, run_isolated
from tqdm import tqdm

WELL = (Ending.done, Ending.refused)
# Shares of the cases: what takes long gets fewer.
SHARES = {
    "audio": 0.2,
    "manifest": 0.25,
    "recipe": 0.15,
    "archive": 0.15,
    "checkpoint": 0.08,
    "cache": 0.05,
    "number": 0.12,
}


class Case(NamedTuple):
    """A case and where it runs."""

    kind: str
    seed: int
    home: Path
    folder: Path


def run_case(case: Case) -> tuple[Case, Outcome]:
    """Run a case in a folder of its own, which is removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix=f"{case.kind}-{case.seed}-", dir=case.folder))
    (folder / "outside").mkdir()
    (folder / "outside" / "secret.wav").write_bytes(b"RIFF")

    def body() -> int:
        os.environ["HOME"] = os.environ["TMPDIR"] = str(folder)
        main, words = prepare_case(case.kind, case.seed, case.home, Path.cwd() / "case")
        os.chdir("case")
        print("words:", *words, file=sys.stderr)
        return main(words)

    (folder / "work").mkdir()
    try:
        return case, run_isolated(body, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run_cases(cases: Sequence[Case], workers: int) -> Iterator[tuple[Case, Outcome]]:
    """Yield each case with its outcome, in the order in which they end."""
    if workers == 1:
        yield from map(run_case, cases)
        return
    with get_context("fork").Pool(workers) as pool:
        yield from pool.imap_unordered(run_case, cases)


def table(outcomes: dict[str, list[Outcome]]) -> list[str]:
    """Return the lines of a table: a kind a line, and how its cases ended."""
    head = ["kind", "cases", *(ending.value for ending in Ending), "slowest s", "largest GB"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for kind, ended in outcomes.items():
        counts = Counter(outcome.ending for outcome in ended)
        slowest = max(outcome.seconds for outcome in ended)
        largest = max(outcome.peak_bytes for outcome in ended) / 1e9
        cells = [kind, len(ended), *(counts[ending] for ending in Ending)]
        lines.append(f"| {' | '.join(map(str, cells))} | {slowest:.1f} | {largest:.2f} |")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Run cases, print what went wrong and the table, and return the exit code."""
    arguments = _arguments(argv)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hostile-")))
        home = folder / "home"
        home.mkdir()
        with contextlib.redirect_stderr(open(os.devnull, "w")):  # noqa: SIM115 (ends with us)
            write_home(home)
        cases = [Case(kind, seed, home, folder) for kind, seed in _chosen(arguments)]
        outcomes = defaultdict(list)
        bar = tqdm(run_cases(cases, arguments.workers), total=len(cases), unit="case")
        for case, outcome in bar:
            outcomes[case.kind].append(outcome)
            if outcome.ending not in WELL or arguments.case:
                bar.write(f"{case.kind}:{case.seed} {outcome.ending.value}\n{outcome.message}\n")
    print("\n".join(table(dict(sorted(outcomes.items())))))
    return int(any(outcome.ending not in WELL for ended in outcomes.values() for outcome in ended))


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=1_000, help="cases of all kinds together")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first case of each kind")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="which")
    parser.add_argument("--case", action="append", metavar="KIND:SEED", help="this case alone")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    return parser.parse_args(argv)


def _chosen(arguments: argparse.Namespace) -> list[tuple[str, int]]:
    if arguments.case:
        named = [text.partition(":") for text in arguments.case]
        return [(kind, int(seed)) for kind, _, seed in named]
    total = sum(SHARES[kind] for kind in arguments.kinds)
    return [
        (kind, arguments.seed + number)
        for kind in arguments.kinds
        for number in range(round(arguments.cases * SHARES[kind] / total))
    ]


if __name__ == "__main__":
    sys.exit(main())
