"""A corpus of noise, and tasks that are built and prepared on it, for the contract of tasks.

A task is tested as it is used: with parts of random weights, after the stages that it names as its
parents, which are trained for one step each. A config that has lists `train` and `valid` of
manifests gets those of the corpus, in which every row has a spoken question with its transcription,
and an answer with text, audio and units.
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
from torch import nn

from echox.codecs.base import CODECS
from echox.core.signals import Batch, Loss
from echox.criteria.base import CRITERIA, Criterion
from echox.data.audio import pad_waveforms, save_audio
from echox.data.manifest import Item, Role, Row, with_units, write_manifest
from echox.pipeline.recipe import Recipe, StagePlan, load_recipe
from echox.pipeline.run import run_recipe
from echox.pipeline.tasks import outlined_task
from echox.tasks.base import TASKS, Examples, Outline, Parts, StageContext, Task, TaskConfig

RECIPE = "echo_tiny"
SEED = 1
ROWS = 4
# One text for each row.
_TEXTS = ("It is Paris.", "Six.", "On a Monday.", "Nobody knows.")


def small_config(config_type: type[TaskConfig]) -> TaskConfig:
    """Return a task's config as the smoke recipe has it, or else its defaults, without manifests.

    A task that starts from a published checkpoint starts from a small random one instead.
    """
    plans = [plan for plan in smoke_recipe().stages.values() if plan is not None]
    own = next((plan.task for plan in plans if type(plan.task) is config_type), None)
    if own is None:
        names = {field.name for field in dataclasses.fields(config_type)}
        # A random T2C never predicts its stop id, so its answers need a limit of words.
        small = {"checkpoint": "random", "max_words": 8}
        own = config_type(**{name: value for name, value in small.items() if name in names})
    return with_manifests(own, [], [])


def with_manifests(config: Any, train: list[str], valid: list[str]) -> Any:
    """Return a config whose lists `train` and `valid`, at any depth, name other manifests.

    Args:
        config: a dataclass.
        train: paths of training manifests.
        valid: paths of validation manifests.
    """
    hints = typing.get_type_hints(type(config))
    paths = {"train": train, "valid": valid}
    # By their type too, since a field called `train` may hold a nested config.
    changes: dict[str, Any] = {
        name: value for name, value in paths.items() if hints.get(name) == list[str]
    }
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            changes[field.name] = with_manifests(value, train, valid)
    return dataclasses.replace(config, **changes)


@dataclasses.dataclass(frozen=True)
class NoiseCorpus:
    """A temporary folder with a corpus of noise, where runs are placed too."""

    folder: Path
    train: list[str]
    valid: list[str]
    temporary: Any  # the folder is deleted with this value


@dataclasses.dataclass(frozen=True)
class PreparedStage:
    """A task that is built and prepared."""

    task: Task
    model: nn.Module
    criterion: Criterion | None

    @property
    def examples(self) -> Examples:
        """Examples of the training split."""
        return self.task.examples("train")

    def batch(self, rows: Sequence[int]) -> Batch:
        """Collate examples of the training split."""
        return self.task.collate([self.examples[row] for row in rows])

    def loss(self, rows: Sequence[int]) -> Loss:
        """Compute the loss of a batch; a task without criterion has one without parts."""
        batch = self.batch(rows)
        outputs = self.task.forward(self.model, batch)
        if self.criterion is None:
            return Loss(torch.zeros(()), batch.count)
        return self.criterion(outputs, batch)


# Cached, with all that is derived from it: a process tests dozens of rules on one corpus.
@functools.cache
def smoke_recipe() -> Recipe:
    """Return the smoke recipe, with a codec that needs no fit."""
    return load_recipe(RECIPE, ["codec.folder=random"])


@functools.cache
def _recipes() -> tuple[Recipe, ...]:
    """Return the recipes that hold every stage of echox, the smoke recipe first."""
    return smoke_recipe(), load_recipe("release_finetune")


@functools.cache
def noise_corpus() -> NoiseCorpus:
    """Write the corpus of noise."""
    temporary = tempfile.TemporaryDirectory(prefix="echox-contract-")
    folder = Path(temporary.name)
    codec = CODECS.build(smoke_recipe().codec)
    train, valid = (_write_split(folder, split, codec) for split in ("train", "valid"))
    return NoiseCorpus(folder, [str(train)], [str(valid)], temporary)


def _write_split(folder: Path, split: str, codec: Any) -> Path:
    # The splits have other noise, by the lengths of their names.
    generator = torch.Generator().manual_seed(len(split))
    rows = [
        _noise_row(folder, f"{split}-{number}", number, codec, generator)
        for number in range(len(_TEXTS))
    ]
    write_manifest(folder / f"{split}.jsonl", rows)
    return folder / f"{split}.jsonl"


def _noise_row(
    folder: Path, row_id: str, number: int, codec: Any, generator: torch.Generator
) -> Row:
    """Write the audio of one row, and return the row with the units of its answer."""
    # Seconds differ between rows, so that batches are padded.
    question, answer = (
        0.2 * torch.randn(int(seconds * codec.rate_hz), generator=generator)
        for seconds in (0.7 + 0.1 * number, 0.9 + 0.1 * number)
    )
    units = codec.encode(pad_waveforms([answer], codec.rate_hz))
    for name, samples in (("q", question), ("a", answer)):
        save_audio(folder / f"{row_id}-{name}.wav", samples, codec.rate_hz)
    text = _TEXTS[number]
    reply = Item(
        Role.ASSISTANT,
        text,
        audio=folder / f"{row_id}-a.wav",
        transcription="What is it?",
        # What preference tuning reads: the answer of another row.
        extra={"rejected": _TEXTS[number - 1]},
    )
    labels = {"codec": codec.fingerprint(), "answer": text.rstrip(".")}
    row = Row(row_id, (Item(Role.USER, audio=folder / f"{row_id}-q.wav"), reply), labels)
    return with_units(row, units.rows()[0], codec.codebooks)


@functools.cache
def parent_checkpoint(stage: str) -> Path:
    """Return the checkpoint of a stage of the smoke recipe, trained for one step."""
    for parent in smoke_recipe().task_type(stage).parents:
        parent_checkpoint(parent)
    run_recipe(dataclasses.replace(one_step_recipe(), stage=stage))
    return noise_corpus().folder / "run" / stage / "final"


@functools.cache
def one_step_recipe() -> Recipe:
    """Return the smoke recipe on the corpus of noise, with one step for each stage."""
    # One recipe for all stages: a run refuses stages that were trained with other settings.
    corpus, recipe = noise_corpus(), smoke_recipe()
    plans: dict[str, StagePlan | None] = {}
    for stage, plan in recipe.stages.items():
        if plan is None:
            continue
        one_step = dataclasses.replace(plan.train, steps=1, validate_every=None)
        task = with_manifests(plan.task, corpus.train, corpus.valid)
        plans[stage] = dataclasses.replace(plan, task=task, train=one_step)
    return dataclasses.replace(
        recipe,
        # Deleted with the corpus when the process ends.
        run_dir=str(corpus.folder / "run"),
        cache_dir=str(corpus.folder / "cache"),
        device="cpu",
        corpus=None,
        units=[],
        stages=plans,
    )


def built_task(config: TaskConfig) -> tuple[Task, nn.Module]:
    """Build a task on the corpus of noise, and its model."""
    corpus, recipe = noise_corpus(), smoke_recipe()
    # A rule may have set manifests of its own.
    if not any(_manifests(config)):
        config = with_manifests(config, corpus.train, corpus.valid)
    parents = TASKS.entry_of(config).implementation.parents
    context = StageContext(
        parts=Parts(recipe.encoder, recipe.backbone, recipe.codec),
        seed=SEED,
        cache_dir=corpus.folder / "cache",
        parents={parent: parent_checkpoint(parent) for parent in parents},
    )
    task = TASKS.build(config, context)
    # After the parents, whose training draws random numbers.
    torch.manual_seed(SEED)
    return task, task.build()


def outline_of(config: TaskConfig) -> Outline:
    """Return a task's outline, after those of its parents in the smoke recipe."""
    recipe, roles = smoke_recipe(), TASKS.entry_of(config).implementation.parents
    parents = {role: outline_of(recipe.plan(role).task) for role in roles}
    stages = {**recipe.stages, "outlined": StagePlan(task=config)}
    return outlined_task(dataclasses.replace(recipe, stages=stages), "outlined").outline(parents)


def prepared_stage(config: TaskConfig) -> PreparedStage:
    """Build a task on the corpus of noise, prepare it, and build its criterion."""
    task, model = built_task(config)
    task.prepare(model)
    return PreparedStage(task, model.train(), _criterion(config))


def _criterion(config: TaskConfig) -> Criterion | None:
    """Return the task's criterion in echox's recipes, or else the one of its name, or None."""
    plans = [plan for recipe in _recipes() for plan in recipe.stages.values() if plan is not None]
    criteria = [plan.criterion for plan in plans if type(plan.task) is type(config)]
    name = TASKS.name_of(config)
    # A plugin has no recipe here, but usually registers a criterion under its task's name.
    if not criteria and name in CRITERIA:
        criteria = [CRITERIA.parse({"name": name})]
    return CRITERIA.build(criteria[0]) if criteria else None


def _manifests(config: Any) -> Iterator[list[str]]:
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _manifests(value)
        elif field.name in ("train", "valid") and hints[field.name] == list[str]:
            yield value
