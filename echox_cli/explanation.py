"""Fields explained by their dotted keys, as in `echox-train --help s2t.train`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from echox.core.config import field_docs, near, to_plain
from echox.core.errors import ConfigError
from echox.pipeline.config_tree import config_type_of, kind_of, type_at, type_name
from echox.pipeline.plugins import REGISTRIES
from echox_cli.fields import default_text, doc_lines, field_lines, summary, value_text


def explanation(tree: DictConfig, key: str) -> Iterator[str]:
    """Yield lines that explain the field at a dotted key, and the fields inside it.

    Args:
        tree: a typed config, whose parts and values are those that are explained.
        key: such as `s2t.task.adapter`; a plan of a stage may be named without its stage, as
            `train`.

    Raises:
        ConfigError: there is no such field.
    """
    full = _full_key(tree, key)
    parent, name = _parent(tree, full, key)
    hint = type_at(tree, full)
    yield f"{full.removeprefix('stages.')}={_value(parent, name)}   ({type_name(hint)})"
    owner: Any = OmegaConf.get_type(parent)
    yield from doc_lines(field_docs(owner).get(name, ""))
    node = parent._get_node(name)
    config_type = OmegaConf.get_type(node) if isinstance(node, DictConfig) else None
    if not dataclasses.is_dataclass(config_type):
        config_type = config_type_of(hint)
    if kind := kind_of(hint):
        yield f"  `echox-info {kind}` lists what it can be."
    if config_type is not None:
        lines = field_lines(config_type, values=_other_values(config_type, node))
        yield from ("", f"fields of {config_type.__name__}: {summary(config_type.__doc__)}", *lines)


def _full_key(tree: DictConfig, key: str) -> str:
    """The key with its stage, where it lacks one: that of the first stage that has such a field."""
    parts = key.split(".")
    if parts[0] in tree or "stages" not in tree:
        return key
    if parts[0] in tree.stages:
        return f"stages.{key}"
    # A field that no stage has is named by the stage that has most of its key.
    for length in range(len(parts), 0, -1):
        for stage in tree.stages:
            if type_at(tree, f"stages.{stage}.{'.'.join(parts[:length])}") is not None:
                return f"stages.{stage}.{key}"
    return key


def _parent(tree: DictConfig, full: str, key: str) -> tuple[DictConfig, str]:
    """The config that has the field at a dotted key, and the field's name."""
    node: Any = tree
    parts = full.split(".")
    for position, part in enumerate(parts):
        if not isinstance(node, DictConfig) or node._is_none() or part not in node:
            where = ".".join(parts[:position]).removeprefix("stages.")
            inside = list(map(str, node)) if isinstance(node, DictConfig) and node else []
            raise ConfigError(
                f"no field {key!r}: {where or 'the config'} has no {part!r}{near(part, inside)}"
                f"; its fields are {', '.join(inside) or 'none'}"
            )
        if position < len(parts) - 1:
            node = node._get_node(part)
    return node, parts[-1]


def _value(parent: DictConfig, name: str) -> str:
    """The value of a field as an override would write it; a part by its name."""
    if OmegaConf.is_missing(parent, name):
        return "<required>"
    try:
        value = OmegaConf.select(parent, name)
    except OmegaConfBaseException:  # an interpolation of what is not there
        return str(parent._get_node(name))
    config_type = OmegaConf.get_type(value) if isinstance(value, DictConfig) else None
    if config_type not in (None, dict):
        kind = kind_of(type_at(parent, name))
        entries = REGISTRIES[kind] if kind else {}
        names = [it for it in entries if entries[it].config_type is config_type]
        return names[0] if names else "{...}"
    is_container = isinstance(value, (DictConfig, ListConfig))
    return value_text(OmegaConf.to_container(value) if is_container else to_plain(value))


def _other_values(config_type: type, node: Any) -> dict[str, str]:
    """The values of a config's plain fields that are not their defaults."""
    if not isinstance(node, DictConfig) or node._is_none():
        return {}
    values = {field.name: _value(node, field.name) for field in dataclasses.fields(config_type)}
    defaults = {field.name: default_text(field) for field in dataclasses.fields(config_type)}
    return {
        name: value
        for name, value in values.items()
        if value not in ("{...}", "<required>", defaults[name])
    }
