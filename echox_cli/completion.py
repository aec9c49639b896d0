"""Tab completion: chooses among what a command offers.

It imports no part of echox, so that an answer from the cache is quick.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Offers:
    """Everything that may follow the finished words of a command line."""

    candidates: list[str]
    """Complete words: `name`, `--option`, `field=`, `config.`, `field=value`."""
    plain: list[str] = field(default_factory=list)
    """Fields whose value changes nothing about what may follow."""
    faulty: bool = False
    """Whether a finished word could not be read.

    What would mend it may be a file that does not exist yet, so such offers are not cached.
    """


def complete(line: str, offers_after: Callable[[tuple[str, ...]], Offers]) -> list[str]:
    """Return the completions of the last word of a command line.

    Args:
        line: the command line up to the cursor.
        offers_after: returns what a command offers after some words. It is called without those
            that set a plain field, so that few cached answers serve a whole line.
    """
    before, word = _split_words(line)
    decisive: list[str] = []
    # Each word with the one before it, which may be an option that takes it as its value.
    for previous, finished in zip(["", *before], before):
        is_plain = (
            _sets_field(previous, finished)
            and finished.partition("=")[0] in offers_after(tuple(decisive)).plain
        )
        if not is_plain:
            decisive.append(finished)
    return list(_matching(word, offers_after(tuple(decisive)).candidates))


def _split_words(line: str) -> tuple[list[str], str]:
    """Return the finished words after the program's name, and the one under the cursor."""
    try:
        words = shlex.split(line)
    except ValueError:  # an open quote
        words = line.split()
    # After a space, the word under the cursor is a new one.
    if not line or line[-1].isspace():
        words.append("")
    # The first word is the program's name.
    return words[1:-1], words[-1]


def _sets_field(previous: str, word: str) -> bool:
    # After `--seed`, even `a=b` is a value; after `--seed=3` it is a word of its own.
    is_value = previous.startswith("-") and "=" not in previous
    return "=" in word and not word.startswith(("-", "recipe=")) and not is_value


def _matching(word: str, candidates: Sequence[str]) -> Iterator[str]:
    """Yield the candidates that begin with a word, as far as its next `.` or `=`."""
    key, equals, _ = word.partition("=")
    depth = key.count(".")
    for candidate in candidates:
        # Among all candidates, options would hide the fields; a dash asks for them.
        if not candidate.startswith(word) or (candidate.startswith("-") and not word):
            continue
        field_name, has_value, value = candidate.partition("=")
        if not (has_value or candidate.endswith(".")):
            yield candidate
        # A field is offered level by level: first `encoder.`, then what lies below it. Its
        # values follow once the "=" is typed.
        elif value if equals else (not value and field_name.rstrip(".").count(".") == depth):
            yield candidate
