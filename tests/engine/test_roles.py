"""Two roles in one step: each has its own update and loss, and the run resumes exactly."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from echox.core import checkpoint
from echox.core.errors import ConfigError, TrainingError
from echox.core.signals import Loss, Outputs
from echox.criteria.base import Criterion
from echox.engine.config import LrSchedule, TrainConfig
from echox.engine.distribution import World
from echox.engine.optimisation import build_optimizer, lr_factor, roles_of
from echox.engine.step import Objective, Stepper
from echox.engine.trainer import train
from echox.tasks.base import Role

from .toy import NextLetter, ToyTask, toy_config, toy_task


@dataclass(frozen=True, slots=True)
class AdversarialOutputs(Outputs):
    real: Tensor  # [B]
    synthetic: Tensor  # [B]
    discriminator: nn.Module


class GeneratorAndDiscriminator(nn.Module):
    def __init__(self):
        super().__init__()
        self.generator, self.discriminator = (
            nn.Linear(1, 1),
            nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)),
        )


class AdversarialTask(ToyTask):
    """Generate the last letter of a row from its first; each role sees the other as data."""

    def build(self):
        return GeneratorAndDiscriminator()

    def trained_state_dict(self, model):
        return dict(model.state_dict())

    def parameter_groups(self, model):
        return [
            {"name": "generator", "params": list(model.generator.parameters()), "lr_scale": 1.0},
            {
                "name": "discriminator",
                "params": list(model.discriminator.parameters()),
                "lr_scale": 0.5,
                "role": Role.discriminator,
            },
        ]

    def forward(self, model, batch):
        first, last = (
            batch.ids[:, :1].float() / 12,
            batch.ids.gather(1, batch.lengths[:, None] - 1).float() / 12,
        )
        noise = torch.rand_like(first) if model.training else torch.zeros_like(first)
        return AdversarialOutputs(
            last[:, 0], model.generator(first + 0.1 * noise)[:, 0], model.discriminator
        )

    def publish(self, model, folder, step):
        (folder / "published.txt").write_text(str(step))


class AdversarialCriterion(Criterion):
    def forward(self, outputs, batch):
        total = (1 - outputs.discriminator(outputs.synthetic[:, None])).square().sum()
        return Loss(total, batch.count, {"generator": (total.detach(), torch.tensor(batch.count))})

    def discriminator(self, outputs, batch):
        assert not outputs.synthetic.requires_grad, (
            "the discriminator's update must not train the generator"
        )
        total = (
            1 - outputs.discriminator(outputs.real[:, None])
        ).square().sum() + outputs.discriminator(outputs.synthetic[:, None]).square().sum()
        return Loss(
            total, batch.count, {"discriminator": (total.detach(), torch.tensor(batch.count))}
        )


def adversarial_task():
    return AdversarialTask(toy_task().config, toy_task().context)


def stepper_of(task, criterion, **settings):
    torch.manual_seed(0)
    model, config = task.build(), toy_config(**settings)
    optimizer = build_optimizer(task.parameter_groups(model), config)
    return model.train(), Stepper(
        Objective(task, model, criterion), optimizer, config, World(), torch.device("cpu")
    )


def batches_of(task, *sizes):
    examples, order = task.examples("train"), iter(range(40))
    return [task.collate([examples[next(order)] for _ in range(size)]) for size in sizes]


def test_a_step_equals_those_of_two_optimizers():
    task = adversarial_task()
    model, stepper = stepper_of(task, AdversarialCriterion(), grad_clip=None)
    batches = batches_of(task, 3, 5)
    torch.manual_seed(0)
    other = task.build().train()
    torch.manual_seed(4)
    config, criterion, targets = (
        stepper.config,
        AdversarialCriterion(),
        sum(batch.count for batch in batches),
    )
    rate = config.lr * lr_factor(0, config)
    for part, scale, loss_of in (
        (other.discriminator, 0.5, criterion.discriminator),
        (other.generator, 1.0, criterion.forward),
    ):
        for side in (other.discriminator, other.generator):
            side.requires_grad_(side is part)
        decays = [
            {
                "params": [p for p in part.parameters() if (p.ndim > 1) == wide],
                "weight_decay": 0.01 * wide,
            }
            for wide in (True, False)
        ]
        optimizer = torch.optim.AdamW(
            decays, lr=rate * scale, betas=tuple(config.betas), eps=config.eps
        )
        for batch in batches:
            (loss_of(task.forward(other, batch), batch).total / targets).backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.manual_seed(4)
    report = stepper.run_step(0, batches)
    for (name, ours), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=name)
        assert ours.requires_grad and ours.grad is None
    assert {name for parts in report.parts for name in parts} == {"discriminator", "generator"}


def test_a_stage_without_a_discriminator_has_one_role():
    task = toy_task()
    assert roles_of(build_optimizer(task.parameter_groups(task.build()), toy_config())) == [
        Role.model
    ]


def test_either_role_is_stopped_by_a_gradient_that_is_not_finite():
    task = adversarial_task()
    for part in ("discriminator", "generator"):
        model, stepper = stepper_of(task, AdversarialCriterion())
        getattr(model, part).requires_grad_(True)
        next(getattr(model, part).parameters()).register_hook(
            lambda gradient: gradient * float("nan")
        )
        with pytest.raises(TrainingError, match="gradient's norm is nan at step 1"):
            stepper.run_step(0, batches_of(task, 2))


def test_a_criterion_without_a_discriminator_loss_is_refused():
    task = adversarial_task()
    _, stepper = stepper_of(task, NextLetter())
    with pytest.raises(ConfigError, match="NextLetter has no loss for a discriminator"):
        stepper.run_step(0, batches_of(task, 2))


def run(folder: Path, **settings) -> Path:
    config = toy_config(
        steps=8, save_every=4, validate_every=4, lr_schedule=LrSchedule.exponential, **settings
    )
    return train(
        adversarial_task(),
        AdversarialCriterion(),
        config,
        run_dir=folder,
        stage="adversarial",
        seed=7,
        device=torch.device("cpu"),
    )


def test_a_resumed_run_ends_with_the_same_bits(tmp_path):
    final = run(tmp_path / "whole")
    shutil.copytree(
        tmp_path / "whole" / "checkpoints" / "step_000000004",
        tmp_path / "half" / "checkpoints" / "step_000000004",
    )
    assert checkpoint.fingerprint(run(tmp_path / "half")) == checkpoint.fingerprint(final)
    assert (tmp_path / "half" / "published.txt").read_text() == "8"


def test_an_exponential_rate_falls_by_the_same_factor_each_step():
    config = TrainConfig(
        steps=101, lr_schedule=LrSchedule.exponential, warmup_fraction=0.0, min_lr_ratio=0.1
    )
    values = [lr_factor(step, config) for step in range(101)]
    assert values[0] == 1.0 and values[-1] == pytest.approx(0.1)
    assert all(
        later / earlier == pytest.approx(0.1**0.01) for earlier, later in zip(values, values[1:])
    )
    with pytest.raises(ConfigError, match="min_lr_ratio is 0, which an exponential"):
        TrainConfig(lr_schedule=LrSchedule.exponential, min_lr_ratio=0.0)
