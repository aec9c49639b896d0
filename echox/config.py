"""Configs are dataclasses: their fields, documentation and round trip to plain data.

Every config of echox is `@dataclass(kw_only=True, slots=True)`, states each default once, and explains each field by a string
literal below it. This module reads those explanations, and turns configs into JSON-ready dicts and back.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import enum
import functools
import inspect
import textwrap
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any, Protocol, TypeVar

from echox.errors import ConfigError

C = TypeVar("C")
NEUTRAL = "neutral"  # in the metadata of a field


@functools.cache
def field_docs(config_type: type) -> dict[str, str]:
    """The sentence under each field of a config dataclass, its own and inherited ones; fields without one are absent."""
    docs: dict[str, str] = {}
    for owner in reversed(config_type.__mro__):
        if dataclasses.is_dataclass(owner):
            docs.update(_literal_docs(owner))
    return docs


def _literal_docs(owner: type) -> dict[str, str]:
    try:
        body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0].body
    except (OSError, TypeError, SyntaxError):
        return {}
    docs = {}
    for statement, follower in zip(body, body[1:]):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(follower, ast.Expr)
            and isinstance(follower.value, ast.Constant)
            and isinstance(follower.value.value, str)
        ):
            docs[statement.target.id] = " ".join(follower.value.value.split())
    return docs


def neutral(default: Any = dataclasses.MISSING, *, default_factory: Any = dataclasses.MISSING) -> Any:
    """A field of a config that does not decide what is learned, such as how often a line is logged: another value may go on with what
    was trained by this one. Of rounding, as by another device, it may change some."""
    return dataclasses.field(default=default, default_factory=default_factory, metadata={NEUTRAL: True})


def decisive(plain: Any, like: Any) -> Any:
    """Plain data of a config without its neutral fields.

    A field that `plain` does not know yet, since it came with a later version, has its default; one that is no more is left out.

    Args:
        plain: as `to_plain` gives it.
        like: a config of the same types, whose fields say what is neutral; of another part, nothing is left out.
    """
    is_config = dataclasses.is_dataclass(like) and not isinstance(like, type)
    if not is_config or not isinstance(plain, Mapping) or plain.get("name") != (given := to_plain(like)).get("name"):
        return plain
    kept = {"name": plain["name"]} if "name" in given else {}
    for field in dataclasses.fields(like):
        if NEUTRAL not in field.metadata and field.name != "name":
            value = plain[field.name] if field.name in plain else _default_of(field, given)
            kept[field.name] = decisive(value, getattr(like, field.name))
    return kept


def _default_of(field: dataclasses.Field, given: Mapping[str, Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return to_plain(field.default_factory())
    return given[field.name] if field.default is dataclasses.MISSING else to_plain(field.default)


class Names(Protocol):
    """What this module asks of a registry: the names of the configs below one base."""

    def name_of(self, config: Any) -> str | None: ...

    def parse(self, data: Mapping[str, Any]) -> Any: ...


_NAMES: dict[type, Names] = {}


def name_below(config_base: type, names: Names) -> None:
    """Write configs below `config_base` with their registered name, so that a field typed by the base can be read back."""
    _NAMES[config_base] = names


def _names_for(config_type: Any) -> Names | None:
    bases = config_type.__mro__ if isinstance(config_type, type) else ()
    return next((_NAMES[base] for base in bases if base in _NAMES), None)


def to_plain(value: Any) -> Any:
    """A config (or any nesting of dataclasses, enums, paths, lists, dicts) as JSON-ready data.

    The config of a registered part also says its name, as the key "name".
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = _names_for(type(value))
        name = names.name_of(value) if names else None
        fields = {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return fields if name is None else {"name": name, **fields}
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    return value


def from_plain(config_type: type[C], data: Mapping[str, Any]) -> C:
    """Rebuild a config from `to_plain` data.

    Raises:
        ConfigError: a key is not a field of `config_type`. PluginError: a part's name is not registered.
    """
    hints = typing.get_type_hints(config_type)
    names = [f.name for f in dataclasses.fields(config_type)]
    given = {key: item for key, item in data.items() if key != "name" or "name" in names}
    for key in given:
        if key not in names:
            raise ConfigError(f"{config_type.__name__} has no field {key!r}{near(key, names)}; its fields are {', '.join(names) or 'none'}")
    return config_type(**{key: _restore(hints[key], item) for key, item in given.items()})


def _restore(hint: Any, item: Any) -> Any:
    if item is None:
        return None
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        options = [option for option in arguments if option is not type(None)]
        return _restore(options[0], item) if len(options) == 1 else item
    if origin is list:
        return [_restore(arguments[0], element) for element in item]
    if origin is dict:
        return {key: _restore(arguments[1], element) for key, element in item.items()}
    if not isinstance(hint, type) or isinstance(item, hint):
        return item
    if issubclass(hint, enum.Enum):
        return _member(hint, item)
    if issubclass(hint, PurePath):
        return hint(item)
    if dataclasses.is_dataclass(hint) and isinstance(item, Mapping):
        names = _names_for(hint)
        return names.parse(item) if names and "name" in item else from_plain(hint, item)
    return item


def _member(kind: type[enum.Enum], name: str) -> enum.Enum:
    if name not in kind.__members__:
        raise ConfigError(f"{kind.__name__} has no value {name!r}{near(name, kind.__members__)}; its values are {', '.join(kind.__members__)}")
    return kind[name]


def near(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'whisper'?` for a misspelt word, or nothing."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {matches[0]!r}?" if matches else ""
