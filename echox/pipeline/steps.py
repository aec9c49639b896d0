"""Steps of a recipe's run, in order: their names, their amount of work, and what is left of it."""

from __future__ import annotations

import enum
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from echox.codecs.base import CODECS
from echox.core import checkpoint
from echox.core.device import device_named
from echox.core.errors import EchoxError
from echox.core.step_costs import PlannedStep
from echox.corpora.demo import corpus_fingerprint, is_built
from echox.corpora.units import units_path
from echox.pipeline.recipe import Recipe
from echox.pipeline.tasks import outlined_task

CODEC = "codec"  # the kind of part


class StepKind(enum.Enum):
    """Kind of a step; its value begins the step's title."""

    corpus = "the corpus"
    codec = "the codec and its units"
    data = "features and labels for"
    stage = "training"
    report = "the report"
    example = "a question and its answer"


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a run."""

    kind: StepKind
    stage: str = ""  # the stage that is trained, or that the data is for

    @property
    def name(self) -> str:
        """Name of the step in the file of step costs."""
        if self.kind is StepKind.stage:
            return self.stage
        return " ".join(filter(None, (self.stage, self.kind.name)))

    @property
    def title(self) -> str:
        """Title of the step on the terminal, such as `training s2t`."""
        return " ".join(filter(None, (self.kind.value, self.stage)))


def steps_of(recipe: Recipe, apart: bool) -> list[Step]:
    """Return the steps of a run, in order.

    Args:
        recipe: the recipe of the run.
        apart: steps run in processes of their own; what a stage reads is then made in a step
            before it, so that training does not inherit that step's memory.
    """
    steps = [Step(StepKind.corpus)] if recipe.corpus is not None else []
    if uses_codec(recipe):
        steps.append(Step(StepKind.codec))
    for stage in recipe.planned:
        if apart and not (Path(recipe.run_dir) / stage / "final").exists():
            steps.append(Step(StepKind.data, stage))
        steps.append(Step(StepKind.stage, stage))
    # A report scores a whole run, not one stage of it.
    if recipe.report is not None and not recipe.stage:
        steps.append(Step(StepKind.report))
    # Last, since a model of few steps may have no speech for it, which ends the run with an error.
    if recipe.answers_example:
        steps.append(Step(StepKind.example))
    return steps


def uses_codec(recipe: Recipe) -> bool:
    """Whether a stage of this run builds the recipe's codec, or is trained on its units."""
    needed = any(CODEC in recipe.kinds(stage) for stage in recipe.planned)
    return recipe.codec is not None and (needed or bool(read_units(recipe)))


def read_units(recipe: Recipe) -> list[str]:
    """Return the manifests of `recipe.units`, if a stage of this run reads units of any of them."""
    read = {
        # Resolved, since tasks and `units` may spell one path in two ways.
        Path(path).resolve()
        for stage in recipe.planned
        for path in outlined_task(recipe, stage).manifests()
    }
    written = {units_path(manifest).resolve() for manifest in recipe.units}
    return list(recipe.units) if written & read else []


def planned_steps(recipe: Recipe, steps: Sequence[Step]) -> list[PlannedStep]:
    """Return the steps with their work and the share of it that is left, for `clock_of`."""
    return [
        PlannedStep(step.name, step.title, _work(recipe, step), _share_left(recipe, step))
        for step in steps
    ]


def example_files(recipe: Recipe) -> tuple[Path, Path]:
    """Return the files of a run's example: its question and its answer."""
    folder = Path(recipe.run_dir) / StepKind.example.name
    return folder / "question.wav", folder / "answer.wav"


def costs_file(recipe: Recipe) -> Path:
    """Return the file of the costs of a recipe's steps on this machine."""
    device = device_named(recipe.device)
    if device.type == "cuda":
        kind = torch.cuda.get_device_name(device)
    else:
        kind = f"{torch.get_num_threads()} threads"
    # By machine too, because several may share one cache over a network.
    name = "-".join(f"{recipe.name} {platform.node()} {kind}".replace("/", " ").split())
    return Path(recipe.cache_dir) / "step_costs" / f"{name}.json"


def _work(recipe: Recipe, step: Step) -> float:
    """Return the examples that a stage is trained on; any other step is 1, done or not."""
    if step.kind is not StepKind.stage:
        return 1.0
    train = recipe.plan(step.stage).train
    # Batches by cost have no size that is known before the data is read.
    return float(train.steps * train.accumulation * (train.batch_size or 1))


def _share_left(recipe: Recipe, step: Step) -> float:
    """Return the share of a step that is not done yet, from 0 to 1."""
    if step.kind is StepKind.corpus:
        return float(not _has_corpus(recipe))
    if step.kind is StepKind.codec:
        return float(not _has_codec(recipe))
    if step.kind is StepKind.stage:
        return _share_of_stage_left(recipe, step.stage)
    if step.kind is StepKind.report:
        is_written = (Path(recipe.run_dir) / "report" / "report.json").exists()
        # A report that is older than a stage is written again.
        is_old = any(_share_of_stage_left(recipe, stage) for stage in recipe.planned)
        return float(not is_written or is_old)
    return 1.0


def _share_of_stage_left(recipe: Recipe, stage: str) -> float:
    folder = Path(recipe.run_dir) / stage
    if (folder / "final").exists():
        return 0.0
    saved = checkpoint.step_folders(folder / "checkpoints")
    done = int(saved[-1].name.removeprefix("step_")) if saved else 0
    # A run that was shortened may have saved more steps than it is now to do.
    return max(0.0, 1 - done / recipe.plan(stage).train.steps)


def _has_corpus(recipe: Recipe) -> bool:
    try:
        corpus = recipe.require_corpus()
        fingerprint = corpus_fingerprint(corpus, with_own_answers=True, with_words=True)
    except EchoxError:
        return False  # the step itself reports the error
    return is_built(Path(corpus.folder), fingerprint)


def _has_codec(recipe: Recipe) -> bool:
    is_ready = CODECS.entry_of(recipe.codec).implementation.is_ready(recipe.codec)
    return is_ready and all(units_path(manifest).is_file() for manifest in read_units(recipe))
