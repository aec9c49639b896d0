"""Config fields as lines of text, for `--help` and `echox-info`."""

from __future__ import annotations

import dataclasses
import json
import textwrap
import typing
from collections.abc import Iterator

from omegaconf import MISSING

from echox.compose import type_name
from echox.config import field_docs, to_plain

WIDTH = 110


def field_lines(config_type: type, indent: str = "  ") -> Iterator[str]:
    """Each field: `name=default`, its type, and its sentence of documentation below."""
    docs = field_docs(config_type)
    hints = typing.get_type_hints(config_type)
    for field in dataclasses.fields(config_type):
        yield f"{indent}{field.name}={_default(field)}   ({type_name(hints[field.name])})"
        yield from textwrap.wrap(docs.get(field.name, ""), WIDTH, initial_indent=f"{indent}    ", subsequent_indent=f"{indent}    ")


def _default(field: dataclasses.Field) -> str:
    """A field's default as it would be written in an override; empty for a required field."""
    value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    if value is dataclasses.MISSING or value == MISSING:
        return "<required>"
    plain = to_plain(value)
    if isinstance(plain, dict):
        return str(plain.get("name", "{...}" if plain else "{}"))
    if isinstance(plain, list):
        return f"[{','.join(map(str, plain))}]"
    if plain is None or isinstance(plain, bool):
        return json.dumps(plain)
    return str(plain)


def summary(text: str | None) -> str:
    """The first sentence line of a docstring."""
    return (text or "").strip().partition("\n")[0]
