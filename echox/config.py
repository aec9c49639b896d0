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
from typing import Any, TypeVar

from echox.errors import ConfigError

C = TypeVar("C")


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


def to_plain(value: Any) -> Any:
    """A config (or any nesting of dataclasses, enums, lists, dicts) as JSON-ready data."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, dict):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    return value


def from_plain(config_type: type[C], data: dict[str, Any]) -> C:
    """Rebuild a config from `to_plain` data.

    Raises:
        ConfigError: a key is not a field of `config_type`.
    """
    hints = typing.get_type_hints(config_type)
    names = [f.name for f in dataclasses.fields(config_type)]
    unknown = [key for key in data if key not in names]
    if unknown:
        raise ConfigError(f"{config_type.__name__} has no field {unknown[0]!r}{near(unknown[0], names)}; its fields are {', '.join(names)}")
    return config_type(**{key: _restore(hints[key], item) for key, item in data.items()})


def _restore(hint: Any, item: Any) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        if item is None:
            return None
        hint = next(option for option in typing.get_args(hint) if option is not type(None))
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return item if isinstance(item, hint) else hint[item]
    if dataclasses.is_dataclass(hint) and isinstance(item, dict):
        return from_plain(hint, item)
    return item


def near(word: str, known: typing.Iterable[str]) -> str:
    """`; did you mean 'whisper'?` for a misspelt word, or nothing."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {matches[0]!r}?" if matches else ""
