"""The lineage of a checkpoint: its parents, its data, and the versions it was trained with."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from echox.assets.fetch import origin_of
from echox.core.checkpoint import Checkpoint, described, fingerprint
from echox.core.errors import CheckpointError
from echox.core.number_format import number_format
from echox.tasks.base import Task
from echox.tasks.recorded import (
    WEIGHT_FOLDERS,
    WORKING_FOLDER,
    check_asset_origins,
    weight_digests,
    weights_of,
)


def trace(task: Task, extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Record the lineage of a stage's checkpoint.

    Args:
        task: the stage's task.
        extra: further entries, such as the plugins.

    Returns:
        JSON-ready: fingerprints of parent checkpoints and data, sources of pretrained weights and
        digests of their folders where those are the user's, the working folder, versions of the
        libraries, and on a CPU the number format of its products.

    Raises:
        CheckpointError: a parent was trained with weights of another source.
    """
    # Other stages of the recipe do not enter this one's weights.
    roles = (*task.parents, *task.continues)
    parents = {role: folder for role, folder in task.context.parents.items() if role in roles}
    parts = {kind: getattr(task.context.parts, kind, None) for kind in (*task.needs, *task.takes)}
    assets, digests = _asset_origins(parts.values()), weight_digests(parts)
    for folder in parents.values():
        check_asset_origins(Checkpoint(folder, described(folder), {}, None), assets)
    # The format on a CPU is measured, so it may differ between machines.
    on_cpu = task.context.device.type == "cpu"
    return {
        "parents": {role: fingerprint(folder) for role, folder in parents.items()},
        "data": dict(task.data_fingerprints()),
        "assets": assets,
        **({WEIGHT_FOLDERS: digests} if digests else {}),
        WORKING_FOLDER: str(Path.cwd()),
        # For people; resuming does not compare them.
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in ("echox", "torch", "transformers")},
        },
        **({"number_format": dataclasses.asdict(number_format())} if on_cpu else {}),
        **(extra or {}),
    }


def _asset_origins(parts: Iterable[Any]) -> dict[str, str]:
    """Return the source of the pretrained weights of parts: what they are named -> it."""
    origins = {weights: origin_of(weights) for weights in weights_of(*parts)}
    return {weights: origin for weights, origin in origins.items() if origin is not None}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None  # echox may run from a checkout that is not installed


def check_same_origin(checkpoint: Checkpoint, lineage: Mapping[str, Any]) -> None:
    """Check that a run resumes with the parents and data it began with.

    Args:
        checkpoint: the checkpoint to resume from.
        lineage: the lineage of the run now, as `trace` returns it.

    Raises:
        CheckpointError: a parent or the data has changed since, or weights are of another source.
    """
    check_asset_origins(checkpoint, lineage["assets"])
    # Versions may change: an update of a library must not end a run.
    for kind in ("parents", "data"):
        before, now = checkpoint.meta.get("lineage", {}).get(kind, {}), lineage[kind]
        changed = [name for name in now if before.get(name) != now[name]]
        if changed:
            raise CheckpointError(
                f"{checkpoint.folder} was trained with other {kind} ({', '.join(changed)} changed "
                f"since); delete {checkpoint.folder.parent} to train anew, or choose another run "
                "folder"
            )


@dataclass(frozen=True, slots=True)
class Change:
    """A setting that differs between two recipes."""

    name: str  # dotted path
    before: Any
    after: Any


def with_new_settings(
    checkpoint: Checkpoint, changed: Sequence[Change], lineage: Mapping[str, Any]
) -> dict[str, Any]:
    """Record in a run's lineage the settings that its steps up to a checkpoint were trained with.

    Args:
        checkpoint: the checkpoint to resume from, whose own record of this is carried on.
        changed: the settings that differ now; none where it goes on as before.
        lineage: the lineage of the run now, as `trace` returns it.

    Returns:
        the lineage with `settings`, a list of {"after_step", "changes": {name: {"before",
        "after"}}}, where settings have changed ever since the first step.
    """
    history = list(checkpoint.meta.get("lineage", {}).get("settings", ()))
    if changed:
        values = {item.name: {"before": item.before, "after": item.after} for item in changed}
        history.append({"after_step": checkpoint.meta["step"], "changes": values})
    return {**lineage, **({"settings": history} if history else {})}


def changes(before: Any, after: Any, path: str = "") -> list[Change]:
    """List the settings in which two recipes differ.

    Args:
        before: a recipe as plain data.
        after: another one.
        path: dotted path of the two in their recipe, "" for whole recipes.
    """
    if isinstance(before, dict) and isinstance(after, dict):
        # The fields of two different parts cannot be compared, so their names are the change.
        if path and "name" in before and "name" in after and before["name"] != after["name"]:
            return [Change(path, before["name"], after["name"])]
        keys = dict.fromkeys([*before, *after])
        return [
            change
            for key in keys
            for change in changes(
                before.get(key), after.get(key), f"{path}.{key}" if path else str(key)
            )
        ]
    return [] if before == after else [Change(path, before, after)]


def differences(before: Any, after: Any) -> list[str]:
    """List the dotted paths of the settings in which two recipes differ."""
    return [change.name for change in changes(before, after)]
