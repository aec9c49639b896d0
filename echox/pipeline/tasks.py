"""Tasks of a recipe's stages: with finished parents for training, or without for a dry run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from echox.core import checkpoint
from echox.core.config import decisive, to_plain
from echox.core.errors import CheckpointError
from echox.engine.config import Precision
from echox.engine.lineage import changes
from echox.engine.precision import uses_bf16
from echox.pipeline.recipe import Recipe, from_dict, is_folder, to_dict
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
    """Find the final checkpoints that a stage builds on.

    Args:
        recipe: the recipe, whose stages have these names in the run too.
        stage: name of the stage.
        run: folder of the run; a stage of another run is found by its own folder.

    Returns:
        role -> folder of the checkpoint.

    Raises:
        CheckpointError: one is missing or damaged, or of another run with other parts.
    """
    folders = existing_parents(recipe, stage, run)
    for folder in folders.values():
        # Before the hours of training that a damaged parent would spoil.
        checkpoint.verify(folder)
    return folders


def existing_parents(recipe: Recipe, stage: str, run: Path) -> dict[str, Path]:
    """Find the final checkpoints that a stage builds on, without reading their weights.

    Args:
        recipe, stage, run: as `finished_parents` takes them.

    Returns:
        role -> folder of the checkpoint.

    Raises:
        CheckpointError: one is missing, or of another run with other parts.
    """
    parents = recipe.parents(stage).items()
    return {role: _existing(recipe, stage, run, parent) for role, parent in parents}


def run_of_parents(recipe: Recipe) -> Path:
    """Return the folder of the run whose finished stages a recipe builds on."""
    return Path(recipe.run_dir) if recipe.refit is None else recipe.require_refit()


def refuse_missing_parents(recipe: Recipe, stages: Sequence[str]) -> None:
    """Refuse stages that build on a checkpoint which is neither there nor trained by this run.

    Args:
        recipe: the recipe of the run.
        stages: of `recipe.planned`, those that are not finished.

    Raises:
        CheckpointError: a parent is missing, or of another run with other parts.
    """
    for stage in stages:
        for parent in recipe.parents(stage).values():
            if parent not in recipe.planned:
                _existing(recipe, stage, run_of_parents(recipe), parent)


def parent_folder(run: Path, parent: str) -> Path:
    """Return the folder of the final checkpoint of what fills a role.

    Args:
        run: folder of the run.
        parent: name of a stage of it, or the folder of another run's stage or of its checkpoint.
    """
    if not is_folder(parent):
        return run / parent / "final"
    folder = Path(parent)
    return folder if (folder / checkpoint.META).is_file() else folder / "final"


def _existing(recipe: Recipe, stage: str, run: Path, parent: str) -> Path:
    folder = parent_folder(run, parent)
    if is_folder(parent):
        _refuse_other_parts(recipe, stage, folder)
    elif not folder.exists():
        order = ", ".join(recipe.with_ancestors([parent])) or parent
        raise CheckpointError(
            f"{folder} does not exist: train the stage {parent!r} first (stages come in the order "
            f"{order}), set run_dir to a run that has it, or name the folder of another run's in "
            f"{stage}.after"
        )
    return folder


def _refuse_other_parts(recipe: Recipe, stage: str, folder: Path) -> None:
    """Refuse a stage of another run whose encoder, language model or codec is not this recipe's.

    Raises:
        CheckpointError: a part differs, or there is no checkpoint.
    """
    meta = checkpoint.described(folder)
    recorded = meta.get("recipe")
    # A checkpoint that was not written by a recipe records no parts to compare.
    if not recorded:
        return
    used = from_dict(recorded).kinds(meta["stage"])
    kinds = [kind for kind in recipe.kinds(stage) if kind in used]
    now = to_dict(recipe)
    before, after = (
        {kind: decisive(plain.get(kind), getattr(recipe, kind)) for kind in kinds}
        for plain in (recorded, now)
    )
    if differing := changes(before, after):
        first = differing[0]
        raise CheckpointError(
            f"{stage} builds on {folder}, which was trained with other parts: {first.name} is "
            f"{first.before!r} there and {first.after!r} here; set {first.name} as it is there, or "
            "name another stage in "
            f"{stage}.after"
        )


def recorded_recipe(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe as its checkpoints record it, with the plans of other runs' stages.

    A checkpoint is read by the plans of all that it builds on. Those of another run stand among the
    recipe's own under the folders of their stages.
    """
    plain = to_dict(recipe)
    others: dict[str, Any] = {}
    for stage in recipe.planned:
        for parent in filter(is_folder, recipe.parents(stage).values()):
            meta = checkpoint.described(parent_folder(Path(recipe.run_dir), parent))
            stage_folder = Path(parent).parent if Path(parent).name == "final" else Path(parent)
            before = from_dict(meta.get("recipe") or {})
            _add_plans(others, before, meta["stage"], parent, stage_folder.parent)
    if not others:
        return plain
    # Named, since the stages of other runs are no members of this one.
    return {**plain, "stages": {**plain["stages"], **others}, "only": recipe.members}


def _add_plans(plans: dict[str, Any], recipe: Recipe, stage: str, key: str, run: Path) -> None:
    """Add the plan of a stage of another run, and of all that it builds on.

    Args:
        plans: key -> plan as plain data.
        recipe: of the other run.
        stage: name of the stage there.
        key: its name here.
        run: folder of the other run.
    """
    if recipe.stages.get(stage) is None:
        return
    parents = recipe.parents(stage)
    after = {role: name if is_folder(name) else str(run / name) for role, name in parents.items()}
    plans[key] = {**to_plain(recipe.plan(stage)), "after": after}
    for role, name in parents.items():
        _add_plans(plans, recipe, name, after[role], run)
