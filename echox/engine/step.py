"""One optimizer step: micro-batches in, one update out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from echox.core.errors import TrainingError
from echox.core.signals import Batch, Loss
from echox.criteria.base import Criterion
from echox.engine import precision
from echox.engine.config import TrainConfig
from echox.engine.distribution import World
from echox.engine.optimisation import (
    clip_gradients,
    lr_factor,
    only_role_trains,
    roles_of,
    set_lr,
)
from echox.tasks.base import Role, Task

# Row ids named in an error; a longer list helps nobody.
NAMED_ROWS = 16

Parts = dict[str, tuple[Tensor, Tensor]]
"""Name -> (sum [], count []) of a part of the loss."""


class Objective(nn.Module):
    """Model, task and criterion as one module, to be compiled and wrapped for data parallelism."""

    def __init__(self, task: Task, model: nn.Module, criterion: Criterion) -> None:
        super().__init__()
        self.task = task
        self.model = model
        self.criterion = criterion

    def forward(self, batch: Batch, role: Role = Role.model) -> Loss:
        """Compute the summed loss of one batch for the role that is trained.

        Args:
            batch: on the model's device.
            role: the model, or the discriminator of a stage that has one.
        """
        is_model = role is Role.model
        loss_of = self.criterion if is_model else self.criterion.discriminator
        return loss_of(self.task.forward(self.model, batch), batch)


@dataclass(frozen=True, slots=True)
class StepReport:
    """Figures of one step over all ranks; the parts are this rank's, still on its device."""

    loss_sum: float  # over all targets
    targets: int
    examples: int
    grad_norm: float  # before clipping
    lr: float
    parts: list[Parts]  # one a micro-batch and role


class Stepper:
    """Optimizer steps on an objective whose gradients add up over micro-batches and ranks."""

    def __init__(
        self,
        objective: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: TrainConfig,
        world: World,
        device: torch.device,
    ) -> None:
        self.objective = objective
        self.optimizer = optimizer
        self.roles = roles_of(optimizer)
        self.config = config
        self.world = world
        self.device = device

    def run_step(self, step: int, batches: Sequence[Batch]) -> StepReport:
        """Update each role's parameters once.

        Args:
            step: step number from 0.
            batches: this rank's micro-batches.

        Raises:
            TrainingError: the loss or the gradient is not finite; the rows are named.
        """
        counts: list[float] = [sum(b.count for b in batches), sum(len(b.row_ids) for b in batches)]
        targets, examples = self.world.sum(counts)
        # Data parallelism averages over ranks where a sum is wanted, hence the world's size.
        scale = self.world.size / max(1.0, targets)
        lr = self.config.lr * lr_factor(step, self.config)
        updates = [self._update_role(role, batches, scale, lr) for role in self.roles]
        for norm, totals in _to_host(updates):
            loss_sum = self.world.sum([sum(totals)])[0]
            if not (math.isfinite(norm) and math.isfinite(loss_sum)):
                raise self._not_finite(step, norm, loss_sum, totals, batches)
        # The model is the last role, and its loss is the step's.
        parts = [loss.parts for _, losses in updates for loss in losses]
        return StepReport(loss_sum, int(targets), int(examples), norm, lr, parts)

    def _update_role(
        self, role: Role, batches: Sequence[Batch], scale: float, lr: float
    ) -> tuple[Tensor, list[Loss]]:
        """Update the parameters of one role: its gradient norm [], and a loss a micro-batch."""
        with only_role_trains(self.optimizer, role):
            losses = self._accumulate(role, batches, scale)
        return self._update(lr), losses

    def _accumulate(self, role: Role, batches: Sequence[Batch], scale: float) -> list[Loss]:
        losses = []
        for number, batch in enumerate(batches):
            # Ranks exchange gradients once a step, after the last micro-batch.
            is_last = number == len(batches) - 1
            with nullcontext() if is_last else self.world.unsynchronised(self.objective):
                with precision.autocast(self.config.precision, self.device):
                    loss = self.objective(batch.to(self.device), role)
                (loss.total * scale).backward()
            # Detached, so that the graph of a micro-batch is freed before the next one.
            losses.append(Loss(loss.total.detach(), loss.count, loss.parts))
        return losses

    def _update(self, lr: float) -> Tensor:
        # A tensor on the device, which `run_step` copies together with the losses.
        grad_norm = clip_gradients(self.optimizer, self.config.grad_clip)
        set_lr(self.optimizer, lr)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return grad_norm.float().to(self.device)

    def _not_finite(
        self, step: int, norm: float, loss_sum: float, totals: list[float], batches: Sequence[Batch]
    ) -> TrainingError:
        """Name the rows of the micro-batches with such a loss, all rows if it is a gradient."""
        is_broken = [not math.isfinite(total) for total in totals]
        rows = self._gather_rows([b for b, broken in zip(batches, is_broken) if broken])
        if not rows:
            rows = self._gather_rows(batches)
        if math.isfinite(loss_sum):
            what = f"the gradient's norm is {norm}"
        else:
            what = f"the loss is {loss_sum}"
        more = f" and {len(rows) - NAMED_ROWS} more" if len(rows) > NAMED_ROWS else ""
        return TrainingError(
            f"{what} at step {step + 1}, on rows {', '.join(rows[:NAMED_ROWS])}{more}; look at "
            "these rows, or lower lr or grad_clip"
        )

    def _gather_rows(self, batches: Sequence[Batch]) -> list[str]:
        """List the row ids of the batches of all ranks."""
        own = [row for batch in batches for row in batch.row_ids]
        return [row for rank in self.world.gather(own) for row in rank]


def _to_host(updates: Sequence[tuple[Tensor, list[Loss]]]) -> list[tuple[float, list[float]]]:
    """Copy each update's gradient norm and losses from the device."""
    # One tensor, because the copy is the only time the loop waits for the device. The update that
    # is checked with it is in the model already, but is never saved if it is not finite.
    values = [
        value
        for norm, losses in updates
        for value in (norm, *(loss.total.detach().float() for loss in losses))
    ]
    table = torch.stack(values).view(len(updates), -1)  # [roles, 1 + micro-batches]
    return [(norm, totals) for norm, *totals in table.tolist()]


class Window:
    """Metrics averaged over the steps since the last line of metrics.jsonl."""

    def __init__(self) -> None:
        self.steps = self.targets = self.examples = 0
        self.loss_sum = self.grad_norm_sum = self.elapsed_s = self.lr = 0.0
        self._parts: Parts = {}

    def add(self, report: StepReport, elapsed_s: float) -> None:
        """Add one step that took `elapsed_s` seconds."""
        self.steps += 1
        self.targets += report.targets
        self.examples += report.examples
        self.loss_sum += report.loss_sum
        self.grad_norm_sum += report.grad_norm
        self.elapsed_s += elapsed_s
        self.lr = report.lr
        # Tensors stay on the device until `means`, so that no step waits for them.
        for parts in report.parts:
            for name, (total, count) in parts.items():
                before = self._parts.get(name, (0, 0))
                self._parts[name] = (before[0] + total, before[1] + count)

    @property
    def throughput(self) -> dict[str, float]:
        """Targets and examples per second, over all ranks."""
        elapsed_s = max(self.elapsed_s, 1e-9)  # a new window has no steps yet
        return {
            "targets_per_s": self.targets / elapsed_s,
            "examples_per_s": self.examples / elapsed_s,
        }

    def means(self, world: World) -> dict[str, float]:
        """Compute the window's metrics over all ranks; every rank must call this.

        Returns:
            loss per target, parts per their own count, and targets and examples per second.
        """
        own = {name: (float(total), float(count)) for name, (total, count) in self._parts.items()}
        ranks = world.gather(own)
        # A rank may lack a part that its batches did not have.
        names = dict.fromkeys(name for rank in ranks for name in rank)
        parts = {name: _ratio([rank[name] for rank in ranks if name in rank]) for name in names}
        steps = max(1, self.steps)
        return {
            "loss": self.loss_sum / max(1, self.targets),
            **parts,
            "grad_norm": self.grad_norm_sum / steps,
            "lr": self.lr,
            **self.throughput,
        }


def _ratio(pairs: Sequence[tuple[float, float]]) -> float:
    return sum(total for total, _ in pairs) / max(1.0, sum(count for _, count in pairs))
