"""Which examples make which batch: length-bucketed, shuffled by (seed, epoch), and resumable from two integers.

The order of batches is a pure function of the costs, the seed and the epoch, and ranks take turns in it or share each batch. So a place in
the data is (epoch, index), one for the whole world: it is exact in the middle of an epoch, and holds at another world size.
"""

from __future__ import annotations

import functools
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from echox.signals import Batch
from echox.tasks.base import Examples

# Lengths are sorted within pools of about this many batches: more pads less, fewer mixes lengths better over a step.
POOL_BATCHES = 32


@dataclass(frozen=True, slots=True)
class Position:
    """A place in the endless sequence of batches: the next batch is number `index` of `epoch`."""

    epoch: int = 0
    index: int = 0


class Batches(Sequence[list[int]]):
    """Batches of example indices, in arrays: 8 bytes an example, where lists would take 40.

    Args:
        order: all examples [N], batch after batch.
        ends: where in `order` each batch ends [B].
        turns: the batches [B] in the order in which they are taken.
    """

    def __init__(self, order: np.ndarray, ends: np.ndarray, turns: np.ndarray) -> None:
        self.order, self.ends, self.turns = order, ends, turns

    def __len__(self) -> int:
        return len(self.turns)

    def __getitem__(self, index: int | slice) -> list[int] | Batches:
        if isinstance(index, slice):
            return Batches(self.order, self.ends, self.turns[index])
        batch = int(self.turns[index])
        return self.order[self.ends[batch - 1] if batch else 0 : self.ends[batch]].tolist()


class BatchOrder:
    """The batches of every epoch; each holds every example exactly once.

    Args:
        costs: length of each example.
        batch_cost: longest example times examples, at most, in a batch of more than one example; None for no limit.
        batch_size: examples at most in a batch; None for no limit.
        sharers: ranks that are to share each batch, so examples at least in it; what is left over for too few joins the batch before.
    """

    def __init__(self, costs: Sequence[int], *, batch_cost: int | None, batch_size: int | None, seed: int, sharers: int = 1) -> None:
        self.costs = np.asarray(costs, dtype=np.int64)
        self.batch_cost = batch_cost
        self.batch_size = batch_size
        self.seed = seed
        self.sharers = sharers
        # Two, because a loader that reads ahead enters an epoch before the loop leaves the one before it.
        self._cached_plan = functools.lru_cache(maxsize=2)(self._plan)

    def epoch(self, epoch: int) -> Sequence[list[int]]:
        """Epoch number `epoch` as lists of example indices."""
        return self._cached_plan(epoch)

    def advance(self, position: Position, batches: int) -> Position:
        """Where one stands `batches` batches after `position`."""
        epoch, index = position.epoch, position.index + batches
        while index >= len(self.epoch(epoch)):
            index -= len(self.epoch(epoch))
            epoch += 1
        return Position(epoch, index)

    def stream(self, position: Position, rank: int = 0, world: int = 1) -> Iterator[list[int]]:
        """Batches without end from `position`, every `world`-th of them, beginning with the `rank`-th."""
        position = self.advance(position, rank)
        while True:
            yield self.epoch(position.epoch)[position.index]
            position = self.advance(position, world)

    def places(self, position: Position, rank: int = 0, world: int = 1) -> Iterator[list[tuple[int, int]]]:
        """As `stream`, each example as (index, epoch)."""
        position = self.advance(position, rank)
        while True:
            yield [(index, position.epoch) for index in self.epoch(position.epoch)[position.index]]
            position = self.advance(position, world)

    def shares(self, position: Position, rank: int) -> Iterator[list[tuple[int, int]]]:
        """Every batch without end from `position`, and of each the `rank`-th share; shares are of like lengths."""
        for batch in self.places(position):
            yield batch[rank :: self.sharers]

    def _plan(self, epoch: int) -> Batches:
        random = np.random.default_rng([self.seed, epoch])
        order = random.permutation(len(self.costs))
        ends = array("q")
        for start, end in pairwise(self._pools(len(order))):
            pool = order[start:end]
            # Shortest first: the example at hand is the longest so far, so it alone decides the padding.
            pool[:] = pool[np.argsort(self.costs[pool], kind="stable")]
            ends.extend(start + cut for cut in self._cut(self.costs[pool].tolist()))
        return Batches(order, np.array(ends, dtype=np.int64), random.permutation(len(ends)))

    def _pools(self, examples: int) -> list[int]:
        """Where pools begin and the last one ends."""
        bounds = [*range(0, examples, self._pool_size()), examples]
        if len(bounds) > 2 and bounds[-1] - bounds[-2] < self.sharers:
            del bounds[-2]
        return bounds

    def _pool_size(self) -> int:
        sizes = [len(self.costs)] if self.batch_size is None else [self.batch_size]
        if self.batch_cost is not None:
            sizes.append(int(self.batch_cost / max(1.0, float(self.costs.mean()))))
        return POOL_BATCHES * max(1, min(sizes))

    def _cut(self, costs: list[int]) -> list[int]:
        """Where the batches of a pool end, its costs in order."""
        ends, first = [], 0
        for number, longest in enumerate(costs):
            if number - first >= self.sharers and self._overflows(number + 1 - first, longest):
                ends.append(number)
                first = number
        if ends and len(costs) - first < self.sharers:
            ends.pop()
        return [*ends, len(costs)]

    def _overflows(self, examples: int, longest: int) -> bool:
        too_many = self.batch_size is not None and examples > self.batch_size
        return too_many or (self.batch_cost is not None and examples * longest > self.batch_cost)


def order_batches(examples: Examples, *, batch_cost: int | None, batch_size: int | None, seed: int, sharers: int = 1) -> BatchOrder:
    """The batch order of a split, by each example's own cost."""
    return BatchOrder(examples.costs(), batch_cost=batch_cost, batch_size=batch_size, seed=seed, sharers=sharers)


class InEpochs(Sequence[Any]):
    """Examples as training meets them, by (index, epoch)."""

    def __init__(self, examples: Examples) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, place: tuple[int, int]) -> Any:
        return self.examples.at(*place)


def load_batches(
    examples: Sequence[Any], collate: Callable[[Sequence[Any]], Batch], batches: Iterable[list[Any]], num_workers: int = 0
) -> Iterator[Batch]:
    """Read and collate batches of what `examples` are indexed by, on the CPU.

    A plain DataLoader is enough: the loop knows how many batches it has taken, so the loader needs no state of its own.
    """
    # The loader draws a seed for its workers; from the global generator, that draw would differ between a run and its resumption.
    own = torch.Generator().manual_seed(0)
    return iter(DataLoader(examples, batch_sampler=batches, collate_fn=collate, num_workers=num_workers, generator=own))
