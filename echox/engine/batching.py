"""Which examples form which batch: grouped by length, shuffled, resumable from two integers.

The order of batches is a pure function of the costs, the seed and the epoch. Ranks take every
n-th batch each, or share each batch. So a position in the data is (epoch, index), one for all
ranks together: it is exact in the middle of an epoch, and holds for another number of ranks.
"""

from __future__ import annotations

import functools
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, overload

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from echox.core.signals import Batch
from echox.tasks.base import Examples

# Lengths are sorted within pools of about this many batches: more pads less, fewer mixes lengths
# better over a step.
POOL_BATCHES = 32


@dataclass(frozen=True, slots=True)
class Position:
    """A position in the endless sequence of batches: the next one is batch `index` of `epoch`."""

    epoch: int = 0
    index: int = 0

    @classmethod
    def recorded(cls, fields: Mapping[str, Any], examples: int) -> Position:
        """Return the position that a checkpoint records.

        Args:
            fields: epoch and index.
            examples: their number, which no epoch has more batches than.

        Raises:
            ValueError: it is none.
        """
        position = cls(**fields)
        # A damaged number would be counted up to, epoch by epoch.
        if not (0 <= position.epoch and 0 <= position.index <= examples):
            raise ValueError(f"{position} is no position in {examples} examples")
        return position


class Batches(Sequence[list[int]]):
    """Batches of example indices, in arrays: 8 bytes an example, where lists would take 40.

    Args:
        examples: all example indices [N], batch after batch.
        ends: end of each batch in `examples` [B].
        order: the batches [B] in the order of training.
    """

    def __init__(self, examples: np.ndarray, ends: np.ndarray, order: np.ndarray) -> None:
        self.examples, self.ends, self.order = examples, ends, order

    def __len__(self) -> int:
        return len(self.order)

    @overload
    def __getitem__(self, index: int) -> list[int]: ...
    @overload
    def __getitem__(self, index: slice) -> Batches: ...
    def __getitem__(self, index: int | slice) -> list[int] | Batches:
        if isinstance(index, slice):
            return Batches(self.examples, self.ends, self.order[index])
        batch = int(self.order[index])
        start = self.ends[batch - 1] if batch else 0
        return self.examples[start : self.ends[batch]].tolist()


class BatchOrder:
    """The batches of every epoch; each epoch has every example exactly once.

    Args:
        costs: length of each example [N], in the task's unit (frames, tokens).
        batch_cost: maximum of longest example times examples in a batch of more than one example;
            None for no limit.
        batch_size: maximum of examples in a batch; None for no limit.
        seed: of the shuffles, with the epoch.
        sharers: ranks that share each batch, which is the minimum of examples in it. Where fewer
            are left over, they join the batch before.
    """

    def __init__(
        self,
        costs: Sequence[int] | np.ndarray,
        *,
        batch_cost: int | None,
        batch_size: int | None,
        seed: int,
        sharers: int = 1,
    ) -> None:
        self.costs = np.asarray(costs, dtype=np.int64)
        self.batch_cost = batch_cost
        self.batch_size = batch_size
        self.seed = seed
        self.sharers = sharers
        # Two, because a loader that prefetches enters an epoch before the loop leaves the one
        # before it.
        self._cached_plan = functools.lru_cache(maxsize=2)(self._plan)

    def epoch(self, epoch: int) -> Sequence[list[int]]:
        """Return the batches of an epoch, each a list of example indices."""
        return self._cached_plan(epoch)

    def advance(self, position: Position, batches: int) -> Position:
        """Return the position `batches` batches after `position`."""
        epoch, index = position.epoch, position.index + batches
        # By whole epochs, whose numbers of batches differ.
        while index >= len(self.epoch(epoch)):
            index -= len(self.epoch(epoch))
            epoch += 1
        return Position(epoch, index)

    def stream(
        self, position: Position, rank: int = 0, world: int = 1
    ) -> Iterator[list[tuple[int, int]]]:
        """Yield batches without end from `position`: every `world`-th, from the `rank`-th on.

        Each example is (index, epoch), since augmentation depends on the epoch.
        """
        position = self.advance(position, rank)
        while True:
            yield [(index, position.epoch) for index in self.epoch(position.epoch)[position.index]]
            position = self.advance(position, world)

    def shares(self, position: Position, rank: int) -> Iterator[list[tuple[int, int]]]:
        """Yield the `rank`-th share of every batch without end from `position`."""
        # A stride over the sorted batch: all shares have similar lengths.
        for batch in self.stream(position):
            yield batch[rank :: self.sharers]

    def _plan(self, epoch: int) -> Batches:
        random = np.random.default_rng([self.seed, epoch])
        examples = random.permutation(len(self.costs))
        ends = array("q")  # compact while it grows: an epoch may have millions of batches
        for start, end in pairwise(self._pool_bounds(len(examples))):
            pool = examples[start:end]
            # Shortest first: the current example is then the longest so far, so it alone decides
            # the padding. Stable, so that equal costs keep their shuffled order.
            pool[:] = pool[np.argsort(self.costs[pool], kind="stable")]
            ends.extend(start + cut for cut in self._cut(self.costs[pool].tolist()))
        return Batches(examples, np.array(ends, dtype=np.int64), random.permutation(len(ends)))

    def _pool_bounds(self, examples: int) -> list[int]:
        """List the start of each pool, and the end of the last one."""
        bounds = [*range(0, examples, self._pool_size()), examples]
        # A last pool too small for all ranks joins the one before it.
        if len(bounds) > 2 and bounds[-1] - bounds[-2] < self.sharers:
            del bounds[-2]
        return bounds

    def _pool_size(self) -> int:
        sizes = [len(self.costs)] if self.batch_size is None else [self.batch_size]
        if self.batch_cost is not None:
            # The batch size that examples of average length would have.
            sizes.append(int(self.batch_cost / max(1.0, float(self.costs.mean()))))
        return POOL_BATCHES * max(1, min(sizes))

    def _cut(self, costs: list[int]) -> list[int]:
        """List the ends of the batches of a pool, whose costs ascend."""
        ends, first = [], 0
        for number, longest in enumerate(costs):
            # The limits are exceeded where a batch would have fewer examples than ranks.
            if number - first >= self.sharers and self._overflows(number + 1 - first, longest):
                ends.append(number)
                first = number
        if ends and len(costs) - first < self.sharers:
            ends.pop()  # the last examples join the batch before
        return [*ends, len(costs)]

    def _overflows(self, examples: int, longest: int) -> bool:
        too_many = self.batch_size is not None and examples > self.batch_size
        return too_many or (self.batch_cost is not None and examples * longest > self.batch_cost)


class EpochExamples(Dataset[Any]):
    """Examples by (index, epoch), augmented as training sees them in that epoch."""

    def __init__(self, examples: Examples) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, key: tuple[int, int]) -> Any:
        return self.examples.at(*key)


def load_batches(
    examples: Dataset[Any],
    collate: Callable[[Sequence[Any]], Batch],
    batches: Iterable[list[Any]],
    num_workers: int = 0,
) -> Iterator[Batch]:
    """Read and collate batches on the CPU.

    A plain DataLoader suffices: the loop counts the batches it takes, so the loader has no state.

    Args:
        examples: the examples, by whatever `batches` index them.
        collate: examples -> batch.
        batches: lists of indices.
        num_workers: processes that read ahead; 0 reads in this one.
    """
    # The loader draws a seed for its workers; from the global generator, that draw would differ
    # between a run and its resumption.
    generator = torch.Generator().manual_seed(0)
    loader = DataLoader(
        examples,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=num_workers,
        generator=generator,
    )
    return iter(loader)
