"""The processes that train together: who they are, and what they add up.

One process is a world of size 1, in which every operation here returns its argument; under `torchrun` there are more.
"""

from __future__ import annotations

import atexit
import inspect
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from echox.progress import be_silent

# The first rank may prepare data (features, pseudo-labels) for hours while the others wait at a barrier.
TIMEOUT = timedelta(hours=6)
# The same switch before torch 2.14, and since then.
_DDP_SETTINGS = inspect.signature(DistributedDataParallel.__init__).parameters
SYNC_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in _DDP_SETTINGS else "broadcast_buffers"


@dataclass(frozen=True, slots=True)
class World:
    """This process among those that train together."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """True in the one process that writes files and speaks."""
        return self.rank == 0

    def device(self, device: torch.device) -> torch.device:
        """This rank's own device of the kind asked for: `cuda` becomes `cuda:1` on local rank 1."""
        if device.type == "cuda" and device.index is None:
            return torch.device("cuda", self.local_rank)
        return device

    def sum(self, values: list[float]) -> list[float]:
        """The elementwise sum over ranks, in float64 on the CPU (so that no accelerator is waited for)."""
        if self.size == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return total.tolist()

    def any(self, flag: bool) -> bool:
        """True on every rank if it is on one."""
        return self.sum([float(flag)])[0] > 0

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value (picklable), by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait until every rank is here."""
        self.any(False)

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The main rank runs the block alone, then the others do and find its files in place."""
        if not self.is_main:
            self.barrier()
        yield
        if self.is_main:
            self.barrier()

    def replicate(self, module: nn.Module) -> nn.Module:
        """`module`, whose gradients are averaged over ranks in backward passes."""
        if self.size == 1:
            return module
        # Buffers belong to frozen parts and are equal on every rank from the start; a batch may leave a trained part unused.
        return DistributedDataParallel(module, find_unused_parameters=True, **{SYNC_BUFFERS: False})

    def unsynchronised(self, module: nn.Module) -> AbstractContextManager[None]:
        """A context in which backward passes only accumulate: all but the last micro-batch of a step."""
        return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()


def join() -> World:
    """Join the world that `torchrun` describes in the environment, once; without it, a world of one."""
    if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        return World()
    world = World(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"]))
    if not world.is_main:
        be_silent()
    if not dist.is_initialized():
        _initialise(world)
    return world


def _initialise(world: World) -> None:
    backend = "gloo"
    if torch.cuda.is_available():
        # Gradients travel by NCCL, counts and votes by gloo, which needs no kernel launch.
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(world.local_rank)
    dist.init_process_group(backend, timeout=TIMEOUT)
    atexit.register(_leave)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
