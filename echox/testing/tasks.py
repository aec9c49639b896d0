"""The contract of a task, tested on a corpus of noise; see `echox.tasks.base.Task`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from echox.core import checkpoint
from echox.core.errors import EchoxError
from echox.core.signals import Batch, Outputs
from echox.engine.audit import audit
from echox.engine.config import Precision
from echox.pipeline.dry_run import part_sizes
from echox.tasks.base import TASKS, Task, TaskConfig
from echox.testing.noise_corpus import (
    ROWS,
    built_task,
    noise_corpus,
    outline_of,
    prepared_stage,
    smoke_recipe,
    with_manifests,
)
from echox.testing.rules import copied_state, differing, survives_a_checkpoint

# Batching changes the order of float32 sums, no more.
TOLERANCE = 1e-3


def it_names_stages_as_parents(config: TaskConfig) -> None:
    """Check that the smoke recipe has a stage for each role that the task names.

    Raises:
        AssertionError: a role is not the name of a stage.
    """
    task = TASKS.entry_of(config).implementation
    stages = smoke_recipe().stages
    unknown = {*task.parents, *task.continues} - set(stages)
    assert not unknown, (
        f"the smoke recipe must have a stage for each parent ({', '.join(stages)}), "
        f"and has none for {', '.join(unknown)}"
    )


def two_builds_are_one_model(config: TaskConfig) -> None:
    """Check that the seed alone decides the initial weights.

    Raises:
        AssertionError: a tensor differs between two builds.
    """
    # `built_task` sets the seed each time, as a run does.
    first, second = (built_task(config)[1].state_dict() for _ in range(2))
    names = differing(first, second)
    assert first.keys() == second.keys() and not names, (
        f"two builds after the same seed differ in {', '.join(names[:3])}"
    )


def a_checkpoint_holds_what_was_trained(config: TaskConfig) -> None:
    """Check that a new model filled from `trained_state_dict` equals the trained one.

    Raises:
        AssertionError: a trained tensor is not in it, or does not come back.
    """
    task, model = built_task(config)
    _check_trained_names(task, model)
    # A step of 0.01 stands in for training: initial weights would come back from any checkpoint.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01)
    tensors = {
        name: tensor.detach().clone() for name, tensor in task.trained_state_dict(model).items()
    }
    fresh = built_task(config)[1]
    unsaved = checkpoint.Checkpoint(Path("unsaved"), {}, tensors, None)
    checkpoint.fill(fresh, unsaved, set(task.trained_state_dict(fresh)))
    names = differing(fresh.state_dict(), model.state_dict())
    assert not names, (
        f"after a checkpoint was read back, {', '.join(names[:3])} is not what was trained"
    )


def _check_trained_names(task: Task, model: nn.Module) -> None:
    tensors, state = task.trained_state_dict(model), model.state_dict()
    unknown = [name for name in tensors if name not in state]
    assert not unknown, (
        f"trained_state_dict must use the names in the model; it has no {', '.join(unknown[:3])}"
    )
    missed = [name for name, _ in _trained(model) if name not in tensors]
    assert not missed, f"{', '.join(missed[:3])} is trained, but no checkpoint would hold it"


def every_trained_weight_is_in_one_group(config: TaskConfig) -> None:
    """Check that the optimiser gets every trained parameter, and gets it once.

    Raises:
        AssertionError: a group lacks a key, or a parameter is in none or in two.
    """
    task, model = built_task(config)
    groups = task.parameter_groups(model)
    # The optimiser is built from these keys.
    assert groups and all({"name", "params", "lr_scale"} <= group.keys() for group in groups), (
        "a group needs name, params and lr_scale"
    )
    # By identity, since `==` of two tensors is elementwise.
    grouped = [
        id(parameter)
        for group in groups
        for parameter in group["params"]
        if parameter.requires_grad
    ]
    assert len(grouped) == len(set(grouped)), "a parameter is in two groups"
    missed = [name for name, parameter in _trained(model) if id(parameter) not in grouped]
    assert not missed, f"no group holds {', '.join(missed[:3])}, so it would not be trained"


def preparing_twice_is_preparing_once(config: TaskConfig) -> None:
    """Check that a second `prepare`, as of a resumed run, changes neither examples nor weights.

    Raises:
        AssertionError: a cost or a trained tensor has changed.
    """
    stage = prepared_stage(config)
    # `prepared_stage` has prepared the task once.
    costs = [_costs(stage.task, split) for split in ("train", "valid")]
    tensors = stage.task.trained_state_dict(stage.model)
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    stage.task.prepare(stage.model)
    assert [_costs(stage.task, split) for split in ("train", "valid")] == costs, (
        "a second prepare changed the examples"
    )
    changed = differing(stage.task.trained_state_dict(stage.model), before)
    assert not changed, f"prepare changed {', '.join(changed[:3])}"


def examples_have_costs(config: TaskConfig) -> None:
    """Check that both splits have examples, with costs that batches can be bucketed by.

    Raises:
        AssertionError: a split has fewer than two examples, or a cost is no positive integer.
    """
    stage = prepared_stage(config)
    for split in ("train", "valid"):
        costs = _costs(stage.task, split)
        # A filter that drops rows of noise would leave the other rules without a batch.
        assert len(costs) > 1, (
            f"the {split} split of a corpus of {ROWS} rows has {len(costs)} examples"
        )
        assert all(isinstance(cost, int) and cost > 0 for cost in costs), (
            f"every example needs a cost, a positive integer; they are {costs}"
        )


def collating_is_repeatable(config: TaskConfig) -> None:
    """Check that a batch depends on its examples alone, and is complete.

    Raises:
        AssertionError: `collate` draws random numbers, gives other values the second time, or a
            batch whose rows, count or tensors are wrong.
    """
    stage = prepared_stage(config)
    examples = stage.examples
    state = torch.get_rng_state()
    first, second = (
        stage.task.collate([examples[index] for index in range(len(examples))]) for _ in range(2)
    )
    assert torch.equal(state, torch.get_rng_state()), (
        "collate may not draw random numbers: a resumed run would see other batches"
    )
    _check_batch(first, len(examples))
    names = differing(dict(_tensors(second)), dict(_tensors(first)))
    assert not names, f"collating the same examples twice gave two values of {', '.join(names)}"


def _check_batch(batch: Batch, rows: int) -> None:
    assert isinstance(batch, Batch) and len(batch.row_ids) == rows, (
        f"a batch of {rows} examples names {len(batch.row_ids)} rows"
    )
    # The loss is divided by the count, over all ranks and micro-batches of a step.
    assert isinstance(batch.count, int) and batch.count > 0, (
        f"count must be the number of targets, a positive integer, not {batch.count!r}"
    )
    tensors = dict(_tensors(batch))
    assert tensors and all(tensor.device.type == "cpu" for tensor in tensors.values()), (
        "a batch must hold tensors on the CPU"
    )


def forward_learns(config: TaskConfig) -> None:
    """Check that the outputs are finite, and that gradients reach trained parameters.

    Raises:
        AssertionError: they are not of type `Outputs`, not finite, or without gradient.
    """
    stage = prepared_stage(config)
    stage.model.train()
    outputs = stage.task.forward(stage.model, stage.batch(range(2)))
    assert isinstance(outputs, Outputs), (
        f"forward must return Outputs, not {type(outputs).__name__}"
    )
    floats = {name: tensor for name, tensor in _tensors(outputs) if tensor.is_floating_point()}
    broken = [name for name, tensor in floats.items() if not bool(tensor.isfinite().all())]
    assert not broken, f"{', '.join(broken)} of forward is not finite"
    # Any function of all outputs serves; the criterion may leave some out.
    squares = (tensor.float().square().mean() for tensor in floats.values() if tensor.requires_grad)
    torch.stack(list(squares)).sum().backward()
    gradients = [parameter.grad for _, parameter in _trained(stage.model)]
    reached = any(grad is not None and bool(grad.abs().sum() > 0) for grad in gradients)
    # A later rule may use the same model.
    stage.model.zero_grad()
    assert reached, f"no gradient reaches any of {len(gradients)} trained parameters"


def an_audit_shows_its_batches(config: TaskConfig) -> None:
    """Check that `audit_batch` returns views into the batch, or says why it cannot.

    Raises:
        AssertionError: it returns nothing, or copies.
    """
    stage = prepared_stage(config)
    batch = stage.batch(range(2))
    view = stage.task.audit_batch(stage.model, batch)
    assert view.tracks or view.ctc_targets or view.notes, (
        "audit_batch must say what the losses see of a batch, "
        "or in its notes why that cannot be shown"
    )
    shown = [tensor for track in view.tracks for tensor in (track.read, track.scored)]
    shown += [clip.labels for clip in view.ctc_targets]
    shown += view.padding
    # A view shares the storage of its tensor; a copy has its own. Empty tensors have none.
    storages = {tensor.untyped_storage().data_ptr() for _, tensor in _tensors(batch)}
    pointers = (tensor.untyped_storage().data_ptr() for tensor in shown if tensor.numel())
    assert all(pointer in storages for pointer in pointers), (
        "audit_batch must give views into the batch's own tensors, not copies"
    )


def an_audit_finds_nothing_wrong(config: TaskConfig) -> None:
    """Check that the task's labels pass the audit, and that the audit leaves no trace.

    Raises:
        AssertionError: a label is at fault, or weights or the random state have changed.
    """
    stage = prepared_stage(config)
    # Without a criterion there is no loss whose targets could be checked.
    if stage.criterion is None:
        return
    before = copied_state(stage.model)
    random_state = torch.get_rng_state()
    report = audit(
        stage.task,
        stage.model,
        stage.criterion,
        range(len(stage.examples)),
        stage="audited",
        device=torch.device("cpu"),
        number_format=Precision.fp32,
    )
    assert report.fault is None, f"its own labels are found at fault: {report.fault}"
    changed = differing(stage.model.state_dict(), before)
    is_same_state = torch.equal(random_state, torch.get_rng_state())
    assert not changed and is_same_state and stage.model.training, (
        "an audit must leave the model and the random state alone"
    )


@torch.no_grad()
def rows_do_not_influence_each_other(config: TaskConfig) -> None:
    """Check that the loss of two rows is the sum of their losses in batches of their own.

    Raises:
        AssertionError: it differs by more than `TOLERANCE`, relative to losses above 1.
    """
    stage = prepared_stage(config)
    # Without dropout, which would differ between the three batches.
    stage.model.eval()
    together, *alone = (stage.loss(rows) for rows in ((0, 1), (0,), (1,)))
    for name, (total, count) in together.parts.items():
        # A part may be absent from a batch that has no target for it.
        parts = [loss.parts[name] for loss in alone if name in loss.parts]
        apart = sum(float(part_total) for part_total, _ in parts)
        targets = sum(float(part_count) for _, part_count in parts)
        # Relative for large losses, absolute for those below 1.
        close = abs(float(total) - apart) <= TOLERANCE * max(1.0, abs(apart))
        assert close and float(count) == targets, (
            f"{name!r} of two rows is {float(total):.5g} in one batch and {apart:.5g} in two: "
            "they influence each other"
        )


@torch.no_grad()
def scores_are_numbers(config: TaskConfig) -> None:
    """Check that validation metrics are named floats, and that computing them changes no weight.

    Raises:
        AssertionError: a metric is no float, or a tensor of the model has changed.
    """
    stage = prepared_stage(config)
    stage.model.eval()
    before = copied_state(stage.model)
    # A new iterator at each call: a task may read the batches more than once.
    scores = stage.task.score(stage.model, lambda: iter([stage.batch(range(2))]))
    assert all(
        isinstance(name, str) and isinstance(value, float) for name, value in scores.items()
    ), f"scores must be named floats, not {scores}"
    changed = differing(stage.model.state_dict(), before)
    assert not changed, f"scoring changed {', '.join(changed[:3])}"


def its_data_has_fingerprints(config: TaskConfig) -> None:
    """Check that the stage's data has fingerprints, which a resumed run compares.

    Raises:
        AssertionError: there is none, one is no text, or they differ between two calls.
    """
    task = prepared_stage(config).task
    prints = task.data_fingerprints()
    assert prints and all(
        isinstance(name, str) and isinstance(value, str) and value for name, value in prints.items()
    ), f"fingerprints are texts: {prints}"
    assert task.data_fingerprints() == prints, "the data's fingerprints differ between two calls"


def a_missing_manifest_is_said(config: TaskConfig) -> None:
    """Check that a manifest that does not exist is named in the error.

    Raises:
        AssertionError: there is no `EchoxError`, or it does not name the file.
    """
    gone = [str(noise_corpus().folder / "gone.jsonl")]
    without_manifest = with_manifests(config, gone, gone)
    # A task without manifests has none to miss.
    if without_manifest == config:
        return
    # A task may read its manifests at any of these three.
    try:
        task, model = built_task(without_manifest)
        task.prepare(model)
        task.examples("train")
    except EchoxError as error:
        assert "gone.jsonl" in str(error), (
            f"the error does not name the manifest that is missing: {error}"
        )
        return
    raise AssertionError("a manifest that does not exist must raise ManifestError")


def an_outline_has_the_trained_weights(config: TaskConfig) -> None:
    """Check that an outline trains what the built model trains, and names a part for all of it.

    Raises:
        AssertionError: it has values, trains other weights, or leaves some in no part.
    """
    outline = outline_of(config)
    # By the default alone, no more is known than the pretrained parts.
    if outline.is_estimate:
        return
    named = dict(outline.model.named_parameters())
    have_values = [name for name, parameter in named.items() if not parameter.is_meta]
    assert not have_values, f"the outline has values in {', '.join(have_values[:3])}"
    # Names alone: sizes of what the data decides, such as the tokens that CTC finds, may differ.
    wrong = {name for name, _ in _trained(built_task(config)[1])} ^ {
        name for name, _ in _trained(outline.model)
    }
    assert not wrong, (
        "the outline must train what the task trains, and differs in "
        f"{', '.join(sorted(wrong)[:3])}"
    )
    homeless = [size for size in part_sizes(outline) if size.name not in outline.parts]
    assert not homeless, "every weight must be in one of the outline's parts"


def config_survives_a_checkpoint(config: TaskConfig) -> None:
    """Check that the config comes back from the data that a checkpoint records of it.

    Raises:
        AssertionError: another config comes back.
    """
    survives_a_checkpoint(TASKS, config)


CHECKS = (
    it_names_stages_as_parents,
    two_builds_are_one_model,
    a_checkpoint_holds_what_was_trained,
    every_trained_weight_is_in_one_group,
    preparing_twice_is_preparing_once,
    examples_have_costs,
    collating_is_repeatable,
    forward_learns,
    an_audit_shows_its_batches,
    an_audit_finds_nothing_wrong,
    rows_do_not_influence_each_other,
    scores_are_numbers,
    its_data_has_fingerprints,
    a_missing_manifest_is_said,
    an_outline_has_the_trained_weights,
    config_survives_a_checkpoint,
)


def _costs(task: Task, split: str) -> list[int]:
    examples = task.examples(split)
    return [examples.cost(index) for index in range(len(examples))]


def _trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    named = model.named_parameters()
    return [(name, parameter) for name, parameter in named if parameter.requires_grad]


def _tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor in a nesting of dataclasses, with its dotted name."""
    if isinstance(value, Tensor):
        yield name, value
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _tensors(getattr(value, field.name), f"{name}.{field.name}".lstrip("."))
