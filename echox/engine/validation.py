"""How a model does on the validation split: its loss, the loss's parts, and the task's own scores."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from echox.criteria.base import Criterion
from echox.engine import precision, randomness
from echox.engine.batching import load_batches, order_batches
from echox.engine.config import TrainConfig
from echox.progress import progress, waiting
from echox.signals import Batch
from echox.tasks.base import Examples, Task


class Validation:
    """The validation of one stage: the same batches each time, drawn at random from the split."""

    def __init__(self, task: Task, criterion: Criterion, config: TrainConfig, examples: Examples, device: torch.device) -> None:
        self.task = task
        self.criterion = criterion
        self.config = config
        self.examples = examples
        self.device = device
        order = order_batches(examples, batch_cost=config.batch_cost, batch_size=config.batch_size, seed=0)
        self.plan = order.epoch(0)[: config.validate_batches]

    def run(self, model: nn.Module) -> dict[str, float]:
        """Metrics of `model`, which is left in training mode; draws no random number that training would miss."""
        model.eval()
        with torch.no_grad(), randomness.preserved(self.device), precision.autocast(self.config.precision, self.device):
            metrics = self._losses(model)
            with waiting("scoring"):
                metrics |= self.task.score(model, self._batches)
        model.train()
        return metrics

    def _batches(self) -> Iterator[Batch]:
        for batch in load_batches(self.examples, self.task.collate, self.plan, self.config.num_workers):
            yield batch.to(self.device)

    def _losses(self, model: nn.Module) -> dict[str, float]:
        sums: dict[str, Tensor] = {}
        counts: dict[str, Tensor] = {}
        for batch in progress(self._batches(), "validating", unit="batch", total=len(self.plan)):
            loss = self.criterion(self.task.forward(model, batch), batch)
            own = (loss.total, torch.tensor(batch.count))
            for name, (total, count) in {"loss": own, **loss.parts}.items():
                sums[name] = sums.get(name, 0) + total.double()
                counts[name] = counts.get(name, 0) + count
        return {name: float(total) / max(1.0, float(counts[name])) for name, total in sums.items()}
