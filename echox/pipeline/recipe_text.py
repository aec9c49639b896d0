"""A finished recipe as the text of a recipe file; read back, it gives the same recipe."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from omegaconf import OmegaConf

from echox.core.files import atomic_write
from echox.pipeline.plugins import REGISTRIES
from echox.pipeline.recipe import Recipe, Resume

RECIPE_FILE = "recipe.yaml"  # in the folder of a run


def recipe_text(recipe: Recipe) -> str:
    """Return a recipe as YAML with every field, its parts named in the defaults list."""
    parts: list[dict[str, str]] = []
    body = _plain(recipe, "", parts)
    # OmegaConf's own writer, which quotes what its reader would take for a number.
    return OmegaConf.to_yaml(OmegaConf.create({"defaults": [*parts, "_self_"], **body}))


def write_recipe(recipe: Recipe) -> None:
    """Write the recipe into the folder of its run, whatever recipe is there.

    Without the permissions to replace or mix what was trained, which a command gives each time.

    Raises:
        DiskError: the disk is full or cannot be written.
    """
    lasting = dataclasses.replace(recipe, overwrite=False, resume=Resume.same_settings)
    path = Path(recipe.run_dir) / RECIPE_FILE
    heading = f"# echox-train recipe={path}   (the recipe of the last command, every field)\n"
    with atomic_write(path) as unfinished:
        unfinished.write_text(heading + recipe_text(lasting), "utf-8")


def _plain(value: Any, key: str, parts: list[dict[str, str]]) -> Any:
    """Return a value as YAML has it, and append the parts in it to `parts`, outer ones first.

    Args:
        value: of a field, or the recipe itself.
        key: dotted key of the field.
        parts: entries of a defaults list.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for kind, registry in REGISTRIES.items():
            if (name := registry.name_of(value)) is not None:
                parts.append({kind if key == kind else f"{kind}@{key}": name})
        # All fields: one that is left out of other files could be set by a preset of the name.
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, PurePath):
        value = str(value)
    if isinstance(value, str):
        return value.replace("${", "\\${")  # resolved already, so that this is text
    if isinstance(value, Mapping):
        return {
            name: _plain(item, f"{key}.{name}".lstrip("."), parts) for name, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_plain(item, key, parts) for item in value]
    return value
