"""Data-parallel training: the processes that train together, and their collective operations.

A single process is a world of size 1, in which every operation here returns its argument; under
`torchrun` there are more.
"""

from __future__ import annotations

import atexit
import inspect
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from echox.core.progress import be_silent

# The first rank may prepare data (features, pseudo-labels) for hours while the others wait at a
# barrier.
TIMEOUT = timedelta(hours=6)
# torch 2.14 renamed the switch.
_DDP_SETTINGS = inspect.signature(DistributedDataParallel.__init__).parameters
SYNC_BUFFERS = (
    "forward_sync_buffers" if "forward_sync_buffers" in _DDP_SETTINGS else "broadcast_buffers"
)


@dataclass(frozen=True, slots=True)
class World:
    """This process among those that train together."""

    rank: int = 0  # among all processes
    size: int = 1  # number of processes
    local_rank: int = 0  # among the processes of this machine

    @property
    def is_main(self) -> bool:
        """True in the one process that writes files and reports progress."""
        return self.rank == 0

    def device(self, device: torch.device) -> torch.device:
        """Return this rank's own device: `cuda` becomes `cuda:1` on local rank 1."""
        if device.type == "cuda" and device.index is None:
            return torch.device("cuda", self.local_rank)
        return device

    def sum(self, values: list[float]) -> list[float]:
        """Sum values elementwise over ranks, in float64."""
        if self.size == 1:
            return values
        # On the CPU, so that no accelerator is waited for.
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return total.tolist()

    def any(self, flag: bool) -> bool:
        """Return True on every rank if the flag is True on one."""
        return self.sum([float(flag)])[0] > 0

    def gather(self, value: Any) -> list[Any]:
        """Return the picklable values of all ranks, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait until every rank has called this."""
        # Not dist.barrier, which would launch a kernel on every GPU.
        self.any(False)

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Run the block on the main rank first; the other ranks then find its files in place."""
        # The other ranks wait before the block; the main rank releases them after it.
        if not self.is_main:
            self.barrier()
        yield
        if self.is_main:
            self.barrier()

    def replicate(self, module: nn.Module) -> nn.Module:
        """Wrap a module so that backward passes average its gradients over ranks."""
        if self.size == 1:
            return module
        # Buffers belong to frozen parts and are equal on every rank from the start; a batch may
        # leave a trained part unused.
        settings: dict[str, Any] = {SYNC_BUFFERS: False}
        return DistributedDataParallel(
            module, process_group=_gradient_group(), find_unused_parameters=True, **settings
        )

    def unsynchronised(self, module: nn.Module) -> AbstractContextManager[None]:
        """Return a context without averaging, for all but the last micro-batch of a step."""
        return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()


def join() -> World:
    """Join the processes that `torchrun` describes in the environment.

    Returns:
        this process's rank in them; a world of one where the environment describes none.
    """
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        return World()
    world = World(int(os.environ["RANK"]), size, int(os.environ["LOCAL_RANK"]))
    if not world.is_main:
        be_silent()
    # Several stages of a recipe may train in one process.
    if not dist.is_initialized():
        _initialize(world)
    return world


def _initialize(world: World) -> None:
    backend = "gloo"
    if torch.cuda.is_available():
        # Gradients travel by NCCL, counts and votes by gloo, which needs no kernel launch.
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(world.local_rank)
    dist.init_process_group(backend, timeout=TIMEOUT)
    # torch warns at exit about a process group that was not destroyed.
    atexit.register(_leave)


@cache
def _gradient_group() -> dist.ProcessGroup:
    """Return the process group of the gradients, which is not the default one.

    DistributedDataParallel never releases its group, whose threads thus outlive the interpreter. A
    thread that then drops the last reference to a tensor of Python ends the process with SIGABRT.
    Gradients are averaged in buckets that Python does not know; all other tensors travel in the
    default group, whose threads are joined when it is destroyed.
    """
    # Every rank is a member; of a group that it is no member of, a rank would get a number.
    return cast(dist.ProcessGroup, dist.new_group(timeout=TIMEOUT))


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
        _gradient_group.cache_clear()
