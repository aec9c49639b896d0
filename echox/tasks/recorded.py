"""Recipe of a checkpoint as its metadata records it: the plans of its stages, and its parts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from echox.assets.fetch import origin_of
from echox.assets.shapes import untrained
from echox.assets.sources import VARIABLE, Source
from echox.core.checkpoint import Checkpoint
from echox.core.errors import CheckpointError
from echox.core.registry import Registry
from echox.tasks.base import TASKS, TaskConfig

C = TypeVar("C", bound=TaskConfig)

FORMER_STAGES = ("vocoder", "align", "s2t", "t2c", "echo")
"""Fields that held the plan of one stage each in recipes of earlier versions."""


def plans_of(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plans in a recipe.

    Args:
        recipe: as plain data.

    Returns:
        name of the stage -> its plan as plain data, or None where the recipe leaves it out.
    """
    plans = recipe.get("stages")
    if isinstance(plans, Mapping):
        return dict(plans)
    return {name: recipe[name] for name in FORMER_STAGES if recipe.get(name) is not None}


def chosen_in(recipe: Mapping[str, Any]) -> list[str]:
    """Return the names of the stages that a recipe as plain data consists of."""
    stages = recipe.get("stages")
    # In earlier versions `stages` was the list that `only` is now.
    chosen = recipe.get("only") if isinstance(stages, Mapping) else stages
    return list(chosen or [name for name, plan in plans_of(recipe).items() if plan is not None])


def recorded_task(checkpoint: Checkpoint, *roles: str) -> TaskConfig:
    """Return the config of the task of a checkpoint's stage, or of a stage before it.

    Args:
        checkpoint: with the metadata of its recipe.
        roles: path to a stage before it: the role of a parent, the role of a parent of that, ...

    Raises:
        CheckpointError: the checkpoint does not record it.
        PluginError: the task's plugin is not installed.
    """
    plans = plans_of(_mapping(checkpoint, checkpoint.meta.get("recipe"), "recipe"))
    stage = str(checkpoint.meta.get("stage"))
    for role in roles:
        after = _mapping(checkpoint, plans.get(stage), stage).get("after") or {}
        # A role that `after` does not name is filled by the stage of the same name.
        stage = after.get(role, role)
    plan = _mapping(checkpoint, plans.get(stage), stage)
    return TASKS.parse(_mapping(checkpoint, plan.get("task"), f"{stage}.task"))


def recorded_config(checkpoint: Checkpoint, kind: type[C], *roles: str) -> C:
    """Return the config of `recorded_task`, which must be of one kind.

    Raises:
        CheckpointError: the checkpoint does not record it, or it is of another task.
        PluginError: the task's plugin is not installed.
    """
    config = recorded_task(checkpoint, *roles)
    if not isinstance(config, kind):
        raise CheckpointError(
            f"{checkpoint.folder} was trained with a {type(config).__name__} where a "
            f"{kind.__name__} is needed; name a checkpoint of that task"
        )
    return config


def recorded_part(checkpoint: Checkpoint, kind: str, registry: Registry) -> Any:
    """Return the config of a part that a checkpoint was trained with.

    Args:
        checkpoint: with the metadata of its recipe.
        kind: encoder, backbone or codec.
        registry: of that kind.

    Raises:
        CheckpointError: the checkpoint does not record it.
        PluginError: the part's plugin is not installed.
    """
    recipe = _mapping(checkpoint, checkpoint.meta.get("recipe"), "recipe")
    return registry.parse(_mapping(checkpoint, recipe.get(kind), kind))


def weights_of(*parts: Any) -> list[str]:
    """Return what the configs of parts name as their pretrained weights.

    Args:
        parts: configs; None, those without a field `weights`, and untrained ones name nothing.
    """
    named = (getattr(config, "weights", None) for config in parts)
    return [
        weights for weights in named if isinstance(weights, str) and untrained(weights) != weights
    ]


def recorded_sources(
    checkpoint: Checkpoint, references: Iterable[str]
) -> tuple[Source, ...] | None:
    """Return the sources of pretrained weights in a checkpoint's training, None if not recorded.

    Args:
        checkpoint: with the metadata of its lineage.
        references: values of the parts' fields `weights`.
    """
    recorded = _recorded_origins(checkpoint)
    origins = (recorded[reference] for reference in references if reference in recorded)
    return tuple(dict.fromkeys(map(_source_of, origins))) or None


def check_asset_origins(checkpoint: Checkpoint, references: Iterable[str]) -> None:
    """Check that pretrained weights come from the source that a checkpoint was trained with.

    Args:
        checkpoint: with the metadata of its lineage; earlier versions recorded no sources.
        references: values of the parts' fields `weights`.

    Raises:
        CheckpointError: a source differs, and with it the weights, for instance in their number
            format.
    """
    recorded = _recorded_origins(checkpoint)
    for reference in references:
        before = recorded.get(reference)
        if before is None:
            continue
        now = origin_of(reference)
        # Commits and conversions may differ: most of their changes leave the weights alone.
        if now is not None and _source_of(now) is not _source_of(before):
            raise CheckpointError(
                f"{checkpoint.folder} was trained with {reference!r} of {before}, and here it is "
                f"of {now}, whose weights differ; set {VARIABLE}={_source_of(before).value} to use "
                "the former"
            )


def _recorded_origins(checkpoint: Checkpoint) -> Mapping[str, str]:
    """Return what weights are named -> their source; nothing in those of earlier versions."""
    return checkpoint.meta.get("lineage", {}).get("assets", {})


def _source_of(origin: str) -> Source:
    # The first word, as `origin_of` writes it.
    return Source(origin.split()[0])


def _mapping(checkpoint: Checkpoint, value: Any, key: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise CheckpointError(
            f"the recipe in {checkpoint.folder} says nothing of {key!r}, "
            "so its model cannot be rebuilt; train it with echox-train"
        )
    return value
