"""What each process under torchrun does in these tests: train, lose Echo's last step, and train again; then the same with another run's
words, the libraries loaded once.

    torchrun ... train_twice.py RUN_DIR WORDS... then RUN_DIR WORDS...
"""

import itertools
import shutil
import sys
from pathlib import Path

from echox import checkpoint
from echox.engine.distribution import join
from echox_cli import train

AGAIN = "--- again ---"  # on stderr, between the two trainings of a run
THEN = "then"  # between the words of runs
NEXT = "--- next ---"  # on stderr, between runs


def main(words: list[str]) -> int:
    runs = [list(run) for is_then, run in itertools.groupby(words, lambda word: word == THEN) if not is_then]
    for number, (run, *told) in enumerate(runs):
        if number and join().is_main:
            print(NEXT, file=sys.stderr, flush=True)
        if failed := train_twice(Path(run), told):
            return failed
    return 0


def train_twice(run: Path, words: list[str]) -> int:
    if failed := train.main(words):
        return failed
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
