"""One optimizer step: what it adds up, and what it refuses."""

import pytest
import torch

from echox.core.errors import TrainingError
from echox.engine.distribution import World
from echox.engine.optimisation import build_optimizer
from echox.engine.step import Objective, Stepper, Window

from .toy import NextLetter, toy_config, toy_task


def stepper_of(task, **settings):
    torch.manual_seed(0)
    model = task.build()
    config = toy_config(**settings)
    optimizer = build_optimizer(task.parameter_groups(model), config)
    return model, Stepper(
        Objective(task, model, NextLetter()), optimizer, config, World(), torch.device("cpu")
    )


def batches_of(task, *sizes):
    examples = task.examples("train")
    order = iter(range(len(examples)))
    return [task.collate([examples[next(order)] for _ in range(size)]) for size in sizes]


def gradients_after(*sizes):
    task = toy_task(dropout=0.0)
    model, stepper = stepper_of(task, grad_clip=None)
    report = stepper.run_step(0, batches_of(task, *sizes))
    return report, {
        name: stepper.optimizer.state[p]["exp_avg"] / 0.1
        for name, p in model.named_parameters()
        if p in stepper.optimizer.state
    }


def test_accumulation_has_the_gradient_of_one_large_batch():
    large, expected = gradients_after(12)
    small, gradients = gradients_after(3, 8, 1)
    assert (small.targets, small.examples) == (large.targets, large.examples)
    assert small.loss_sum == pytest.approx(large.loss_sum, rel=1e-6)
    for name in expected:
        torch.testing.assert_close(gradients[name], expected[name], atol=1e-6, rtol=0)


def test_the_error_names_the_rows_of_the_broken_batch_alone():
    task = toy_task(poisoned_row="row-4")
    _, stepper = stepper_of(task)
    with pytest.raises(
        TrainingError, match="the loss is nan at step 10, on rows row-3, row-4, row-5; "
    ):
        stepper.run_step(9, batches_of(task, 3, 3, 3))


def test_the_error_of_a_gradient_that_is_not_finite_names_every_row():
    task = toy_task()
    model, stepper = stepper_of(task)
    model.output.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(
        TrainingError,
        match=r"gradient's norm is (nan|inf) at step 1, on rows row-0, row-1, row-2 and|"
        r"on rows row-0, row-1; ",
    ):
        stepper.run_step(0, batches_of(task, 2))


def test_a_window_weights_steps_by_their_targets():
    task = toy_task(dropout=0.0)
    _, stepper = stepper_of(task, lr=1e-12)
    reports = [stepper.run_step(0, batches_of(task, size)) for size in (1, 9)]
    window = Window()
    for report in reports:
        window.add(report, elapsed_s=0.5)
    means = window.means(World())
    assert means["loss"] == pytest.approx(
        sum(r.loss_sum for r in reports) / sum(r.targets for r in reports)
    )
    assert means["examples_per_s"] == pytest.approx(10.0)
    assert 0 <= means["accuracy"] <= 1
