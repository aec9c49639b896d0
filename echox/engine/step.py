"""One optimiser step: micro-batches in, one update out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from echox.criteria.base import Criterion
from echox.engine import precision
from echox.engine.config import TrainConfig
from echox.engine.distribution import World
from echox.engine.optimisation import clip_gradients, learning, lr_factor, roles_of, set_lr
from echox.errors import TrainingError
from echox.signals import Batch, Loss
from echox.tasks.base import Role, Task

# Row ids named in an error; a long list helps nobody.
NAMED_ROWS = 16

Parts = dict[str, tuple[Tensor, Tensor]]


class Objective(nn.Module):
    """Model, task and criterion as one module: batch -> loss. It is what data parallelism wraps and what gets compiled."""

    def __init__(self, task: Task, model: nn.Module, criterion: Criterion) -> None:
        super().__init__()
        self.task = task
        self.model = model
        self.criterion = criterion

    def forward(self, batch: Batch, role: Role = Role.model) -> Loss:
        """The summed loss of one batch on the model's device, for whoever learns."""
        loss_of = {Role.model: self.criterion, Role.discriminator: self.criterion.discriminator}[role]
        return loss_of(self.task.forward(self.model, batch), batch)


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one step was like, over all ranks; the parts are this rank's and still on its device."""

    loss_sum: float
    targets: int
    examples: int
    grad_norm: float
    lr: float
    parts: list[Parts]


class Stepper:
    """Takes optimiser steps on an objective whose gradients add up over micro-batches and ranks."""

    def __init__(self, objective: nn.Module, optimizer: torch.optim.Optimizer, config: TrainConfig, world: World, device: torch.device) -> None:
        self.objective = objective
        self.optimizer = optimizer
        self.roles = roles_of(optimizer)
        self.config = config
        self.world = world
        self.device = device

    def take(self, step: int, batches: Sequence[Batch]) -> StepReport:
        """Step number `step` (from 0) on this rank's micro-batches.

        Raises:
            TrainingError: the loss or the gradient is not finite; the rows are named.
        """
        targets, examples = self.world.sum([sum(b.count for b in batches), sum(len(b.row_ids) for b in batches)])
        scale = self.world.size / max(1.0, targets)
        lr = self.config.lr * lr_factor(step, self.config)
        turns = [self._turn(role, batches, scale, lr) for role in self.roles]
        # The only time the loop waits for the device. The update it then judges is already in the model, but is never saved.
        flat = torch.stack([value for norm, losses in turns for value in (norm, *(loss.total.detach().float() for loss in losses))])
        for norm, *totals in flat.view(len(turns), -1).tolist():
            loss_sum = self.world.sum([sum(totals)])[0]
            if not (math.isfinite(norm) and math.isfinite(loss_sum)):
                raise self._not_finite(step, norm, loss_sum, totals, batches)
        # The model's turn is the last, and its loss is the step's.
        return StepReport(loss_sum, int(targets), int(examples), norm, lr, [loss.parts for _, losses in turns for loss in losses])

    def _turn(self, role: Role, batches: Sequence[Batch], scale: float, lr: float) -> tuple[Tensor, list[Loss]]:
        """One side's update: its gradient norm, and its losses."""
        with learning(self.optimizer, role):
            losses = self._accumulate(role, batches, scale)
        return self._update(lr), losses

    def _accumulate(self, role: Role, batches: Sequence[Batch], scale: float) -> list[Loss]:
        # Data parallelism averages over ranks where a sum is wanted, hence the world's size in `scale`.
        losses = []
        for number, batch in enumerate(batches):
            is_last = number == len(batches) - 1
            with nullcontext() if is_last else self.world.unsynchronised(self.objective):
                with precision.autocast(self.config.precision, self.device):
                    loss = self.objective(batch.to(self.device), role)
                (loss.total * scale).backward()
            losses.append(Loss(loss.total.detach(), loss.count, loss.parts))
        return losses

    def _update(self, lr: float) -> Tensor:
        grad_norm = clip_gradients(self.optimizer, self.config.grad_clip)
        set_lr(self.optimizer, lr)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return grad_norm.float().to(self.device)

    def _not_finite(self, step: int, norm: float, loss_sum: float, totals: list[float], batches: Sequence[Batch]) -> TrainingError:
        broken = [row for total, batch in zip(totals, batches) if not math.isfinite(total) for row in batch.row_ids]
        rows = [row for part in self.world.gather(broken) for row in part]
        if not rows:
            rows = [row for part in self.world.gather([row for batch in batches for row in batch.row_ids]) for row in part]
        what = f"the gradient's norm is {norm}" if math.isfinite(loss_sum) else f"the loss is {loss_sum}"
        more = f" and {len(rows) - NAMED_ROWS} more" if len(rows) > NAMED_ROWS else ""
        return TrainingError(f"{what} at step {step + 1}, on rows {', '.join(rows[:NAMED_ROWS])}{more}; look at these rows, or lower lr or grad_clip")


class Window:
    """Means over the steps since the last line of metrics."""

    def __init__(self) -> None:
        self.steps = self.targets = self.examples = 0
        self.loss_sum = self.grad_norm_sum = self.elapsed_s = self.lr = 0.0
        self._parts: Parts = {}

    def add(self, report: StepReport, elapsed_s: float) -> None:
        """Count one step that took `elapsed_s` seconds."""
        self.steps += 1
        self.targets += report.targets
        self.examples += report.examples
        self.loss_sum += report.loss_sum
        self.grad_norm_sum += report.grad_norm
        self.elapsed_s += elapsed_s
        self.lr = report.lr
        for parts in report.parts:
            for name, (total, count) in parts.items():
                before = self._parts.get(name, (0, 0))
                self._parts[name] = (before[0] + total, before[1] + count)

    @property
    def throughput(self) -> dict[str, float]:
        """Targets and examples per second, all ranks together."""
        elapsed_s = max(self.elapsed_s, 1e-9)
        return {"targets_per_s": self.targets / elapsed_s, "examples_per_s": self.examples / elapsed_s}

    def means(self, world: World) -> dict[str, float]:
        """The window's metrics, its parts summed over ranks; every rank must call this."""
        own = {name: (float(total), float(count)) for name, (total, count) in self._parts.items()}
        ranks = world.gather(own)
        parts = {name: _ratio([rank[name] for rank in ranks if name in rank]) for name in dict.fromkeys(n for rank in ranks for n in rank)}
        steps = max(1, self.steps)
        return {"loss": self.loss_sum / max(1, self.targets), **parts, "grad_norm": self.grad_norm_sum / steps, "lr": self.lr, **self.throughput}


def _ratio(pairs: Sequence[tuple[float, float]]) -> float:
    return sum(total for total, _ in pairs) / max(1.0, sum(count for _, count in pairs))
