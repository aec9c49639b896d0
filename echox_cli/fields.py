"""Config fields as lines of text, for `--help` and `echox-info`."""

from __future__ import annotations

import dataclasses
import json
import textwrap
import typing
from collections.abc import Iterator

from omegaconf import MISSING

from echox.core.config import field_docs, to_plain
from echox.pipeline.config_tree import type_name

# Characters of a line. Not the terminal's, because cached texts serve terminals of any width.
WIDTH = 110


def field_lines(config_type: type, indent: str = "  ") -> Iterator[str]:
    """Yield lines for each field: `name=default`, its type, and its sentence below.

    Args:
        config_type: a config dataclass.
        indent: what each line begins with.
    """
    docs = field_docs(config_type)
    hints = typing.get_type_hints(config_type)
    for field in dataclasses.fields(config_type):
        yield f"{indent}{field.name}={_default(field)}   ({type_name(hints[field.name])})"
        # An empty sentence yields no line.
        yield from textwrap.wrap(
            docs.get(field.name, ""),
            WIDTH,
            initial_indent=f"{indent}    ",
            subsequent_indent=f"{indent}    ",
        )


def _default(field: dataclasses.Field) -> str:
    """Return a field's default as it would be written in an override."""
    factory = field.default_factory
    value = field.default if factory is dataclasses.MISSING else factory()
    # Either library's mark: dataclasses' own, or OmegaConf's "???" in a config.
    if value is dataclasses.MISSING or value == MISSING:
        return "<required>"
    plain = to_plain(value)
    if isinstance(plain, dict):
        # A part by its name; its fields are explained by `echox-info`.
        return str(plain.get("name", "{...}" if plain else "{}"))
    if isinstance(plain, list):
        return f"[{','.join(map(str, plain))}]"
    if plain is None or isinstance(plain, bool):
        return json.dumps(plain)  # null, true and false, as in YAML
    return str(plain)


def summary(text: str | None) -> str:
    """Return the first line of a docstring, or "" if there is none."""
    return (text or "").strip().partition("\n")[0]
