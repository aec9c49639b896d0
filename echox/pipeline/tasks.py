"""Tasks of a recipe's stages: with finished parents for training, or without for a dry run."""

from __future__ import annotations

from pathlib import Path

import torch

from echox.core import checkpoint
from echox.core.errors import CheckpointError
from echox.engine.config import Precision
from echox.engine.precision import uses_bf16
from echox.pipeline.recipe import Recipe
from echox.tasks.base import TASKS, Parts, StageContext, Task


def stage_task(
    recipe: Recipe, stage: str, device: torch.device, *, parents: Path | None = None
) -> Task:
    """Construct the task of one stage, with the finished stages it builds on.

    Args:
        recipe: the recipe of the run.
        stage: name of the stage.
        device: where it is trained.
        parents: folder of the run whose finished stages it builds on; None is the recipe's own.

    Raises:
        CheckpointError: a stage that comes before is not finished.
    """
    plan = recipe.plan(stage)
    run = Path(recipe.run_dir) if parents is None else parents
    context = StageContext(
        parts=Parts(recipe.encoder, recipe.backbone, recipe.codec),
        seed=recipe.seed,
        cache_dir=Path(recipe.cache_dir),
        parents=finished_parents(recipe, stage, run),
        device=device,
        bf16=uses_bf16(plan.train.precision, device),
        # Of this run, also where the parents are another run's.
        run_dir=Path(recipe.run_dir) / stage,
    )
    return TASKS.build(plan.task, context)


def outlined_task(recipe: Recipe, stage: str) -> Task:
    """Construct the task of one stage on the meta device, without its parents.

    It can state its sizes, its manifests and its missing files, but not build a model.
    """
    plan = recipe.plan(stage)
    context = StageContext(
        parts=Parts(recipe.encoder, recipe.backbone, recipe.codec),
        seed=recipe.seed,
        cache_dir=Path(recipe.cache_dir),
        device=torch.device("meta"),
        # Of a GPU, whose memory the sizes are stated for, even where this machine has none.
        bf16=plan.train.precision is not Precision.fp32,
    )
    return TASKS.build(plan.task, context)


def finished_parents(recipe: Recipe, stage: str, run: Path) -> dict[str, Path]:
    """Find the final checkpoints in a run's folder that a stage builds on.

    Args:
        recipe: the recipe, whose stages have these names in the run too.
        stage: name of the stage.
        run: folder of the run.

    Returns:
        role -> folder of the checkpoint.

    Raises:
        CheckpointError: one is missing or damaged.
    """
    return {role: _finished(recipe, run, parent) for role, parent in recipe.parents(stage).items()}


def _finished(recipe: Recipe, run: Path, stage: str) -> Path:
    folder = run / stage / "final"
    if not folder.exists():
        order = ", ".join(recipe.with_ancestors([stage])) or stage
        raise CheckpointError(
            f"{folder} does not exist: train the stage {stage!r} first (stages come in the order "
            f"{order}), or set run_dir to a run that has it"
        )
    # Before the hours of training that a damaged parent would spoil.
    checkpoint.verify(folder)
    return folder
