import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

TOY = Path(__file__).with_name("toy.py")


@pytest.fixture(autouse=True)
def one_thread():
    """Sums are bit for bit the same only over the same number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def run_toy():
    """Train the toy in another process, or in several under torchrun."""

    def run(*arguments, ranks: int = 1) -> subprocess.CompletedProcess:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)] if ranks > 1 else []
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [sys.executable, *launcher, str(TOY), *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=120
        )

    return run
