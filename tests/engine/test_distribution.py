"""Tests of leaving the processes that train together."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from echox.engine import distribution
from echox.engine.distribution import World

TASKS = Path("/proc/self/task")


@pytest.mark.skipif(not TASKS.exists(), reason="threads are counted in Linux's /proc")
def test_threads_that_release_tensors_of_python_end_before_the_interpreter(tmp_path):
    """Where one outlived it, a finished training could end with SIGABRT."""

    def threads() -> int:
        return len(list(TASKS.iterdir()))

    before = threads()
    store = f"file://{tmp_path}/store"
    dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    of_one_group = threads() - before
    model = World(size=2).replicate(torch.nn.Linear(2, 2))
    assert threads() == before + 2 * of_one_group > before
    distribution._leave()
    del model
    # DistributedDataParallel may never release its group, the one of the gradients.
    assert threads() <= before + of_one_group
