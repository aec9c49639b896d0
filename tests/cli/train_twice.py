"""The program of each process under torchrun: train, delete Echo's last step, and train again.

    torchrun ... train_twice.py RUN_DIR WORDS... then RUN_DIR WORDS...

Several runs share the processes, so that the libraries are loaded once.
"""

import itertools
import shutil
import sys
from pathlib import Path

from echox.core import checkpoint
from echox.engine.distribution import join
from echox_cli import train

AGAIN = "--- again ---"  # on stderr, between the two trainings of a run
THEN = "then"  # between the words of runs
NEXT = "--- next ---"  # on stderr, between runs


def main(words: list[str]) -> int:
    runs = [
        list(run)
        for is_then, run in itertools.groupby(words, lambda word: word == THEN)
        if not is_then
    ]
    for number, (run, *overrides) in enumerate(runs):
        if number and join().is_main:
            print(NEXT, file=sys.stderr, flush=True)
        if status := train_twice(Path(run), overrides):
            return status
    return 0


def train_twice(run: Path, words: list[str]) -> int:
    if status := train.main(words):
        return status
    world = join()
    with world.main_first():
        if world.is_main:
            (run / "echo" / "final").rename(run / "echo" / "before")
            shutil.rmtree(checkpoint.step_folder(run / "echo" / "checkpoints", 2))
            (run / "again").touch()
            print(AGAIN, file=sys.stderr, flush=True)
    return train.main(words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
