import os
import subprocess
import sys
from pathlib import Path

import pytest

TOY = Path(__file__).with_name("toy.py")


@pytest.fixture(autouse=True)
def one_thread(set_threads):
    """Sums are bit for bit the same only over the same number of threads."""
    set_threads(1)


@pytest.fixture(scope="session")
def run_toy():
    """Train the toy in another process, or in several under torchrun."""

    def run(*arguments, ranks: int = 1) -> subprocess.CompletedProcess:
        launcher = (
            ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
            if ranks > 1
            else []
        )
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [sys.executable, *launcher, str(TOY), *map(str, arguments)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
        )

    return run
