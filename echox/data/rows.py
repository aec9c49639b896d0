"""Rows of a manifest: one conversation each, in turns."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from echox.core.errors import ManifestError
from echox.data.audio_ref import Audio, AudioRef

# Key of a row in whose user audio nobody speaks.
NO_SPEECH = "no_speech"
# Key of an answer whose text goes on, so that no model learns to end there.
UNFINISHED = "unfinished"
# Keys by which an item states its clip's seconds; NeMo's manifests write `duration`.
STATED_SECONDS = ("duration_s", "duration")
# No recording is longer than thirty years; JSON's integers may be larger than any float.
LONGEST_S = 1e9


# A str too, so that a role compares equal to what a manifest writes.
class Role(str, Enum):
    """Speaker of a turn, as manifests write it."""

    USER = "user"
    ASSISTANT = "assistant"


@dataclass(frozen=True, slots=True)
class Item:
    """One turn of a conversation; its units [U] are those of its text and its audio."""

    role: Role
    text: str = ""
    audio: Audio | None = None  # path of the row joined to the manifest's folder
    transcription: str = ""
    units: tuple[int, ...] | None = None
    # The same units grouped into tokens of a unit language; None where they are not grouped.
    words: tuple[tuple[int, ...], ...] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def require_audio(self) -> Audio:
        """Return the turn's clip.

        Raises:
            ManifestError: the turn has none.
        """
        if self.audio is None:
            raise ManifestError(
                f"a turn of the {self.role.value} ({self.text[:40]!r}) has no audio; "
                "add its clip, or leave its row out"
            )
        return self.audio

    def require_units(self) -> tuple[int, ...]:
        """Return the turn's units [U].

        Raises:
            ManifestError: the turn has none.
        """
        if self.units is None:
            raise ManifestError(
                f"a turn of the {self.role.value} ({self.text[:40]!r}) has no units; "
                "encode its speech with echox-prepare units, or leave its row out"
            )
        return self.units


@dataclass(frozen=True, slots=True)
class Row:
    """One conversation of turns [N]."""

    id: str
    turns: tuple[Item, ...]
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def question(self) -> Item | None:
        """The user's last turn."""
        return self._last(Role.USER)

    @property
    def answer(self) -> Item | None:
        """The assistant's last turn."""
        return self._last(Role.ASSISTANT)

    @property
    def answers_a_question(self) -> bool:
        """Whether the assistant's last turn has text, and one of the user's stands before it."""
        roles = [item.role for item in self.turns]
        if self.answer is None or not self.answer.text:
            return False
        last = len(roles) - 1 - roles[::-1].index(Role.ASSISTANT)
        return Role.USER in roles[:last]

    def require_question(self) -> Item:
        """Return the user's last turn.

        Raises:
            ManifestError: the user has none.
        """
        return self._required(self.question, Role.USER)

    def require_answer(self) -> Item:
        """Return the assistant's last turn.

        Raises:
            ManifestError: the assistant has none.
        """
        return self._required(self.answer, Role.ASSISTANT)

    def _required(self, item: Item | None, role: Role) -> Item:
        if item is None:
            raise ManifestError(
                f"row {self.id!r} has no turn of the {role.value}; add one, or leave the row out"
            )
        return item

    def _last(self, role: Role) -> Item | None:
        return next((item for item in reversed(self.turns) if item.role is role), None)


@dataclass(frozen=True, slots=True)
class Problem:
    """The reason why a row cannot be used."""

    line: int  # counted from 1; in a .json list, the number of the row
    row_id: str | None
    reason: str

    def __str__(self) -> str:
        name = "" if self.row_id is None else f" (row {self.row_id!r})"
        return f"line {self.line}{name}: {self.reason}"


def folded(problems: Iterable[Problem]) -> list[str]:
    """Return the problems as sentences, those of one reason as the first and how many more."""
    by_reason: dict[str, list[Problem]] = {}
    for problem in problems:
        by_reason.setdefault(problem.reason, []).append(problem)
    return [
        str(first) + (f" (and {len(others):,} more lines)" if others else "")
        for first, *others in by_reason.values()
    ]


def with_answer(row: Row, **changes: Any) -> Row:
    """Return the row with fields of the assistant's last turn replaced.

    Args:
        row: row with at least one turn of the assistant.
        changes: fields of `Item` and their new values, such as units or audio.

    Raises:
        ValueError: the row has no turn of the assistant.
    """
    # The last turn of the assistant need not be the last of the row.
    last = max(index for index, item in enumerate(row.turns) if item.role is Role.ASSISTANT)
    turns = list(row.turns)
    # The old grouping belongs to the old units.
    stale = {"words": None} if "units" in changes else {}
    turns[last] = dataclasses.replace(turns[last], **stale | changes)
    return dataclasses.replace(row, turns=tuple(turns))


def with_units(row: Row, units: Sequence[int], codebooks: int = 1) -> Row:
    """Return the row with a codec's units as those of its answer.

    Args:
        row: row with at least one turn of the assistant.
        units: units [F], or codes [F * K] of K codebooks, frame after frame.
        codebooks: K; the codes of each frame are grouped where it is above 1.

    Raises:
        ValueError: the row has no turn of the assistant.
    """
    words = _frames(units, codebooks) if codebooks > 1 else None
    return with_answer(row, units=tuple(units), words=words)


def spelled_units(units: Sequence[int], codebooks: int = 1) -> str:
    """Write units [F], or codes [F * K] of K codebooks, as a manifest does.

    "12 4 5" is three frames of one codebook, "12_700_31 4_9_88" two frames of three codebooks.
    """
    return " ".join("_".join(map(str, frame)) for frame in _frames(units, codebooks))


def _frames(units: Sequence[int], codebooks: int) -> tuple[tuple[int, ...], ...]:
    """Codes frame after frame [F * K] -> frames [F][K]."""
    return tuple(
        tuple(units[start : start + codebooks]) for start in range(0, len(units), codebooks)
    )


def spoken_pairs(row: Row, *, answers: bool = True) -> list[tuple[Audio, str]]:
    """Return the clips of a row whose words are known, each with its words.

    A user turn's words are the transcription in the turn that follows it, an assistant turn's are
    its text. In a row marked `no_speech` the user's clips are known to hold no words.

    Args:
        row: conversation.
        answers: include the assistant's clips.
    """
    pairs = []
    # Each turn with the one after it, None after the last.
    for item, following in zip(row.turns, [*row.turns[1:], None]):
        if item.audio is None or (item.role is Role.ASSISTANT and not answers):
            continue
        words = clip_words(item, following)
        if words or is_silent(row, item):
            pairs.append((item.audio, words))
    return pairs


def clip_words(item: Item, following: Item | None) -> str:
    """Return the words spoken in a turn's clip, "" where they are unknown.

    Args:
        item: turn with a clip.
        following: turn after it, None after the last.
    """
    if item.role is Role.ASSISTANT:
        return item.text
    return "" if following is None else following.transcription


def is_silent(row: Row, item: Item) -> bool:
    """Return whether it is known that nobody speaks in a turn's clip."""
    return row.extra.get(NO_SPEECH, False) and item.role is Role.USER


def stated_seconds(item: Item) -> float | None:
    """Return the seconds of a turn's clip as the row states them; None where it does not."""
    # The seconds of a part are known; `duration_s` may be those of the whole recording.
    if isinstance(item.audio, AudioRef) and item.audio.end_s is not None:
        return item.audio.end_s - item.audio.start_s
    for key in STATED_SECONDS:
        value = as_number(item.extra.get(key))
        if value is not None and 0 < value <= LONGEST_S:
            return value
    return None


def as_number(value: Any) -> float | None:
    """Return a JSON value as a float; None where it is no number, or an integer beyond floats."""
    # JSON's true is an int to Python.
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:
        return None
