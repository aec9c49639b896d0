"""Each example once an epoch, in batches of similar lengths, from any position, on any ranks."""

import random
from itertools import islice

import numpy as np
import pytest

from echox.engine.batching import BatchOrder, Position, load_batches

from .toy import toy_task

COSTS = random.Random(0).choices(range(5, 400), k=1000)
LIMITS = [
    dict(batch_cost=None, batch_size=16),
    dict(batch_cost=2000, batch_size=None),
    dict(batch_cost=2000, batch_size=8),
    dict(batch_cost=100, batch_size=None),
]


@pytest.mark.parametrize("limits", LIMITS)
def test_each_epoch_has_each_example_once_within_the_limits(limits):
    order = BatchOrder(COSTS, seed=1, **limits)
    for epoch in (0, 1):
        batches = order.epoch(epoch)
        assert sorted(i for batch in batches for i in batch) == list(range(len(COSTS)))
        for batch in batches:
            assert limits["batch_size"] is None or len(batch) <= limits["batch_size"]
            padded = len(batch) * max(COSTS[i] for i in batch)
            assert limits["batch_cost"] is None or padded <= limits["batch_cost"] or len(batch) == 1


def test_batches_of_similar_lengths_need_little_padding():
    batches = BatchOrder(COSTS, batch_cost=4000, batch_size=None, seed=1).epoch(0)
    padded = sum(len(batch) * max(COSTS[i] for i in batch) for batch in batches)
    assert sum(COSTS) / padded > 0.9


def test_the_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        return list(BatchOrder(COSTS, batch_cost=None, batch_size=16, seed=seed).epoch(epoch))

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1) != order(2, 1)
    # Lengths come in no order, or the loss would swing with the length.
    means = [sum(COSTS[i] for i in batch) / len(batch) for batch in order(1, 0)]
    assert means != sorted(means)


def test_ranks_take_every_nth_batch_and_positions_hold_for_any_number_of_ranks():
    order = BatchOrder(COSTS, batch_cost=None, batch_size=16, seed=1)
    alone = list(islice(order.stream(Position()), 150))
    ranks = [list(islice(order.stream(Position(), rank, 3), 50)) for rank in range(3)]
    assert [batch for batches in zip(*ranks) for batch in batches] == alone
    at_100 = order.advance(Position(), 100)
    assert at_100.epoch == 1
    assert list(islice(order.stream(at_100), 50)) == alone[100:]


@pytest.mark.parametrize("rows", [7, 33, 512, 513, 1000])
@pytest.mark.parametrize("limits", LIMITS)
def test_ranks_share_every_batch(limits, rows):
    order = BatchOrder(COSTS[:rows], seed=1, sharers=3, **limits)
    batches = list(order.epoch(0))
    assert sorted(i for batch in batches for i in batch) == list(range(rows))
    ranks = [list(islice(order.shares(Position(), rank), len(batches))) for rank in range(3)]
    for batch, *shares in zip(batches, *ranks):
        assert sorted(i for share in shares for i, _ in share) == sorted(batch)
        assert all(shares), "a rank without a row would keep the others waiting"
        if limits["batch_size"] is not None:
            assert len(batch) <= limits["batch_size"] + 2, (
                "what is left over for too few joins a batch"
            )


def test_shares_have_similar_lengths():
    order = BatchOrder(COSTS, batch_cost=None, batch_size=16, seed=1, sharers=2)
    pairs = zip(*(islice(order.shares(Position(), rank), 60) for rank in range(2)))
    longest = [[max(COSTS[i] for i, _ in share) for share in pair] for pair in pairs]
    assert sum(map(min, longest)) > 0.98 * sum(map(max, longest))


def test_sharing_leaves_batches_with_enough_examples_as_they_are():
    alone, shared = (
        BatchOrder(COSTS[:800], batch_cost=None, batch_size=16, seed=1, sharers=n) for n in (1, 4)
    )
    assert list(alone.epoch(2)) == list(shared.epoch(2))


@pytest.mark.parametrize("workers", [0, 1])
def test_loaded_batches_come_in_order(workers):
    task = toy_task()
    batches = load_batches(task.examples("train"), task.collate, [[3, 1], [2]], workers)
    assert [batch.row_ids for batch in batches] == [("row-3", "row-1"), ("row-2",)]


@pytest.mark.parametrize("limits", LIMITS)
def test_batches_in_arrays_equal_those_in_lists(limits):
    """Runs that began when batches were lists go on with the same batches."""
    order = BatchOrder(COSTS, seed=1, **limits)
    generator = np.random.default_rng([1, 3])
    shuffled, size, batches = generator.permutation(len(COSTS)), order._pool_size(), []
    for start in range(0, len(shuffled), size):
        batch = []
        for index in sorted(shuffled[start : start + size].tolist(), key=COSTS.__getitem__):
            if batch and order._overflows(len(batch) + 1, COSTS[index]):
                batches.append(batch)
                batch = []
            batch.append(index)
        batches.append(batch)
    assert list(order.epoch(3)) == [
        batches[number] for number in generator.permutation(len(batches))
    ]
