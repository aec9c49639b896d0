"""A conversation as the language model reads it, of bounded size, and what of it was heard."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from torch import Tensor

from echox.backbones.base import Turn
from echox.core.errors import ConfigError
from echox.inference.answers import USER, Question

ASSISTANT, SYSTEM = "assistant", "system"
# Characters that a voice reads in a second at least, where an answer's speech is not complete.
SLOWEST_READING = 10.0


@dataclass(kw_only=True, slots=True)
class ConversationLimits:
    """What a conversation keeps; its first turns leave it first.

    Raises:
        ConfigError: a limit is below 1.
    """

    turns: int = 16
    """Turns that the next question follows at most."""
    audio_s: float = 120.0
    """Seconds of questions' audio at most, the newest one included."""

    def __post_init__(self) -> None:
        if self.turns < 1 or self.audio_s < 1:
            raise ConfigError(
                f"conversation.turns is {self.turns} and audio_s {self.audio_s}; use 1 or more"
            )


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """One turn of a conversation."""

    id: str
    role: str
    text: str = ""
    clip: Tensor | None = None  # [T] of a spoken question

    @property
    def turn(self) -> Turn:
        """The turn as chat templates take it."""
        return Turn(self.role, self.text, self.clip is not None)


@dataclass(slots=True)
class Conversation:
    """Questions and answers so far, the oldest first."""

    limits: ConversationLimits
    rate_hz: int
    """Sampling rate of the clips, in Hz."""
    instructions: str = ""
    """A system message; "" leaves the model's own."""
    items: list[Item] = field(default_factory=list)

    def add(self, item: Item, after: str | None = None) -> str | None:
        """Add an item, at the end or behind another one.

        Args:
            item: to add.
            after: id of the item before it; "root" is the beginning, None the end.

        Returns:
            id of the item before it; None at the beginning, and where the limits left it out.

        Raises:
            KeyError: there is no such item.
        """
        place = len(self.items) if after is None else 0 if after == "root" else self._at(after) + 1
        self.items.insert(place, item)
        self._forget()
        place = self.items.index(item) if item in self.items else 0
        return self.items[place - 1].id if place else None

    def find(self, item_id: str) -> Item:
        """Return an item.

        Raises:
            KeyError: there is no such item.
        """
        return self.items[self._at(item_id)]

    def replace(self, item: Item) -> None:
        """Put an item in the place of the one with its id.

        Raises:
            KeyError: there is no such item.
        """
        self.items[self._at(item.id)] = item

    def remove(self, item_id: str) -> None:
        """Remove an item.

        Raises:
            KeyError: there is no such item.
        """
        del self.items[self._at(item_id)]

    def begin_answer(self, item_id: str) -> str | None:
        """Add an answer before its text is known: what comes meanwhile stands behind it.

        `set_text` gives it its text. Until then it is no part of a question.

        Returns:
            id of the item before it; None at the beginning, and where the limits left it out.
        """
        return self.add(Item(item_id, ASSISTANT))

    def set_text(self, item_id: str, text: str) -> None:
        """Set the text of an answer, such as what was heard of it; without any it is removed.

        Raises:
            KeyError: there is no such item.
        """
        if text:
            self.replace(replace(self.find(item_id), text=text))
        else:
            self.remove(item_id)

    def question(self) -> Question:
        """Return the conversation as a question to answer."""
        system = [Turn(SYSTEM, self.instructions)] if self.instructions else []
        clips = tuple(item.clip for item in self.items if item.clip is not None)
        turns = (item.turn for item in self.items if item.text or item.clip is not None)
        return Question((*system, *turns), clips)

    @property
    def contents(self) -> tuple[str, ...]:
        """What the next question follows, to compare with it later."""
        return (self.instructions, *(part for item in self.items for part in (item.id, item.text)))

    def before_question(self) -> Question:
        """Return the conversation as the next spoken question will follow it, without its clip."""
        known = self.question()
        return Question((*known.turns, Turn(USER, "", True)), known.clips)

    def _at(self, item_id: str) -> int:
        for place, item in enumerate(self.items):
            if item.id == item_id:
                return place
        raise KeyError(item_id)

    def _forget(self) -> None:
        """Drop the first turns beyond the limits, but never the newest question."""
        while len(self.items) > 1 and self._is_too_large():
            del self.items[0]
            # An answer whose question is gone says nothing.
            while len(self.items) > 1 and self.items[0].role == ASSISTANT:
                del self.items[0]

    def _is_too_large(self) -> bool:
        samples = sum(len(clip) for clip in self._clips())
        return len(self.items) > self.limits.turns or samples > self.limits.audio_s * self.rate_hz

    def _clips(self) -> Iterator[Tensor]:
        yield from (item.clip for item in self.items if item.clip is not None)


def spoken_question(item_id: str, clip: Tensor) -> Item:
    """Return a question [T] that was asked aloud."""
    return Item(item_id, USER, "", clip)


def heard_text(text: str, played_s: float, speech_s: float, *, complete: bool) -> str:
    """Return the words of an answer that were heard.

    A word counts if its end was played, as if all characters took the same time.

    Args:
        text: of the answer so far.
        played_s: seconds of its speech that were played.
        speech_s: seconds of its speech that were generated.
        complete: whether these are the speech of the whole text.
    """
    if complete and played_s >= speech_s:
        return text
    # The speech of an unfinished answer is not known; too long an estimate keeps too few words.
    total_s = speech_s if complete else max(speech_s, len(text) / SLOWEST_READING)
    characters = int(len(text) * min(1.0, played_s / total_s)) if total_s > 0 else 0
    if characters < len(text) and not text[characters].isspace():
        # Back to the end of the word before.
        words = text[:characters].split()
        begins_word = characters == 0 or text[characters - 1].isspace()
        kept = len(words) if begins_word else len(words) - 1
        return _first_words(text, kept)
    return text[:characters].rstrip()


def _first_words(text: str, count: int) -> str:
    end, rest = 0, text
    for word in text.split()[:count]:
        end += rest.index(word) + len(word)
        rest = text[end:]
    return text[:end]
