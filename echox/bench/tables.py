"""Results of a benchmark as a Markdown page and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from echox.core.files import atomic_write


def table_lines(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table, all cells of which are text."""
    return ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]]


def number_text(value: float | None, form: str) -> str:
    """Format a number by a format specification; an empty cell stands for None."""
    return "" if value is None else format(value, form)


def facts_line(facts: Mapping[str, str]) -> str:
    """Return the line below a table that says on what it was measured."""
    return "; ".join(f"{name} {value}" for name, value in facts.items()) + "."


def write_tables(output: Path, page: str, results: Mapping[str, object]) -> None:
    """Write a page for people and the same numbers for programs.

    Args:
        output: path without ending; .md and .json are added.
        page: in Markdown.
        results: what JSON can hold.
    """
    for ending, text in ((".md", page), (".json", json.dumps(results, indent=1) + "\n")):
        # Atomic, because a benchmark of hours writes again after every part and may be stopped.
        with atomic_write(Path(f"{output}{ending}")) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
