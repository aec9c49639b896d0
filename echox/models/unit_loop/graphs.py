"""A step of every batch size and cache length that may come, captured as CUDA graphs before the first request."""

from __future__ import annotations

import torch

from echox.models.unit_loop.seats import Seats
from echox.models.unit_loop.steps import Rows

LENGTHS = (256, 1024)  # filled positions that have graphs of their own, beside the whole capacity
WARM_STEPS = 2  # before a capture, so that kernels are compiled and libraries have their workspaces


def buckets(slots: int) -> list[int]:
    """Batch sizes with a graph: powers of two, and all slots."""
    return sorted({slots, *(1 << power for power in range(slots.bit_length()) if 1 << power < slots)})


class Graphs:
    """Captured steps. No slot may be taken while they are made: free rows stay as they are, whatever step is run on them."""

    def __init__(self, seats: Seats, slots: int, capacity: int) -> None:
        self.sizes = buckets(slots)
        self.lengths = sorted({capacity, *(length for length in LENGTHS if length < capacity)})
        self._seats = seats
        pool = torch.cuda.graph_pool_handle()
        # The largest first: smaller ones then fit into the memory that it took.
        self._graphs = {
            (size, length): self._captured(seats.rows(size), length, pool)
            for size in reversed(self.sizes)
            for length in reversed(self.lengths)
        }

    def size_for(self, count: int) -> int:
        """The rows a graph of at least `count` rows steps."""
        return next(size for size in self.sizes if size >= count)

    def step(self, count: int, filled: int) -> None:
        """One token for the first `count` rows."""
        length = next(length for length in self.lengths if length >= filled)
        self._graphs[self.size_for(count), length].replay()

    def _captured(self, rows: Rows, length: int, pool: tuple[int, int]) -> torch.cuda.CUDAGraph:
        rows.params.needs = self._seats.steps.needs
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_STEPS):
                self._seats.step(rows, length, False)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            self._seats.step(rows, length, False)
        return graph
