"""Config fields as lines of text, for `--help` and `echox-info`."""

from __future__ import annotations

import dataclasses
import json
import re
import textwrap
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import MISSING

from echox.core.config import field_docs, to_plain
from echox.pipeline.config_tree import type_name

# Characters of a line. Not the terminal's, because cached texts serve terminals of any width.
WIDTH = 110
# A sentence ends where the next one begins; a dot within one is followed by no capital letter.
_NEXT_SENTENCE = re.compile(r"(?<=[.!?]) (?=[A-Z`])")


def field_lines(
    config_type: type, indent: str = "  ", values: Mapping[str, str] | None = None
) -> Iterator[str]:
    """Yield lines for each field: `name=default`, its type, and its sentence below.

    Args:
        config_type: a config dataclass.
        indent: what each line begins with.
        values: field -> its value, where that is another than the default.
    """
    docs = field_docs(config_type)
    hints = typing.get_type_hints(config_type)
    for field in dataclasses.fields(config_type):
        value = (values or {}).get(field.name)
        now = "" if value is None else f", here {value}"
        yield f"{indent}{field.name}={default_text(field)}{now}   ({type_name(hints[field.name])})"
        yield from doc_lines(docs.get(field.name, ""), f"{indent}    ")


def doc_lines(text: str, indent: str = "  ") -> list[str]:
    """Return a text as lines of WIDTH characters; an empty one has no line."""
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent)


def entry_lines(name: str, text: str, columns: int = 18) -> list[str]:
    """Return an entry of a list: its name, and its text beside it, on lines of WIDTH characters.

    Args:
        name: the entry's name.
        text: what it is.
        columns: characters of the longest name, after which the texts begin.
    """
    return textwrap.wrap(
        f"{name:<{columns}} {text}",
        WIDTH,
        subsequent_indent=" " * (columns + 1),
        break_long_words=False,
        break_on_hyphens=False,
    )


def default_text(field: dataclasses.Field) -> str:
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
    return value_text(plain)


def value_text(plain: Any) -> str:
    """Return a plain value as it would be written in an override."""
    if isinstance(plain, list):
        return f"[{','.join(map(str, plain))}]"
    if plain is None or isinstance(plain, bool):
        return json.dumps(plain)  # null, true and false, as in YAML
    return str(plain)


def summary(text: str | None) -> str:
    """Return the first sentence of a docstring, or "" if there is none."""
    paragraph = (text or "").strip().partition("\n\n")[0]
    return _NEXT_SENTENCE.split(" ".join(paragraph.split()))[0]
