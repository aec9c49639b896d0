"""Where a checkpoint comes from: its parents, its data and the versions that made it."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from echox.checkpoint import Checkpoint, fingerprint
from echox.errors import CheckpointError
from echox.number_format import number_format
from echox.tasks.base import Task


def trace(task: Task, extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A JSON-ready lineage: fingerprints of parent checkpoints and of data, versions, what a CPU multiplied in, and `extra`
    (plugins, for one)."""
    on_cpu = task.context.device.type == "cpu"
    return {
        "parents": {name: fingerprint(folder) for name, folder in task.context.parents.items() if name in (*task.parents, *task.continues)},
        "data": dict(task.data_fingerprints()),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in ("echox", "torch", "transformers")}},
        **({"number_format": dataclasses.asdict(number_format())} if on_cpu else {}),
        **(extra or {}),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def check_same_origin(checkpoint: Checkpoint, lineage: Mapping[str, Any]) -> None:
    """Refuse to resume a run on other ground than it began on.

    Raises:
        CheckpointError: a parent or the data has changed since.
    """
    before = checkpoint.meta.get("lineage", {})
    for kind in ("parents", "data"):
        changed = [name for name in lineage[kind] if before.get(kind, {}).get(name) != lineage[kind][name]]
        if changed:
            raise CheckpointError(
                f"{checkpoint.folder} was trained with other {kind} ({', '.join(changed)} changed since); "
                f"delete {checkpoint.folder.parent} to train anew, or choose another run folder"
            )


@dataclass(frozen=True, slots=True)
class Change:
    """A setting that differs between two recipes."""

    name: str  # dotted
    before: Any
    after: Any


def changes(before: Any, after: Any, path: str = "") -> list[Change]:
    """The settings in which two plain recipes differ; of a part that was replaced by another, its name alone."""
    if isinstance(before, dict) and isinstance(after, dict):
        if path and "name" in before and "name" in after and before["name"] != after["name"]:
            return [Change(path, before["name"], after["name"])]
        keys = dict.fromkeys([*before, *after])
        return [change for key in keys for change in changes(before.get(key), after.get(key), f"{path}.{key}" if path else str(key))]
    return [] if before == after else [Change(path, before, after)]


def differences(before: Any, after: Any) -> list[str]:
    """Dotted names of the settings in which two plain recipes differ."""
    return [change.name for change in changes(before, after)]
