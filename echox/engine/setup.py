"""Setup of a stage before its first step: model, order of the data, optimizer, validation."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from echox.core.errors import TrainingError
from echox.core.signals import Batch
from echox.criteria.base import Criterion
from echox.engine import randomness
from echox.engine.audit import Audit, audit
from echox.engine.batching import BatchOrder, EpochExamples, Position, load_batches
from echox.engine.config import TrainConfig
from echox.engine.distribution import World
from echox.engine.optimisation import build_optimizer
from echox.engine.step import Objective, Stepper
from echox.engine.validation import Validation
from echox.tasks.base import Examples, Task


class Setup:
    """All that training needs and a checkpoint does not contain, built alike at every start."""

    def __init__(
        self,
        task: Task,
        criterion: Criterion,
        config: TrainConfig,
        *,
        seed: int,
        device: torch.device,
        world: World,
    ) -> None:
        """Build the model, and prepare the data it is trained on.

        Raises:
            TrainingError: there are no examples, no trained parameters, or fewer examples in a
                batch than ranks that share it.
        """
        self.task, self.config, self.device, self.world = task, config, device, world
        self.criterion = criterion.to(device)
        self.model = build(task, seed=seed, device=device, world=world).train()
        # Again, because the number of draws so far depends on what was cached.
        randomness.seed_all(seed, world.rank)
        self.examples = _training_examples(task)
        self.order = self._order(seed)
        self.optimizer = build_optimizer(task.parameter_groups(self.model), config)
        objective = self._objective(self.criterion)
        self.stepper = Stepper(objective, self.optimizer, config, world, device)
        self.validation = self._validation(self.criterion)

    def batches(self, position: Position) -> Iterator[Batch]:
        """Read and collate this rank's micro-batches from a position in the data on."""
        rank = self.world.rank
        if self.config.split_batches:
            indices = self.order.shares(position, rank)
        else:
            indices = self.order.stream(position, rank, self.world.size)
        examples = EpochExamples(self.examples)
        return load_batches(examples, self.task.collate, indices, self.config.num_workers)

    def advance(self, position: Position) -> Position:
        """Return the position of all ranks after one more step."""
        # Ranks that share a batch advance by one together, the others by one each.
        ranks = 1 if self.config.split_batches else self.world.size
        return self.order.advance(position, self.config.accumulation * ranks)

    def audited(self, position: Position, stage: str) -> Audit:
        """Audit the batch at a position in the data."""
        # The batch of the main rank, or the one that all share.
        rows = self.order.epoch(position.epoch)[position.index]
        return audit(
            self.task,
            self.model,
            self.criterion,
            rows,
            stage=stage,
            device=self.device,
            number_format=self.config.precision,
        )

    def _objective(self, criterion: Criterion) -> nn.Module:
        objective = Objective(self.task, self.model, criterion)
        # Before the wrapper for data parallelism, whose communication is not compiled.
        if self.config.compile:
            objective.compile()
        return self.world.replicate(objective)

    def _order(self, seed: int) -> BatchOrder:
        config = self.config
        sharers = self.world.size if config.split_batches else 1
        # Without a limit of size, `BatchOrder` exceeds the limit of cost where ranks are many.
        fewest = min(len(self.examples), config.batch_size or sharers)
        if fewest < sharers:
            raise TrainingError(
                f"{sharers} processes cannot share a batch of {fewest}; start fewer, or set "
                "split_batches=false or a larger batch_size"
            )
        return BatchOrder(
            self.examples.costs(),
            batch_cost=config.batch_cost,
            batch_size=config.batch_size,
            seed=seed,
            sharers=sharers,
        )

    def _validation(self, criterion: Criterion) -> Validation | None:
        # On the main rank alone: a task's scores cannot be added up over ranks.
        if self.config.validate_every is None or not self.world.is_main:
            return None
        examples = self.task.examples("valid")
        if not len(examples):
            return None  # a corpus may have no validation split
        return Validation(self.task, criterion, self.config, examples, self.device)


def build(task: Task, *, seed: int, device: torch.device, world: World) -> nn.Module:
    """Build a task's model, and prepare the data computed with it: features, labels, alignments.

    Args:
        task: the stage's task.
        seed: of the initial weights, which are the same on every rank.
        device: where the model runs.
        world: the main rank builds first, and the others read the files it cached.
    """
    with world.main_first():
        # Without the rank: initial weights are equal everywhere.
        randomness.seed_all(seed)
        model = task.build().to(device)
        task.prepare(model)
    return model


def _training_examples(task: Task) -> Examples:
    examples = task.examples("train")
    if len(examples) == 0:
        raise TrainingError("the task has no training examples; check its manifest and its filters")
    return examples
