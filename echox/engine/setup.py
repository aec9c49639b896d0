"""What a stage is trained with, made before its first step: model, data in their order, optimiser, validation."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from echox.criteria.base import Criterion
from echox.engine import randomness
from echox.engine.audit import Audit, audit
from echox.engine.batching import BatchOrder, InEpochs, Position, load_batches, order_batches
from echox.engine.config import TrainConfig
from echox.engine.distribution import World
from echox.engine.optimisation import build_optimizer
from echox.engine.step import Objective, Stepper
from echox.engine.validation import Validation
from echox.errors import TrainingError
from echox.signals import Batch
from echox.tasks.base import Examples, Task


class Setup:
    """All that training needs and a checkpoint does not hold, made the same way at every start."""

    def __init__(self, task: Task, criterion: Criterion, config: TrainConfig, *, seed: int, device: torch.device, world: World) -> None:
        self.task = task
        self.config = config
        self.device = device
        self.world = world
        self.criterion = criterion.to(device)
        self.model = build(task, seed=seed, device=device, world=world).train()
        # Again, because how much building and preparing drew depends on what was cached.
        randomness.seed_all(seed, world.rank)
        self.examples = _examples(task)
        self.order = self._order(seed)
        self.optimizer = build_optimizer(task.parameter_groups(self.model), config)
        self.stepper = Stepper(self._objective(self.criterion), self.optimizer, config, world, device)
        self.validation = self._validation(self.criterion)

    def batches(self, position: Position) -> Iterator[Batch]:
        """This rank's micro-batches from a place in the data, read and collated."""
        split, rank = self.config.split_batches, self.world.rank
        places = self.order.shares(position, rank) if split else self.order.places(position, rank, self.world.size)
        return load_batches(InEpochs(self.examples), self.task.collate, places, self.config.num_workers)

    def advance(self, position: Position) -> Position:
        """Where the world stands one step after a place in the data."""
        return self.order.advance(position, self.config.accumulation * (1 if self.config.split_batches else self.world.size))

    def audited(self, position: Position, stage: str) -> Audit:
        """The audit of the batch at a place in the data."""
        rows = self.order.epoch(position.epoch)[position.index]
        return audit(self.task, self.model, self.criterion, rows, stage=stage, device=self.device, number_format=self.config.precision)

    def _objective(self, criterion: Criterion) -> nn.Module:
        objective = Objective(self.task, self.model, criterion)
        if self.config.compile:
            objective.compile()
        return self.world.replicate(objective)

    def _order(self, seed: int) -> BatchOrder:
        config, sharers = self.config, self.world.size if self.config.split_batches else 1
        fewest = min(len(self.examples), config.batch_size or sharers)
        if fewest < sharers:
            raise TrainingError(f"{sharers} processes cannot share a batch of {fewest}; start fewer, or set split_batches=false or a larger batch_size")
        return order_batches(self.examples, batch_cost=config.batch_cost, batch_size=config.batch_size, seed=seed, sharers=sharers)

    def _validation(self, criterion: Criterion) -> Validation | None:
        # On the main rank alone: a task's scores cannot be added up over ranks.
        if self.config.validate_every is None or not self.world.is_main:
            return None
        examples = self.task.examples("valid")
        return Validation(self.task, criterion, self.config, examples, self.device) if len(examples) else None


def build(task: Task, *, seed: int, device: torch.device, world: World) -> nn.Module:
    """A task's model with its first weights, and made with it and cached, what the task reads: features, labels, alignments."""
    with world.main_first():
        randomness.seed_all(seed)
        model = task.build().to(device)
        task.prepare(model)
    return model


def _examples(task: Task) -> Examples:
    examples = task.examples("train")
    if len(examples) == 0:
        raise TrainingError("the task has no training examples; check its manifest and its filters")
    return examples
