"""Tab completion: what the shell's script (`texts.script`) asks a door for."""

from __future__ import annotations

import enum
import shlex
import typing
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from echox.compose import compose, field_paths, kind_at, options, parse_overrides, type_at
from echox.errors import EchoxError
from echox.plugins import discover
from echox.recipe import Recipe, compose_recipe, list_recipes, plugin_dirs_of, recipe_folders
from echox_cli.arguments import OPTIONS, RECIPE_OPTIONS, split


def recipe_candidates(line: str) -> list[str]:
    """How the last word of a command line that takes a recipe may go on."""
    before, word = words_of(line)
    if word.startswith("recipe=") or (before and before[-1] == "--config-name"):
        prefix = "recipe=" if word.startswith("recipe=") else ""
        return matching(word, (f"{prefix}{name}" for name in list_recipes()))
    if word.startswith("-"):
        return matching(word, {**OPTIONS, **RECIPE_OPTIONS})
    tree, folders = _recipe_tree(before)
    return matching(word, [*(["recipe="] if "=" not in word else []), *_tree_candidates(tree, word, folders)])


def config_candidates(config_type: type, line: str) -> list[str]:
    """How the last word of a command line with one config may go on."""
    before, word = words_of(line)
    if word.startswith("-"):
        return matching(word, OPTIONS)
    discover()
    folders = recipe_folders()
    try:
        tree = compose(config_type, parse_overrides(split(before, takes_recipe=False).overrides), folders=folders)
    except EchoxError:
        tree = compose(config_type)
    return matching(word, _tree_candidates(tree, word, folders))


def words_of(line: str) -> tuple[list[str], str]:
    """The finished words after the program's name, and the one under the cursor."""
    try:
        words = shlex.split(line)
    except ValueError:  # an open quote
        words = line.split()
    if not line or line[-1].isspace():
        words.append("")
    return words[1:-1], words[-1]


def _recipe_tree(before: Sequence[str]) -> tuple[DictConfig, list[Path]]:
    """The config so far; a half-written or faulty word falls back to the bare recipe."""
    from echox_cli.door import chosen_recipe

    folders = recipe_folders()
    try:
        name, overrides = chosen_recipe(split(before, takes_recipe=True))
        discover(plugin_dirs_of(name, overrides))
        return compose_recipe(name, overrides), folders
    except EchoxError:
        discover()
        return compose(Recipe), folders


def _tree_candidates(tree: DictConfig, word: str, folders: Sequence[Path]) -> Iterator[str]:
    key, equals, _ = word.partition("=")
    if equals:
        yield from (f"{key}={value}" for value in _values(tree, key, folders))
        return
    depth = key.count(".")
    for path in field_paths(tree):
        if path.count(".") == depth:
            has_value = kind_at(tree, path) or not OmegaConf.is_dict(_peek(tree, path))
            yield from ([f"{path}="] if has_value else [])
            yield from ([f"{path}."] if OmegaConf.is_dict(_peek(tree, path)) else [])


def _peek(tree: DictConfig, path: str) -> object:
    try:
        return OmegaConf.select(tree, path)
    except Exception:  # a reference that cannot be resolved yet is a leaf
        return None


def _values(tree: DictConfig, key: str, folders: Sequence[Path]) -> Iterable[str]:
    if kind := kind_at(tree, key):
        return options(kind, folders)
    hint = type_at(tree, key)
    for option in typing.get_args(hint) or (hint,):
        if option is bool:
            return ("true", "false")
        if isinstance(option, type) and issubclass(option, enum.Enum):
            return list(option.__members__)
    return ()


def matching(word: str, candidates: Iterable[str]) -> list[str]:
    """The candidates that begin with a word."""
    return [candidate for candidate in candidates if candidate.startswith(word)]
