"""Tab completion: chooses among what a command offers. It loads nothing itself, so that kept offers are quick."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Offers:
    """Everything that may follow the finished words of a command line."""

    candidates: list[str]
    """Whole words: `name`, `--option`, `field=`, `config.`, `field=value`."""
    plain: list[str] = field(default_factory=list)
    """Fields whose value changes nothing about what may follow."""
    faulty: bool = False
    """Whether a finished word could not be read; what would mend it may be a file that is not there yet."""


def complete(line: str, offers_after: Callable[[tuple[str, ...]], Offers]) -> list[str]:
    """How the last word of a command line may go on.

    Args:
        offers_after: what a command offers after some words. It is asked without those that set a plain field, so that few
            answers serve a whole line.
    """
    before, word = _words_of(line)
    telling: list[str] = []
    for previous, finished in zip(["", *before], before):
        if not (_sets_field(previous, finished) and finished.partition("=")[0] in offers_after(tuple(telling)).plain):
            telling.append(finished)
    return list(_matching(word, offers_after(tuple(telling)).candidates))


def _words_of(line: str) -> tuple[list[str], str]:
    """The finished words after the program's name, and the one under the cursor."""
    try:
        words = shlex.split(line)
    except ValueError:  # an open quote
        words = line.split()
    if not line or line[-1].isspace():
        words.append("")
    return words[1:-1], words[-1]


def _sets_field(previous: str, word: str) -> bool:
    is_value = previous.startswith("-") and "=" not in previous
    return "=" in word and not word.startswith(("-", "recipe=")) and not is_value


def _matching(word: str, candidates: Sequence[str]) -> Iterator[str]:
    """The candidates that begin with a word, as far as its next `.` or `=`."""
    key, equals, _ = word.partition("=")
    for candidate in candidates:
        field_name, has_value, value = candidate.partition("=")
        if not candidate.startswith(word) or (candidate.startswith("-") and not word):
            continue
        is_field = has_value or candidate.endswith(".")
        if not is_field or (value if equals else not value and field_name.rstrip(".").count(".") == key.count(".")):
            yield candidate
