"""What the tree of a typed config says of its fields: their names, types, and kinds of parts."""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from echox.pipeline.plugins import REGISTRIES


def options(kind: str, folders: Sequence[Path] = ()) -> list[str]:
    """List everything `kind=` can be set to: registered names and presets.

    Args:
        kind: one of `registry.KINDS`.
        folders: of the presets of each kind.
    """
    presets = {path.stem for folder in folders for path in (folder / kind).glob("*.yaml")}
    return sorted({*REGISTRIES[kind], *presets})


def nodes(tree: DictConfig) -> Iterator[tuple[str, DictConfig]]:
    """Yield the key and the node of every config in a tree that is neither null nor missing."""
    for key in tree:
        # Reading by `tree[key]` would raise for a missing value.
        node = tree._get_node(key)
        if isinstance(node, DictConfig) and not node._is_none() and not node._is_missing():
            yield str(key), node


def field_paths(tree: DictConfig, path: str = "") -> Iterator[str]:
    """Yield every dotted key that an override can set.

    Args:
        tree: the config.
        path: beginning of the keys, with its final dot.
    """
    configs = dict(nodes(tree))
    for key in map(str, tree):
        yield f"{path}{key}"
        if key in configs:
            yield from field_paths(configs[key], f"{path}{key}.")


def type_at(tree: DictConfig, key: str) -> Any:
    """Return the declared type of the field at a dotted key, or None if it is unknown."""
    path, _, last = key.rpartition(".")
    parent = OmegaConf.select(tree, path, throw_on_missing=False) if path else tree
    owner = OmegaConf.get_type(parent) if isinstance(parent, DictConfig) else None
    if dataclasses.is_dataclass(owner):
        # Hints and not `field.type`, which is a string under postponed annotations.
        return typing.get_type_hints(owner).get(last)
    # A key of a mapping has the type of the mapping's values.
    arguments = typing.get_args(type_at(tree, path)) if path else ()
    return arguments[1] if owner is dict and len(arguments) == 2 else None


_TYPE_NAMES = {
    int: "an integer",
    float: "a number",
    str: "a text",
    bool: "true or false",
    type(None): "null",
}


def type_name(hint: Any) -> str:
    """Return a type in plain words, such as `an integer or null`.

    Args:
        hint: the annotation of a config's field.
    """
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is list:
        return f"a list, each {type_name(arguments[0])}"
    if typing.get_origin(hint) is dict:
        return f"a mapping, each value {type_name(arguments[1])}"
    # What is left with arguments is a union.
    if arguments:
        return " or ".join(type_name(argument) for argument in arguments)
    if hint in _TYPE_NAMES:
        return _TYPE_NAMES[hint]
    if kind := kind_of(hint):
        return f"the name of {'an' if kind[0] in 'aeiou' else 'a'} {kind}"
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return " or ".join(hint.__members__)
    return getattr(hint, "__name__", str(hint))


def config_type_of(hint: Any) -> type | None:
    """Return the dataclass among the types of a field, or None."""
    candidates = (hint, *typing.get_args(hint))
    types = (option for option in candidates if isinstance(option, type))
    return next((option for option in types if dataclasses.is_dataclass(option)), None)


def kind_at(tree: DictConfig, key: str) -> str | None:
    """Return the kind of part at a dotted key, such as "encoder", or None."""
    return kind_of(type_at(tree, key))


def kind_of(hint: Any) -> str | None:
    """Return the kind of part that a field of this type holds, or None."""
    candidates = (hint, *typing.get_args(hint))
    return next(
        (kind for kind, registry in REGISTRIES.items() if registry.config_base in candidates), None
    )


def holds_text(hint: Any) -> bool:
    """Whether a field of this type holds a string or a path, null or not."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    types_of_field = typing.get_args(hint) if is_union else (hint,)
    return any(option in (str, Path) for option in types_of_field)
