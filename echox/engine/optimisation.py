"""AdamW over a task's parameter groups, and the learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from echox.core.errors import CheckpointError, TrainingError
from echox.engine.config import LrSchedule, TrainConfig
from echox.tasks.base import Role, role_of


def build_optimizer(groups: Iterable[dict[str, Any]], config: TrainConfig) -> torch.optim.AdamW:
    """Build AdamW over the groups of `Task.parameter_groups`, split by weight decay.

    Args:
        groups: {"name", "params", "lr_scale"}, and "role" where there are discriminators.
        config: learning rate, decay rates, weight decay.

    Raises:
        TrainingError: no group holds a parameter.
    """
    halves = (half for group in groups for half in _by_decay(group, config.weight_decay))
    split = [half for half in halves if half["params"]]
    if not split:
        raise TrainingError(
            "the task's parameter groups are empty, so there is nothing to train; check what the "
            "stage freezes"
        )
    first, second = config.betas
    return torch.optim.AdamW(
        split, lr=config.lr, betas=(first, second), eps=config.eps, fused=_can_fuse(split)
    )


def _by_decay(group: dict[str, Any], weight_decay: float) -> list[dict[str, Any]]:
    # Biases and norms are not decayed: zero is no simpler value for a norm's scale.
    matrices = [p for p in group["params"] if p.ndim >= 2]
    vectors = [p for p in group["params"] if p.ndim < 2]
    return [
        {**group, "params": matrices, "weight_decay": weight_decay},
        {**group, "params": vectors, "weight_decay": 0.0},
    ]


def _can_fuse(groups: list[dict[str, Any]]) -> bool:
    # torch has the fused kernel for these devices only.
    return all(p.device.type in ("cpu", "cuda") for group in groups for p in group["params"])


def lr_factor(step: int, config: TrainConfig) -> float:
    """Compute the learning rate of a step as a share of the peak.

    A function of the step alone, so that resuming needs no state.

    Args:
        step: step number from 0.
        config: the schedule.

    Returns:
        a factor in [0, 1].
    """
    warmup = round(config.warmup_fraction * config.steps)
    if step < warmup:
        # From 1 / warmup, because a step at rate 0 would train nothing.
        return (step + 1) / warmup
    # The last step, steps - 1, ends exactly at the minimum.
    done = min(1.0, (step - warmup) / max(1, config.steps - 1 - warmup))
    if config.lr_schedule is LrSchedule.exponential:
        return config.min_lr_ratio**done
    return config.min_lr_ratio + (1 - config.min_lr_ratio) * _remaining(config.lr_schedule, done)


def _remaining(schedule: LrSchedule, done: float) -> float:
    """Return the share of the way from the minimum to the peak, after a share `done` of the run."""
    if schedule is LrSchedule.constant:
        return 1.0
    if schedule is LrSchedule.linear:
        return 1.0 - done
    return 0.5 * (1 + math.cos(math.pi * done))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group to `lr` times its own `lr_scale`."""
    # Not by torch's schedulers, whose state a checkpoint would have to hold.
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def roles_of(optimizer: torch.optim.Optimizer) -> list[Role]:
    """List the roles that have parameters, in the order of their updates in a step."""
    present = {role_of(group) for group in optimizer.param_groups}
    return [role for role in Role if role in present]


@contextmanager
def only_role_trains(optimizer: torch.optim.Optimizer, role: Role) -> Iterator[None]:
    """Freeze the parameters of all other roles inside the block."""
    others = [
        p for group in optimizer.param_groups if role_of(group) is not role for p in group["params"]
    ]
    # Gradients still flow through frozen parameters to their inputs, as a generator's loss needs.
    for parameter in others:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in others:
            parameter.requires_grad_(True)


def clip_gradients(optimizer: torch.optim.Optimizer, max_norm: float | None) -> Tensor:
    """Scale gradients to an L2 norm of at most `max_norm`.

    Args:
        optimizer: of all trained parameters.
        max_norm: the limit; None only measures.

    Returns:
        the norm [] before scaling; not finite if any gradient is not.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    # Without a limit too, because the norm shows gradients that are not finite.
    return torch.nn.utils.clip_grad_norm_(parameters, math.inf if max_norm is None else max_norm)


def state_by_name(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, dict[str, Any]]:
    """Return the optimizer's state by parameter name, without its settings.

    Names outlast the order of parameters, and the settings come from the config.
    """
    names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
    return {names[parameter]: state for parameter, state in optimizer.state.items()}


def load_state_by_name(
    optimizer: torch.optim.Optimizer, model: nn.Module, states: dict[str, dict[str, Any]]
) -> None:
    """Load the optimizer's state that `state_by_name` returned.

    Args:
        optimizer: of the same parameters, in any order.
        model: names the parameters.
        states: parameter name -> state.

    Raises:
        CheckpointError: a state belongs to a parameter that is not trained here, or does not fit
            it.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    trained = {names[p]: p for group in optimizer.param_groups for p in group["params"]}
    order = list(trained)
    if unknown := sorted(states.keys() - set(order)):
        raise CheckpointError(
            f"the checkpoint trained {unknown[0]!r}, which this recipe does not train; resume with "
            "the recipe it began with"
        )
    for name, state in states.items():
        _check_state(name, state, trained[name])
    # torch numbers parameters in the order of the groups.
    numbered = {number: states[name] for number, name in enumerate(order) if name in states}
    # With the settings of the new optimizer, since the config may have changed.
    optimizer.load_state_dict(
        {"state": numbered, "param_groups": optimizer.state_dict()["param_groups"]}
    )


def _check_state(name: str, state: dict[str, Any], parameter: Tensor) -> None:
    # torch takes any state, and fails at the first step.
    shapes = {"step": torch.Size(), **dict.fromkeys(("exp_avg", "exp_avg_sq"), parameter.shape)}
    for key, shape in shapes.items():
        value = state.get(key)
        if not isinstance(value, Tensor) or value.shape != shape:
            raise CheckpointError(
                f"the optimizer's {key} of {name!r} is no tensor of shape {list(shape)}"
            )
