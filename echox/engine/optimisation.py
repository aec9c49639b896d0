"""AdamW over a task's parameter groups, and the learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from echox.engine.config import LrSchedule, TrainConfig
from echox.errors import CheckpointError, TrainingError
from echox.tasks.base import Role, role_of


def build_optimizer(groups: Iterable[dict[str, Any]], config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over the groups of `Task.parameter_groups`, each split by whether weight decay applies.

    Raises:
        TrainingError: no group holds a parameter.
    """
    split = [half for group in groups for half in _by_decay(group, config.weight_decay) if half["params"]]
    if not split:
        raise TrainingError("the task's parameter groups are empty, so there is nothing to train; check what the stage freezes")
    return torch.optim.AdamW(split, lr=config.lr, betas=tuple(config.betas), eps=config.eps, fused=_can_fuse(split))


def _by_decay(group: dict[str, Any], weight_decay: float) -> list[dict[str, Any]]:
    matrices = [p for p in group["params"] if p.ndim >= 2]
    vectors = [p for p in group["params"] if p.ndim < 2]
    return [
        {**group, "params": matrices, "weight_decay": weight_decay},
        {**group, "params": vectors, "weight_decay": 0.0},
    ]


def _can_fuse(groups: list[dict[str, Any]]) -> bool:
    return all(p.device.type in ("cpu", "cuda") for group in groups for p in group["params"])


def lr_factor(step: int, config: TrainConfig) -> float:
    """Learning rate of step `step` (from 0) as a share of the peak, in [0, 1]; no state, so resuming needs none."""
    warmup = round(config.warmup_fraction * config.steps)
    if step < warmup:
        return (step + 1) / warmup
    # The last step, steps - 1, ends exactly at the minimum.
    done = min(1.0, (step - warmup) / max(1, config.steps - 1 - warmup))
    if config.lr_schedule is LrSchedule.exponential:
        return config.min_lr_ratio**done
    return config.min_lr_ratio + (1 - config.min_lr_ratio) * _remaining(config.lr_schedule, done)


def _remaining(schedule: LrSchedule, done: float) -> float:
    if schedule is LrSchedule.constant:
        return 1.0
    if schedule is LrSchedule.linear:
        return 1.0 - done
    return 0.5 * (1 + math.cos(math.pi * done))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group `lr` times its own `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def roles_of(optimizer: torch.optim.Optimizer) -> list[Role]:
    """Who learns, in the order they take turns in a step."""
    learning = {role_of(group) for group in optimizer.param_groups}
    return [role for role in Role if role in learning]


@contextmanager
def learning(optimizer: torch.optim.Optimizer, role: Role) -> Iterator[None]:
    """Inside, gradients reach the parameters of `role` alone, so what the others make is to it as if it were data."""
    others = [p for group in optimizer.param_groups if role_of(group) is not role for p in group["params"]]
    for parameter in others:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in others:
            parameter.requires_grad_(True)


def clip_gradients(optimizer: torch.optim.Optimizer, max_norm: float | None) -> Tensor:
    """Scale gradients to an L2 norm of at most `max_norm`; the norm [] before that, not finite if any gradient is not."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return torch.nn.utils.clip_grad_norm_(parameters, math.inf if max_norm is None else max_norm)


def state_by_name(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, dict[str, Any]]:
    """The optimiser's state under the parameters' names, which outlive their order; settings are the config's and not part of it."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[parameter]: state for parameter, state in optimizer.state.items()}


def load_state_by_name(optimizer: torch.optim.Optimizer, model: nn.Module, states: dict[str, dict[str, Any]]) -> None:
    """Give each parameter back its state.

    Raises:
        CheckpointError: a state belongs to a parameter that is not trained here.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    order = [names[p] for group in optimizer.param_groups for p in group["params"]]
    if unknown := sorted(states.keys() - set(order)):
        raise CheckpointError(f"the checkpoint trained {unknown[0]!r}, which this recipe does not train; resume with the recipe it began with")
    numbered = {number: states[name] for number, name in enumerate(order) if name in states}
    optimizer.load_state_dict({"state": numbered, "param_groups": optimizer.state_dict()["param_groups"]})
