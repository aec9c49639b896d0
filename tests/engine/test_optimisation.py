"""Schedules, and which parameters decay."""

import pytest
import torch
from torch import nn

from echox.core.errors import CheckpointError, ConfigError, TrainingError
from echox.engine.config import LrSchedule, TrainConfig
from echox.engine.optimisation import (
    build_optimizer,
    load_state_by_name,
    lr_factor,
    set_lr,
    state_by_name,
)


def factors(schedule, **settings):
    config = TrainConfig(
        steps=100, lr_schedule=schedule, warmup_fraction=0.1, min_lr_ratio=0.2, **settings
    )
    return [lr_factor(step, config) for step in range(100)]


@pytest.mark.parametrize("schedule", LrSchedule)
def test_every_schedule_warms_up_linearly_to_the_peak(schedule):
    values = factors(schedule)
    assert values[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert max(values) == pytest.approx(1.0)


def test_schedules_end_at_the_minimum():
    assert set(factors(LrSchedule.constant)[10:]) == {1.0}
    linear, cosine = factors(LrSchedule.linear), factors(LrSchedule.cosine)
    assert linear[-1] == pytest.approx(0.2) and cosine[-1] == pytest.approx(0.2)
    assert linear[55] == pytest.approx(1 - 0.8 * 45 / 89)
    assert cosine[30] > linear[30] and cosine[80] < linear[80]
    assert all(later <= earlier for earlier, later in zip(cosine[10:], cosine[11:]))


def test_after_the_last_step_the_minimum_stays():
    assert lr_factor(500, TrainConfig(steps=100, min_lr_ratio=0.2)) == pytest.approx(0.2)


def test_vectors_do_not_decay_and_groups_scale_the_learning_rate():
    model = nn.Linear(3, 2)
    groups = [{"name": "all", "params": list(model.parameters()), "lr_scale": 0.5}]
    optimizer = build_optimizer(groups, TrainConfig(weight_decay=0.1))
    assert [(g["params"][0].ndim, g["weight_decay"]) for g in optimizer.param_groups] == [
        (2, 0.1),
        (1, 0.0),
    ]
    set_lr(optimizer, 0.2)
    assert [g["lr"] for g in optimizer.param_groups] == [0.1, 0.1]


def test_nothing_to_train_is_an_error():
    with pytest.raises(TrainingError, match="nothing to train"):
        build_optimizer([{"name": "all", "params": [], "lr_scale": 1.0}], TrainConfig())


def trained(model, parameters):
    optimizer = build_optimizer(
        [{"name": "all", "params": parameters, "lr_scale": 1.0}], TrainConfig()
    )
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return optimizer


def test_state_is_loaded_by_name_in_another_order():
    model = nn.Linear(3, 2)
    states = state_by_name(trained(model, list(model.parameters())), model)
    other = build_optimizer(
        [{"name": "b", "params": [model.bias]}, {"name": "w", "params": [model.weight]}],
        TrainConfig(),
    )
    load_state_by_name(other, model, states)
    torch.testing.assert_close(other.state[model.weight]["exp_avg"], states["weight"]["exp_avg"])
    with pytest.raises(CheckpointError, match="trained 'bias', which this recipe does not train"):
        load_state_by_name(
            build_optimizer([{"name": "w", "params": [model.weight]}], TrainConfig()), model, states
        )


def test_a_config_error_names_all_faults():
    with pytest.raises(ConfigError) as error:
        TrainConfig(steps=0, batch_size=None, lr=-1, warmup_fraction=1.5, betas=[0.9])
    for words in (
        "batch_size and batch_cost",
        "steps must be at least 1, not 0",
        "lr must be above 0",
        "warmup_fraction",
        "betas",
    ):
        assert words in str(error.value)
