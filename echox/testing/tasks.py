"""The contract of a task; see `echox.tasks.base.Task`.

A task is tested where it will live: on a small corpus of noise, over random parts, behind the stages that it names as its parents,
which are trained for one step each. Whatever config of a task has lists `train` and `valid` of manifests gets those of that corpus, in
which every row has a spoken question with its words, and an answer with text, audio and units.
"""

from __future__ import annotations

import dataclasses
import functools
import tempfile
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from echox import checkpoint
from echox.chain import run_recipe
from echox.codecs.base import CODECS
from echox.criteria.base import CRITERIA
from echox.data.audio import pad_waveforms, save_audio
from echox.data.manifest import Item, Role, Row, with_units, write_manifest
from echox.engine.audit import audit
from echox.engine.config import Precision
from echox.errors import EchoxError
from echox.recipe import ALL_STAGES, STAGES, Recipe, load_recipe
from echox.signals import Batch, Loss, Outputs
from echox.tasks.base import TASKS, Examples, Parts, StageContext, Task, TaskConfig
from echox.testing import survives_a_checkpoint

RECIPE = "echo_tiny"
SEED = 1
# Batching changes the order of float32 sums, no more.
TOLERANCE = 1e-3


def it_names_stages_as_parents(config: TaskConfig) -> None:
    task = TASKS.entry_of(config).implementation
    unknown = {*task.parents, *task.continues} - set(STAGES)
    assert not unknown, f"parents must be among {', '.join(STAGES)}, not {', '.join(unknown)}"


def two_builds_are_one_model(config: TaskConfig) -> None:
    first, second = (_built(config)[1].state_dict() for _ in range(2))
    differing = [name for name in first if not torch.equal(first[name], second[name])]
    assert first.keys() == second.keys() and not differing, f"two builds after the same seed differ in {', '.join(differing[:3])}"


def a_checkpoint_holds_what_was_trained(config: TaskConfig) -> None:
    task, model = _built(config)
    learned = task.learned(model)
    state = model.state_dict()
    unknown = [name for name in learned if name not in state]
    assert not unknown, f"learned must use the names in the model; it has no {', '.join(unknown[:3])}"
    missed = [name for name, parameter in model.named_parameters() if parameter.requires_grad and name not in learned]
    assert not missed, f"{', '.join(missed[:3])} is trained, but no checkpoint would hold it"
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01)
    fresh = _built(config)[1]
    found = checkpoint.Checkpoint(
        Path("unsaved"), {}, {name: tensor.detach().clone() for name, tensor in task.learned(model).items()}, None
    )
    checkpoint.fill(fresh, found, set(task.learned(fresh)))
    differing = [name for name, tensor in fresh.state_dict().items() if not torch.equal(tensor, model.state_dict()[name])]
    assert not differing, f"after a checkpoint was read back, {', '.join(differing[:3])} is not what was trained"


def every_trained_weight_is_in_one_group(config: TaskConfig) -> None:
    task, model = _built(config)
    groups = task.parameter_groups(model)
    assert groups and all({"name", "params", "lr_scale"} <= group.keys() for group in groups), "a group needs name, params and lr_scale"
    grouped = [id(parameter) for group in groups for parameter in group["params"] if parameter.requires_grad]
    assert len(grouped) == len(set(grouped)), "a parameter is in two groups"
    missed = [name for name, parameter in model.named_parameters() if parameter.requires_grad and id(parameter) not in grouped]
    assert not missed, f"no group holds {', '.join(missed[:3])}, so it would not be trained"


def preparing_twice_is_preparing_once(config: TaskConfig) -> None:
    stage = _stage(config)
    before = [_cost_of(stage.task, split) for split in ("train", "valid")]
    learned = {name: tensor.clone() for name, tensor in stage.task.learned(stage.model).items()}
    stage.task.prepare(stage.model)
    assert [_cost_of(stage.task, split) for split in ("train", "valid")] == before, "a second prepare changed the examples"
    changed = [name for name, tensor in stage.task.learned(stage.model).items() if not torch.equal(tensor, learned[name])]
    assert not changed, f"prepare changed {', '.join(changed[:3])}"


def examples_have_costs(config: TaskConfig) -> None:
    stage = _stage(config)
    for split in ("train", "valid"):
        examples = stage.task.examples(split)
        assert len(examples) > 1, f"the {split} split of a corpus of {ROWS} rows has {len(examples)} examples"
        costs = [examples.cost(index) for index in range(len(examples))]
        assert all(isinstance(cost, int) and cost > 0 for cost in costs), (
            f"every example needs a cost, a positive integer; they are {costs}"
        )


def collating_is_repeatable(config: TaskConfig) -> None:
    stage = _stage(config)
    examples = stage.examples
    state = torch.get_rng_state()
    first, second = (stage.task.collate([examples[index] for index in range(len(examples))]) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state()), "collate may not draw random numbers: a resumed run would see other batches"
    assert isinstance(first, Batch) and len(first.row_ids) == len(examples), (
        f"a batch of {len(examples)} examples names {len(first.row_ids)} rows"
    )
    assert isinstance(first.count, int) and first.count > 0, f"count must be the number of targets, a positive integer, not {first.count!r}"
    tensors = dict(_tensors(first))
    assert tensors and all(tensor.device.type == "cpu" for tensor in tensors.values()), "a batch must hold tensors on the CPU"
    differing = [name for name, tensor in _tensors(second) if not torch.equal(tensor, tensors[name])]
    assert not differing, f"collating the same examples twice gave two values of {', '.join(differing)}"


def forward_learns(config: TaskConfig) -> None:
    stage = _stage(config)
    stage.model.train()
    outputs = stage.task.forward(stage.model, stage.batch(range(2)))
    assert isinstance(outputs, Outputs), f"forward must return Outputs, not {type(outputs).__name__}"
    floats = {name: tensor for name, tensor in _tensors(outputs) if tensor.is_floating_point()}
    broken = [name for name, tensor in floats.items() if not bool(tensor.isfinite().all())]
    assert not broken, f"{', '.join(broken)} of forward is not finite"
    sum(tensor.float().square().mean() for tensor in floats.values() if tensor.requires_grad).backward()
    trained = [parameter for parameter in stage.model.parameters() if parameter.requires_grad]
    reached = sum(parameter.grad is not None and bool(parameter.grad.abs().sum() > 0) for parameter in trained)
    stage.model.zero_grad()
    assert reached, f"no gradient reaches any of {len(trained)} trained parameters"


def an_audit_shows_its_batches(config: TaskConfig) -> None:
    stage = _stage(config)
    batch = stage.batch(range(2))
    view = stage.task.view(stage.model, batch)
    assert view.tracks or view.heard or view.notes, "view must say what the losses see of a batch, or in its notes why that cannot be shown"
    own = {tensor.untyped_storage().data_ptr() for _, tensor in _tensors(batch)}
    shown = [tensor for track in view.tracks for tensor in (track.read, track.scored)] + [clip.said for clip in view.heard] + [*view.padding]
    assert all(tensor.untyped_storage().data_ptr() in own for tensor in shown if tensor.numel()), "view must give views into the batch's own tensors, not copies"


def an_audit_finds_nothing_wrong(config: TaskConfig) -> None:
    stage = _stage(config)
    if stage.criterion is not None:
        before = {name: tensor.clone() for name, tensor in stage.model.state_dict().items()}
        state = torch.get_rng_state()
        rows = range(len(stage.examples))
        found = audit(stage.task, stage.model, stage.criterion, rows, stage="audited", device=torch.device("cpu"), number_format=Precision.fp32)
        assert found.fault is None, f"its own labels are found at fault: {found.fault}"
        changed = [name for name, tensor in stage.model.state_dict().items() if not torch.equal(tensor, before[name])]
        assert not changed and torch.equal(state, torch.get_rng_state()) and stage.model.training, "an audit must leave the model and the random state alone"


@torch.no_grad()
def rows_do_not_influence_each_other(config: TaskConfig) -> None:
    stage = _stage(config)
    stage.model.eval()
    together, *alone = (stage.loss(rows) for rows in ((0, 1), (0,), (1,)))
    for name, (total, count) in together.parts.items():
        apart = sum(float(loss.parts[name][0]) for loss in alone if name in loss.parts)
        targets = sum(float(loss.parts[name][1]) for loss in alone if name in loss.parts)
        close = abs(float(total) - apart) <= TOLERANCE * max(1.0, abs(apart))
        assert close and float(count) == targets, (
            f"{name!r} of two rows is {float(total):.5g} in one batch and {apart:.5g} in two: they influence each other"
        )


@torch.no_grad()
def scores_are_numbers(config: TaskConfig) -> None:
    stage = _stage(config)
    stage.model.eval()
    before = {name: tensor.clone() for name, tensor in stage.model.state_dict().items()}
    scores = stage.task.score(stage.model, lambda: iter([stage.batch(range(2))]))
    assert all(isinstance(name, str) and isinstance(value, float) for name, value in scores.items()), (
        f"scores must be named floats, not {scores}"
    )
    changed = [name for name, tensor in stage.model.state_dict().items() if not torch.equal(tensor, before[name])]
    assert not changed, f"scoring changed {', '.join(changed[:3])}"


def its_data_has_fingerprints(config: TaskConfig) -> None:
    task = _stage(config).task
    prints = task.data_fingerprints()
    assert prints and all(isinstance(name, str) and isinstance(value, str) and value for name, value in prints.items()), (
        f"fingerprints are texts: {prints}"
    )
    assert task.data_fingerprints() == prints, "the data's fingerprints differ between two calls"


def a_missing_manifest_is_said(config: TaskConfig) -> None:
    home = _home()
    gone = with_manifests(config, [str(home.folder / "gone.jsonl")], [str(home.folder / "gone.jsonl")])
    if gone == config:
        return
    try:
        task, model = _built(gone)
        task.prepare(model)
        task.examples("train")
    except EchoxError as error:
        assert "gone.jsonl" in str(error), f"the error does not name the manifest that is missing: {error}"
        return
    raise AssertionError("a manifest that does not exist must raise ManifestError")


def config_survives_a_checkpoint(config: TaskConfig) -> None:
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
    config_survives_a_checkpoint,
)

ROWS = 4
_TEXTS = ("It is Paris.", "Six.", "On a Monday.", "Nobody knows.")


def small_config(config_type: type[TaskConfig]) -> TaskConfig:
    """A task's config as the smoke recipe has it, or else its defaults; without manifests."""
    plans = (_recipe().plan(stage) for stage in ALL_STAGES)
    # Where training starts from a checkpoint, it may start from a tiny random one, whose voice never comes to an end.
    names = {field.name for field in dataclasses.fields(config_type)}
    random = {name: value for name, value in (("checkpoint", "random"), ("max_words", 8)) if name in names}
    config = next((plan.task for plan in plans if type(plan.task) is config_type), None) or config_type(**random)
    return with_manifests(config, [], [])


def with_manifests(config: Any, train: list[str], valid: list[str]) -> Any:
    """A config whose lists `train` and `valid`, at any depth, name these manifests."""
    hints = typing.get_type_hints(type(config))
    changes: dict[str, Any] = {name: paths for name, paths in (("train", train), ("valid", valid)) if hints.get(name) == list[str]}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            changes[field.name] = with_manifests(value, train, valid)
    return dataclasses.replace(config, **changes)


@dataclasses.dataclass(frozen=True)
class _Home:
    """A folder with a corpus and a run."""

    folder: Path
    train: list[str]
    valid: list[str]
    keep: Any  # the temporary folder, which vanishes with this value


@dataclasses.dataclass(frozen=True)
class _Stage:
    """A task that is built and prepared."""

    task: Task
    model: nn.Module
    criterion: nn.Module | None

    @property
    def examples(self) -> Examples:
        return self.task.examples("train")

    def batch(self, rows: Sequence[int]) -> Batch:
        """Examples of the training split, collated."""
        return self.task.collate([self.examples[row] for row in rows])

    def loss(self, rows: Sequence[int]) -> Loss:
        """Of a batch, by the task's criterion; without parts where there is none."""
        batch = self.batch(rows)
        outputs = self.task.forward(self.model, batch)
        return self.criterion(outputs, batch) if self.criterion is not None else Loss(torch.zeros(()), batch.count)


@functools.cache
def _recipe() -> Recipe:
    return load_recipe(RECIPE, ["codec.folder=random"])


@functools.cache
def _home() -> _Home:
    """The corpus, made once in a process."""
    keep = tempfile.TemporaryDirectory(prefix="echox-contract-")
    folder = Path(keep.name)
    codec = CODECS.build(_recipe().codec)
    paths = [_write_corpus(folder, split, codec) for split in ("train", "valid")]
    return _Home(folder, *([str(path)] for path in paths), keep)


def _write_corpus(folder: Path, split: str, codec: Any) -> Path:
    rows = []
    generator = torch.Generator().manual_seed(len(split))
    for number, text in enumerate(_TEXTS):
        asked, said = (
            0.2 * torch.randn(int(seconds * codec.rate_hz), generator=generator) for seconds in (0.7 + 0.1 * number, 0.9 + 0.1 * number)
        )
        units = codec.encode(pad_waveforms([said], codec.rate_hz))
        for name, samples in (("q", asked), ("a", said)):
            save_audio(folder / f"{split}-{number}-{name}.wav", samples, codec.rate_hz)
        answer = Item(
            Role.ASSISTANT,
            text,
            audio=folder / f"{split}-{number}-a.wav",
            transcription="What is it?",
        )
        labels = {"codec": codec.fingerprint(), "answer": text.rstrip(".")}
        row = Row(f"{split}-{number}", (Item(Role.USER, audio=folder / f"{split}-{number}-q.wav"), answer), labels)
        rows.append(with_units(row, units.rows()[0], codec.codebooks))
    write_manifest(folder / f"{split}.jsonl", rows)
    return folder / f"{split}.jsonl"


@functools.cache
def _parent(stage: str) -> Path:
    """The checkpoint of a stage of the smoke recipe, trained for one step."""
    for parent in TASKS.entry_of(_recipe().plan(stage).task).implementation.parents:
        _parent(parent)
    run_recipe(dataclasses.replace(_one_step_recipe(), stage=stage))
    return _home().folder / "run" / stage / "final"


@functools.cache
def _one_step_recipe() -> Recipe:
    """The smoke recipe on the corpus of noise, a step a stage; one for all stages, since a run is refused to another's settings."""
    home, recipe = _home(), _recipe()
    plans = {}
    for stage in recipe.stages:
        plan = recipe.plan(stage)
        once = dataclasses.replace(plan.train, steps=1, validate_every=None)
        plans[stage] = dataclasses.replace(plan, task=with_manifests(plan.task, home.train, home.valid), train=once)
    return dataclasses.replace(
        recipe,
        run_dir=str(home.folder / "run"),
        cache_dir=str(home.folder / "cache"),
        device="cpu",
        corpus=None,
        units=[],
        **plans,
    )


def _built(config: TaskConfig) -> tuple[Task, nn.Module]:
    """A task on the corpus of noise, and its model."""
    home, recipe = _home(), _recipe()
    if all(not paths for paths in _manifests(config)):
        config = with_manifests(config, home.train, home.valid)
    context = StageContext(
        parts=Parts(recipe.encoder, recipe.backbone, recipe.codec),
        seed=SEED,
        cache_dir=home.folder / "cache",
        parents={parent: _parent(parent) for parent in TASKS.entry_of(config).implementation.parents},
    )
    task = TASKS.build(config, context)
    torch.manual_seed(SEED)
    return task, task.build()


def _stage(config: TaskConfig) -> _Stage:
    task, model = _built(config)
    task.prepare(model)
    return _Stage(task, model.train(), _criterion(config))


def _criterion(config: TaskConfig) -> nn.Module | None:
    """Its criterion in the recipes that are shipped, or else the one of its name; None where there is neither."""
    plans = [recipe.plan(stage) for recipe in (_recipe(), load_recipe("release_finetune")) for stage in ALL_STAGES]
    named = [plan.criterion for plan in plans if plan is not None and type(plan.task) is type(config)]
    name = TASKS.name_of(config)
    if not named and name in CRITERIA:
        named = [CRITERIA.parse({"name": name})]
    return CRITERIA.build(named[0]) if named else None


def _manifests(config: Any) -> Iterator[list[str]]:
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _manifests(value)
        elif field.name in ("train", "valid") and hints[field.name] == list[str]:
            yield value


def _cost_of(task: Task, split: str) -> list[int]:
    examples = task.examples(split)
    return [examples.cost(index) for index in range(len(examples))]


def _tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor in a nesting of dataclasses, by its dotted name."""
    if isinstance(value, Tensor):
        yield name, value
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _tensors(getattr(value, field.name), f"{name}.{field.name}".lstrip("."))
