"""Configs are dataclasses: their fields, documentation and round trip to plain data.

Every config of echox is `@dataclass(kw_only=True, slots=True)`, states each default once, and
explains each field by a string literal below it. This module reads those explanations, and
turns configs into JSON-ready dicts and back.
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
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from echox.core.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

C = TypeVar("C", bound="DataclassInstance")
NEUTRAL = "neutral"  # key in the metadata of a dataclass field
LEFT_OUT = "left_out"


@functools.cache
def field_docs(config_type: type) -> dict[str, str]:
    """Return the sentence under each field of a config dataclass, inherited fields included.

    Returns:
        Field name -> sentence on one line; fields without a sentence are absent.
    """
    docs: dict[str, str] = {}
    # From the base to the subclass, so that a subclass can explain a field anew.
    for owner in reversed(config_type.__mro__):
        if dataclasses.is_dataclass(owner):
            docs.update(_own_field_docs(owner))
    return docs


def _own_field_docs(owner: type) -> dict[str, str]:
    # Python keeps no string under a field, so the class's source is parsed.
    try:
        definition = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
    except (OSError, TypeError, SyntaxError):
        return {}  # a class made by `exec` or in a shell has no source
    body = definition.body if isinstance(definition, ast.ClassDef) else []
    docs = {}
    for statement, follower in zip(body, body[1:]):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            doc = _string(follower)
            if doc is not None:
                # A sentence over several lines is wrapped again where it is shown.
                docs[statement.target.id] = " ".join(doc.split())
    return docs


def _string(statement: ast.stmt) -> str | None:
    """The string that a statement consists of, or None."""
    if not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)):
        return None
    value = statement.value.value
    return value if isinstance(value, str) else None


def neutral(
    default: Any = dataclasses.MISSING, *, default_factory: Any = dataclasses.MISSING
) -> Any:
    """Return a dataclass field that does not decide what is learned, such as a logging interval.

    A run may resume with another value of such a field. The results may still differ by
    rounding, as they do on another device.

    Args:
        default: as of `dataclasses.field`.
        default_factory: as of `dataclasses.field`.
    """
    return dataclasses.field(
        default=default, default_factory=default_factory, metadata={NEUTRAL: True}
    )


def left_out(default: Any) -> Any:
    """Return a dataclass field that `to_plain` leaves out while it has its default.

    For a field that is added to a config whose plain data stands in files or is hashed: those of
    before stay the same.

    Args:
        default: as of `dataclasses.field`; a value that cannot be changed.
    """
    return dataclasses.field(default=default, metadata={LEFT_OUT: True})


def decisive(plain: Any, like: Any) -> Any:
    """Return the plain data of a config without its neutral fields, for comparing two runs.

    A field that `plain` lacks, because a later version added it, gets its default; a field
    that no longer exists is left out.

    Args:
        plain: data as `to_plain` returns it.
        like: a config whose types say which fields are neutral. If `plain` describes a part of
            another name, it is returned as it is.
    """
    is_config = dataclasses.is_dataclass(like) and not isinstance(like, type)
    if not is_config or not isinstance(plain, Mapping):
        return plain
    current = to_plain(like)
    if plain.get("name") != current.get("name"):
        return plain
    fields = {"name": plain["name"]} if "name" in current else {}
    for field in dataclasses.fields(like):
        if NEUTRAL not in field.metadata and field.name != "name":
            value = plain[field.name] if field.name in plain else _default_value(field, current)
            # Nested parts are compared by the type that `like` has at the same place.
            fields[field.name] = decisive(value, getattr(like, field.name))
    return fields


def _default_value(field: dataclasses.Field, current: Mapping[str, Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return to_plain(field.default_factory())
    # A required field has no default, so the value that is asked for now stands in.
    return current[field.name] if field.default is dataclasses.MISSING else to_plain(field.default)


class ConfigNames(Protocol):
    """The part of a registry that this module uses: names of the configs below one base."""

    def name_of(self, config: Any) -> str | None:
        """Return the registered name of a config's type, or None."""

    def parse(self, data: Mapping[str, Any]) -> Any:
        """Return the config that plain data with the key "name" describes."""


# Filled by the registries, because this module is below them and cannot import them.
_NAMES_BY_BASE: dict[type, ConfigNames] = {}


def register_names(config_base: type, names: ConfigNames) -> None:
    """Let `to_plain` write, and `from_plain` read, the names of configs below `config_base`.

    The name restores the subclass of a field whose annotation is only the base.
    """
    _NAMES_BY_BASE[config_base] = names


def _names_for(config_type: Any) -> ConfigNames | None:
    # An annotation such as `int | None` is no class and has no bases.
    bases = config_type.__mro__ if isinstance(config_type, type) else ()
    return next((_NAMES_BY_BASE[base] for base in bases if base in _NAMES_BY_BASE), None)


def to_plain(value: Any) -> Any:
    """Turn a config into JSON-ready data.

    Args:
        value: a dataclass, or any nesting of dataclasses, enums, paths, lists and dicts. The
            config of a registered part also gets its name, as the key "name".
    """
    # A dataclass type is a dataclass for `is_dataclass`, but has no values.
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = _names_for(type(value))
        name = names.name_of(value) if names else None
        fields = {
            f.name: to_plain(getattr(value, f.name))
            for f in dataclasses.fields(value)
            if LEFT_OUT not in f.metadata or getattr(value, f.name) != f.default
        }
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
    """Rebuild a config from the data that `to_plain` returned.

    Raises:
        ConfigError: a key is not a field of `config_type`, or a value is not a member of its enum.
        PluginError: the name of a nested part is not registered.
    """
    hints = typing.get_type_hints(config_type)
    names = [field.name for field in dataclasses.fields(config_type)]
    # "name" is the registered name, unless the dataclass has a field of its own called so.
    values = {key: item for key, item in data.items() if key != "name" or "name" in names}
    for key in values:
        if key not in names:
            raise ConfigError(
                f"{config_type.__name__} has no field {key!r}{near(key, names)}; "
                f"its fields are {', '.join(names) or 'none'}"
            )
    return config_type(**{key: _typed(hints[key], item) for key, item in values.items()})


def _typed(hint: Any, item: Any) -> Any:
    """Return plain data as the type that a field's annotation asks for."""
    if item is None:
        return None
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        options = [option for option in arguments if option is not type(None)]
        # Of several types, which one was meant cannot be told from plain data.
        return _typed(options[0], item) if len(options) == 1 else item
    if origin is list:
        return [_typed(arguments[0], element) for element in item]
    if origin is dict:
        return {key: _typed(arguments[1], element) for key, element in item.items()}
    if not isinstance(hint, type) or isinstance(item, hint):
        return item
    if issubclass(hint, enum.Enum):
        return _enum_member(hint, item)
    if issubclass(hint, PurePath):
        return hint(item)
    if dataclasses.is_dataclass(hint) and isinstance(item, Mapping):
        names = _names_for(hint)
        return names.parse(item) if names and "name" in item else from_plain(hint, item)
    return item


def _enum_member(kind: type[enum.Enum], name: str) -> enum.Enum:
    if name not in kind.__members__:
        raise ConfigError(
            f"{kind.__name__} has no value {name!r}{near(name, kind.__members__)}; "
            f"its values are {', '.join(kind.__members__)}"
        )
    return kind[name]


def refuse_below(config: object, least: float, *names: str, above: bool = False) -> None:
    """Check that numbers of a config are not too small, for its `__post_init__`.

    Args:
        config: a dataclass.
        least: the smallest value that is taken.
        names: fields; None in one is no number, and passes.
        above: take only what is larger than `least`.

    Raises:
        ConfigError: a number is too small, or NaN.
    """
    for name in names:
        value = getattr(config, name)
        # Comparisons with NaN are false.
        if value is None or (value > least if above else value >= least):
            continue
        bound = f"a number above {least:g}" if above else f"{least:g} or more"
        raise ConfigError(f"{name} is {value}; use {bound}")


def refuse_no_share(config: object, *names: str) -> None:
    """Check that numbers of a config are shares in [0, 1), for its `__post_init__`.

    Raises:
        ConfigError: a number is not.
    """
    for name in names:
        if not 0 <= getattr(config, name) < 1:
            raise ConfigError(f"{name} is {getattr(config, name)}; use 0 or more, below 1")


def near(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'whisper'?` for a misspelt word, or "" if no word is close to it.

    Args:
        word: what a user wrote.
        known: the words that would be right.
    """
    matches = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""
