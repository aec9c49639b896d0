"""What may follow on a command line: fields of a config, names of parts and recipes, values."""

from __future__ import annotations

import enum
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from echox.core.errors import EchoxError
from echox.pipeline.compose import compose, parse_overrides
from echox.pipeline.config_tree import field_paths, kind_at, options, type_at
from echox.pipeline.plugins import discover
from echox.pipeline.recipe import Recipe, compose_recipe, in_short
from echox.pipeline.recipe_files import (
    list_recipes,
    plugin_dirs_of,
    recipe_folders,
)
from echox_cli.arguments import OPTIONS, RECIPE_OPTIONS, split
from echox_cli.command import chosen_recipe
from echox_cli.completion import Offers

_LEAVES = (int, float, str, Path, enum.Enum, type(None))
_PLUGIN_DIRS = "plugin_dirs"  # a list of texts, but the plugins in them change what may follow


def recipe_offers(before: Sequence[str]) -> Offers:
    """Return what may follow where a command takes a recipe.

    After a faulty word, any field of a recipe may follow.

    Args:
        before: the finished words after the command's name.

    Raises:
        ConfigError: a folder in ECHOX_PLUGINS or ECHOX_RECIPES does not exist.
    """
    if before and before[-1] == "--config-name":
        return Offers(sorted(list_recipes()))
    names = [f"recipe={name}" for name in sorted(list_recipes())]
    try:
        name, overrides = chosen_recipe(split(before, takes_recipe=True))
        discover(plugin_dirs_of(name, overrides))
        tree, faulty = compose_recipe(name, overrides), False
    # While a line is typed, errors are normal; the command itself reports them.
    except EchoxError:
        discover()
        tree, faulty = compose(Recipe), True
    words = [*OPTIONS, *RECIPE_OPTIONS, "recipe=", *names]
    return _tree_offers(words, tree, recipe_folders(), faulty)


def config_offers(config_type: type, before: Sequence[str]) -> Offers:
    """Return what may follow where a command takes one config.

    After a faulty word, any field of the config may follow.

    Args:
        config_type: the command's config dataclass.
        before: the finished words after the command's name.

    Raises:
        ConfigError: a folder in ECHOX_PLUGINS or ECHOX_RECIPES does not exist.
    """
    discover()
    folders = recipe_folders()
    try:
        overrides = parse_overrides(split(before, takes_recipe=False).overrides)
        tree, faulty = compose(config_type, overrides, folders=folders), False
    # As above; then the candidates are those of the defaults.
    except EchoxError:
        tree, faulty = compose(config_type), True
    return _tree_offers([*OPTIONS], tree, folders, faulty)


def _tree_offers(
    words: list[str], tree: DictConfig, folders: Sequence[Path], faulty: bool
) -> Offers:
    return Offers([*words, *_candidates(tree, folders)], list(_plain_fields(tree)), faulty)


def _candidates(tree: DictConfig, folders: Sequence[Path]) -> Iterator[str]:
    for path in field_paths(tree):
        is_config = _is_config(tree, path)
        values = list(_values(tree, path, folders))
        # A part can be set by name (`encoder=`) and by its fields (`encoder.`).
        if kind_at(tree, path) or not is_config:
            yield f"{in_short(path)}="
        if is_config:
            yield f"{in_short(path)}."
        yield from (f"{in_short(path)}={value}" for value in values)


def _plain_fields(tree: DictConfig) -> Iterator[str]:
    """Yield the fields that hold no config and could not."""
    for path in field_paths(tree):
        hint = type_at(tree, path)
        is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
        hints = typing.get_args(hint) if is_union else (hint,)
        if path != _PLUGIN_DIRS and all(map(_is_leaf, hints)):
            yield in_short(path)


def _is_leaf(hint: object) -> bool:
    return typing.get_origin(hint) is list or (isinstance(hint, type) and issubclass(hint, _LEAVES))


def _is_config(tree: DictConfig, path: str) -> bool:
    try:
        return OmegaConf.is_dict(OmegaConf.select(tree, path))
    except Exception:  # a reference that cannot be resolved yet is a leaf
        return False


def _values(tree: DictConfig, key: str, folders: Sequence[Path]) -> Iterable[str]:
    """Return the values of a field that has few: names of parts, booleans and enums."""
    if kind := kind_at(tree, key):
        return options(kind, folders)
    hint = type_at(tree, key)
    # Of `Mood | None` the members of Mood.
    for option in typing.get_args(hint) or (hint,):
        if option is bool:
            return ("true", "false")
        if isinstance(option, type) and issubclass(option, enum.Enum):
            return list(option.__members__)
    return ()
