"""What each process under torchrun does in these tests: train, lose Echo's last step, and train again, the libraries loaded once.

    torchrun ... train_twice.py RUN_DIR WORDS...
"""

import shutil
import sys
from pathlib import Path

from echox import checkpoint
from echox.engine.distribution import join
from echox_cli import train

AGAIN = "--- again ---"  # on stderr, between the two


def main(run: Path, words: list[str]) -> int:
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
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
