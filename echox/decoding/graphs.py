"""Decode steps as CUDA graphs, captured for every batch size and cache length in advance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from echox.decoding.slots import Slots
from echox.decoding.steps import Rows

if TYPE_CHECKING:
    from torch.cuda import _POOL_HANDLE

# Filled positions with graphs of their own, beside the whole capacity: attention reads the cache
# up to the captured length, whatever part of it is filled.
LENGTHS = (256, 1024)
WARM_STEPS = 2  # steps before a capture, to compile kernels and allocate library workspaces


def buckets(slots: int) -> list[int]:
    """Batch sizes with a graph: powers of two, and all slots."""
    powers = (1 << power for power in range(slots.bit_length()))
    return sorted({slots, *(size for size in powers if size < slots)})


class Graphs:
    """Captured decode steps by batch size and cache length.

    Build it while all slots are free: capture runs steps, which leave free slots unchanged.
    """

    def __init__(self, batch: Slots, slots: int, capacity: int) -> None:
        """Capture a step for each batch size and cache length.

        Args:
            batch: the engine's state, on a GPU.
            slots: requests that are stepped together.
            capacity: positions that a request may take.
        """
        self.sizes = buckets(slots)
        self.lengths = sorted({capacity, *(length for length in LENGTHS if length < capacity)})
        self._batch = batch
        pool = torch.cuda.graph_pool_handle()
        # The largest first: smaller ones then fit into the memory that it took.
        self._graphs = {
            (size, length): self._capture(batch.rows(size), length, pool)
            for size in reversed(self.sizes)
            for length in reversed(self.lengths)
        }

    def size_for(self, count: int) -> int:
        """The smallest captured batch size of at least `count` rows."""
        return next(size for size in self.sizes if size >= count)

    def step(self, count: int, filled: int) -> None:
        """Decode one token for the first `count` rows, of at most `filled` positions."""
        length = next(length for length in self.lengths if length >= filled)
        self._graphs[self.size_for(count), length].replay()

    def _capture(self, rows: Rows, length: int, pool: _POOL_HANDLE) -> torch.cuda.CUDAGraph:
        # The graph serves later requests too, so it must include all that they may need.
        rows.params.needs = self._batch.steps.needs
        # Warm-up on a side stream, as PyTorch's notes on CUDA graphs ask for.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_STEPS):
                self._batch.step(rows, length, False)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            self._batch.step(rows, length, False)
        return graph
