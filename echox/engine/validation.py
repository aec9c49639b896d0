"""Validation: the loss on the validation split, its parts, and the task's own scores."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from echox.core.progress import progress, waiting
from echox.core.signals import Batch
from echox.criteria.base import Criterion
from echox.engine import precision, randomness
from echox.engine.batching import BatchOrder, load_batches
from echox.engine.config import TrainConfig
from echox.tasks.base import Examples, Task


class Validation:
    """The validation of one stage: the same batches each time, drawn at random from the split."""

    def __init__(
        self,
        task: Task,
        criterion: Criterion,
        config: TrainConfig,
        examples: Examples,
        device: torch.device,
    ) -> None:
        self.task = task
        self.criterion = criterion
        self.config = config
        self.examples = examples
        self.device = device
        # A fixed seed: runs of different seeds are compared on the same batches.
        order = BatchOrder(
            examples.costs(), batch_cost=config.batch_cost, batch_size=config.batch_size, seed=0
        )
        # Batches are in random order, so the first ones are a sample of all lengths.
        self.plan = order.epoch(0)[: config.validate_batches]

    def run(self, model: nn.Module) -> dict[str, float]:
        """Compute the metrics of a model, which is in training mode afterwards.

        Returns:
            "loss" and its parts as means over their own counts, and the task's scores.
        """
        model.eval()
        with (
            torch.no_grad(),
            randomness.preserved(self.device),
            precision.autocast(self.config.precision, self.device),
        ):
            metrics = self._losses(model)
            with waiting("scoring"):
                metrics |= self.task.score(model, self._batches)
        model.train()
        return metrics

    def _batches(self) -> Iterator[Batch]:
        workers = self.config.num_workers
        for batch in load_batches(self.examples, self.task.collate, self.plan, workers):
            yield batch.to(self.device)

    def _losses(self, model: nn.Module) -> dict[str, float]:
        sums: dict[str, Tensor] = {}
        counts: dict[str, Tensor] = {}
        for batch in progress(self._batches(), "validating", unit="batch", total=len(self.plan)):
            loss = self.criterion(self.task.forward(model, batch), batch)
            own = (loss.total, torch.tensor(batch.count))
            for name, (total, count) in {"loss": own, **loss.parts}.items():
                # Tensors, so that the loop waits for the device once at its end; float64, because
                # small losses would vanish beside a large float32 sum.
                sums[name] = sums.get(name, 0) + total.double()
                counts[name] = counts.get(name, 0) + count
        return {name: float(total) / max(1.0, float(counts[name])) for name, total in sums.items()}
