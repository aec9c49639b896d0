"""Where an answer is cut into segments while its text comes: by hidden states, or by pauses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from echox.models.segmenting import Cutter, Segment, Segmenter

# After these a voice pauses; those of scripts without spaces pause whatever follows.
PAUSES = ".!?;:,)…—–"
WIDE_PAUSES = "。！？；：，、"
# From CJK radicals on, scripts whose characters are syllables or words.
FIRST_WIDE, WIDE_LENGTH = 0x2E80, 4


class Cutting(ABC):
    """Cuts one answer as its tokens come."""

    @abstractmethod
    def push(self, state: Tensor, text: str) -> Segment | None:
        """Add a token.

        Args:
            state: [H], which predicted it.
            text: of the answer up to and with it.

        Returns:
            the segment that is complete now, if one is.
        """

    @abstractmethod
    def flush(self) -> Segment | None:
        """Return the last segment, at the end of the answer; None if nothing is left."""


class StateCutting(Cutting):
    """Cuts by the hidden states' likeness to a trigger, as the checkpoint was trained."""

    def __init__(self, cutter: Cutter) -> None:
        self._cutter, self._segmenter = cutter, Segmenter(cutter.rule)

    def push(self, state: Tensor, text: str) -> Segment | None:
        """Add a token; see `Cutting.push`."""
        return self._segmenter.push(float(self._cutter.scores(state)))

    def flush(self) -> Segment | None:
        """Return the last segment; see `Cutting.flush`."""
        return self._segmenter.flush()


@dataclass(frozen=True, slots=True)
class PauseRule:
    """How long a segment is, for a checkpoint that was trained on whole answers.

    A cut stands where a voice pauses, before the word that follows, so that speech does not wait
    for the end of a long sentence. Lengths are in characters, since what a token is depends on the
    tokenizer; a character of a script without spaces counts as `WIDE_LENGTH`.
    """

    first: int = 20
    """Characters from which an answer's first segment ends at the next punctuation mark: few, for
    speech begins with it, and as many as fill the context of a codec that looks ahead a second."""
    least: int = 32
    """The same of later segments."""
    most: int = 100
    """Characters from which it ends at the next border of two words."""


class PauseCutting(Cutting):
    """Cuts at punctuation marks, and long stretches without one between words."""

    def __init__(self, rule: PauseRule) -> None:
        self._rule, self._text, self._count, self._start = rule, "", 0, 0
        self._spoken = 0  # characters of the text that earlier segments have

    def push(self, state: Tensor, text: str) -> Segment | None:
        """Add a token; see `Cutting.push`."""
        before, self._text = self._text, text
        self._count += 1
        # This token is the first of the next segment, if the segment before it ends here.
        if not self._is_border(before, text):
            return None
        self._spoken = len(before)
        return self._cut(self._count - 1)

    def _is_border(self, before: str, text: str) -> bool:
        length = _length(before[self._spoken :])
        # A token within a character changes what stands before it, and is no border.
        least = self._rule.least if self._spoken else min(self._rule.first, self._rule.least)
        if length < least or not text.startswith(before):
            return False
        mark, begins_word = before.rstrip()[-1:], text[len(before) :][:1].isspace()
        if mark and mark in WIDE_PAUSES:
            return True
        return begins_word and (length >= self._rule.most or (bool(mark) and mark in PAUSES))

    def flush(self) -> Segment | None:
        """Return the last segment; see `Cutting.flush`."""
        return self._cut(self._count) if self._start < self._count else None

    def _cut(self, end: int) -> Segment:
        segment = Segment(self._start, end, self._count)
        self._start = end
        return segment


def _length(text: str) -> int:
    """Return the length of a text in characters that a voice reads about equally fast."""
    wide = sum(ord(character) >= FIRST_WIDE for character in text)
    return len(text) + (WIDE_LENGTH - 1) * wide


def segments_of(
    cutting: Cutting, ids: Sequence[int], states: Tensor, text_of: Callable[[Sequence[int]], str]
) -> Iterator[Segment]:
    """Yield the segments of a complete answer.

    Args:
        cutting: of this answer, at its beginning.
        ids: the answer's tokens [S].
        states: [S, H], which predicted them.
        text_of: turns token ids into text.
    """
    for number, state in enumerate(states):
        if (segment := cutting.push(state, text_of(ids[: number + 1]))) is not None:
            yield segment
    if (segment := cutting.flush()) is not None:
        yield segment
