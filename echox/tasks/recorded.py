"""Recipe of a checkpoint as its metadata records it: the plans of its stages, and its parts."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from echox.assets.fetch import local_folder, origin_of
from echox.assets.folder_digest import folder_digest
from echox.assets.shapes import untrained
from echox.assets.sources import VARIABLE, Source
from echox.core.checkpoint import META, Checkpoint
from echox.core.errors import CheckpointError, PluginError
from echox.core.registry import Registry
from echox.tasks.base import TASKS, TaskConfig

C = TypeVar("C", bound=TaskConfig)

log = logging.getLogger(__name__)

PRETRAINED = ("encoder", "backbone")  # kinds of parts that read pretrained weights

WEIGHT_FOLDERS = "weight_folders"
"""Key of a lineage: dotted fields of the recipe -> digests of the folders that they name."""

WORKING_FOLDER = "working_folder"
"""Key of a lineage: the absolute folder that relative paths of its recipe begin at."""

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
    return _parsed(checkpoint, TASKS, _mapping(checkpoint, plan.get("task"), f"{stage}.task"))


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
    return _parsed(checkpoint, registry, _mapping(checkpoint, recipe.get(kind), kind))


def _parsed(checkpoint: Checkpoint, registry: Registry, plain: Mapping[str, Any]) -> Any:
    """Return the config that a recipe describes, its files looked for where they are now."""
    try:
        return registry.parse(with_places(checkpoint, plain))
    except PluginError as error:
        part = f"{registry.kind} {plain.get('name')}"
        origin = _of_lineage(checkpoint, "plugins").get(part)
        if origin is None:
            raise
        raise PluginError(
            f"{checkpoint.folder} was trained with the {part} of {origin}, which is not loaded "
            f"here; name the folder of its file with plugin_dirs=, or install its package ({error})"
        ) from error
    # What a damaged description holds may be of any type.
    except (LookupError, AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the recipe in {checkpoint.folder} does not describe a {registry.kind} ({error}); "
            f"its {META} is damaged"
        ) from error


PLACES = ("folder", "weights", "checkpoint")
"""Fields of parts and tasks that name a file or a folder, or weights that may be one."""


def with_places(checkpoint: Checkpoint, plain: Any) -> Any:
    """Return part of a checkpoint's recipe with the paths that its files and folders have now.

    A path below the run's folder is looked for in the folder of the run that the checkpoint lies
    in, and a relative one then in the working folder of the training. Where neither exists, it
    stays as it is.

    Args:
        checkpoint: with the metadata of its recipe and lineage.
        plain: a part of that recipe, or all of it, as plain data.
    """
    if isinstance(plain, list):
        return [with_places(checkpoint, item) for item in plain]
    if not isinstance(plain, dict):
        return plain
    return {
        key: _place(checkpoint, value)
        if key in PLACES and isinstance(value, str)
        else with_places(checkpoint, value)
        for key, value in plain.items()
    }


def _place(checkpoint: Checkpoint, path: str) -> str:
    # "random" is no folder, even where one is called so.
    if not path or untrained(path) == path:
        return path
    run_dir = (checkpoint.meta.get("recipe") or {}).get("run_dir")
    if isinstance(run_dir, str) and Path(path).is_relative_to(run_dir):
        # run/STAGE/final, and the folder may have been moved or copied since.
        moved = checkpoint.folder.absolute().parent.parent / Path(path).relative_to(run_dir)
        if moved.exists():
            return str(moved)
    former = _of_lineage(checkpoint, "").get(WORKING_FOLDER)
    # Weights by name are relative too: training took a folder of that name before anything else.
    if isinstance(former, str) and (Path(former) / path).exists():
        return str(Path(former) / path)
    return path


def _of_lineage(checkpoint: Checkpoint, key: str) -> Mapping[str, Any]:
    """Return an entry of a checkpoint's lineage, all of it for ""; empty in earlier versions."""
    lineage = checkpoint.meta.get("lineage") or {}
    value = lineage.get(key) if key else lineage
    return value if isinstance(value, Mapping) else {}


def weights_of(*parts: Any) -> list[str]:
    """Return what the configs of parts name as their pretrained weights.

    Args:
        parts: configs; None, those without a field `weights`, and untrained ones name nothing.
    """
    named = (getattr(config, "weights", None) for config in parts)
    return [
        weights for weights in named if isinstance(weights, str) and untrained(weights) != weights
    ]


def weight_folders(kind: str, config: Any) -> dict[str, Path]:
    """Find the folders of the user's that a part's weights, or those of parts in it, are read from.

    Weights of the hub and of packages have an origin instead, see `origin_of`.

    Args:
        kind: encoder or backbone.
        config: of the part.

    Returns:
        dotted field of the recipe, such as "backbone.weights" -> folder.
    """
    folders = {}
    for name, reference in _weight_fields(kind, config):
        is_known = untrained(reference) == reference or origin_of(reference) is not None
        folder = None if is_known else local_folder(reference)
        if folder is not None:
            folders[name] = folder
    return folders


def _weight_fields(path: str, config: Any) -> Iterator[tuple[str, str]]:
    if not dataclasses.is_dataclass(config):
        return
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"{path}.{field.name}"
        if field.name == "weights" and isinstance(value, str):
            yield name, value
        yield from _weight_fields(name, value)


def weight_digests(parts: Mapping[str, Any]) -> dict[str, str]:
    """Hash the folders of the user's that parts read their weights from.

    Args:
        parts: kind -> config of the part.

    Returns:
        dotted field of the recipe -> digest of its folder.
    """
    return {
        name: folder_digest(folder)
        for kind in PRETRAINED
        for name, folder in weight_folders(kind, parts.get(kind)).items()
    }


def warn_of_changed_weights(checkpoint: Checkpoint, kind: str, config: Any) -> None:
    """Say where a part's weights are not those that a checkpoint was trained with.

    Args:
        checkpoint: with the metadata of its lineage; earlier versions recorded no digests.
        kind: encoder or backbone.
        config: of the part, its folders as they are now.
    """
    recorded = _of_lineage(checkpoint, WEIGHT_FOLDERS)
    for name, folder in weight_folders(kind, config).items():
        if name in recorded and folder_digest(folder) != recorded[name]:
            # No error, as for a codec: the same weights may have been stored in another form.
            log.warning(
                "%s was trained with other files of %s than are in %s now; put those back, unless "
                "the weights are the same in another form",
                *(checkpoint.folder, name, folder),
            )


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
    return _of_lineage(checkpoint, "assets")


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
