"""Rows of a manifest: one conversation each, in turns."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from echox.data.audio_ref import Audio, AudioRef

# What an item may say of its clip, so that nobody need open it; NeMo's manifests say `duration`.
NO_SPEECH = "no_speech"  # the key of a row in which nobody speaks before the answer
UNFINISHED = "unfinished"  # the key of an answer whose text goes on, so that nobody learns to end there
STATED_SECONDS = ("duration_s", "duration")
# No recording is longer than thirty years; JSON's integers may be larger than any float.
LONGEST_S = 1e9


class Role(str, Enum):
    """Who speaks in an item, as manifests write it."""

    USER = "user"
    ASSISTANT = "assistant"


@dataclass(frozen=True, slots=True)
class Item:
    """One turn of a conversation."""

    role: Role
    text: str = ""
    audio: Audio | None = None  # the manifest's folder joined with what the row says
    transcription: str = ""
    units: tuple[int, ...] | None = None
    words: tuple[tuple[int, ...], ...] | None = None  # the same units as words of a unit language; None where they are not grouped
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Row:
    """One conversation."""

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

    def _last(self, role: Role) -> Item | None:
        return next((item for item in reversed(self.turns) if item.role is role), None)


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a row cannot be used."""

    line: int  # counted from 1; in a .json list, the number of the row
    row_id: str | None
    reason: str

    def __str__(self) -> str:
        who = "" if self.row_id is None else f" (row {self.row_id!r})"
        return f"line {self.line}{who}: {self.reason}"


def with_answer(row: Row, **changes: Any) -> Row:
    """The row with fields of the assistant's last item replaced (units, audio), everything else as it was."""
    last = max(index for index, item in enumerate(row.turns) if item.role is Role.ASSISTANT)
    turns = list(row.turns)
    # Words group the units they were read with.
    turns[last] = dataclasses.replace(turns[last], **({"words": None} if "units" in changes else {}) | changes)
    return dataclasses.replace(row, turns=tuple(turns))


def with_units(row: Row, units: Sequence[int], codebooks: int = 1) -> Row:
    """The row with a codec's units of its answer; codes of K codebooks, frame after frame, are grouped by frames."""
    return with_answer(row, units=tuple(units), words=_grouped(units, codebooks) if codebooks > 1 else None)


def spelled_units(units: Sequence[int], codebooks: int = 1) -> str:
    """Units as a manifest writes them: "12 4 5", and "12_700_31 4_9_88" for two frames of three codebooks."""
    return " ".join("_".join(map(str, frame)) for frame in _grouped(units, codebooks))


def _grouped(units: Sequence[int], codebooks: int) -> tuple[tuple[int, ...], ...]:
    """Codes frame after frame [F * K] -> frames [F][K]."""
    return tuple(tuple(units[start : start + codebooks]) for start in range(0, len(units), codebooks))


def spoken_pairs(row: Row, *, answers: bool = True) -> list[tuple[Audio, str]]:
    """Clips of a row whose words are known: user turns by the transcription that follows them, assistant turns (`answers`) by their text.

    Of a row that says `no_speech`, the user's are known to hold no words.
    """
    pairs = []
    for item, following in zip(row.turns, [*row.turns[1:], None]):
        if item.audio is None or (item.role is Role.ASSISTANT and not answers):
            continue
        said = item.text if item.role is Role.ASSISTANT else (following.transcription if following is not None else "")
        if said or is_silent(row, item):
            pairs.append((item.audio, said))
    return pairs


def is_silent(row: Row, item: Item) -> bool:
    """Whether it is known that nobody speaks in an item's clip."""
    return row.extra.get(NO_SPEECH, False) and item.role is Role.USER


def stated_seconds(item: Item) -> float | None:
    """Seconds of an item's clip as the row says them; None where it does not."""
    if isinstance(item.audio, AudioRef) and item.audio.end_s is not None:
        return item.audio.end_s - item.audio.start_s
    for key in STATED_SECONDS:
        value = item.extra.get(key)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= LONGEST_S:
            return float(value)
    return None
