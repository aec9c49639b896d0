"""The tokenizer of a published checkpoint: its prompt, its unit words, and the ids that frame them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import transformers

from echox.backbones.base import Turn
from echox.errors import CheckpointError, SignalError
from echox.models.published.compatibility import Compatibility
from echox.models.speech_llm import IGNORE

SYSTEM = (
    "You are a helpful language and speech assistant. You are able to understand the speech content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
)
PROMPT_TOKENS = 1024  # of a conversation, one for each audio; the release cuts what is beyond
UNIT_COUNT = 1000  # clusters of the release's units; larger numbers are no units
UNIT_WORD = re.compile(r"<\|unit_(\d+(?:_\d+)*)\|>")
TRIGGER = "."  # the token whose row in the head says where speech may be cut


class ReleaseTokens:
    """Ids of the release. Every piece of text is tokenized by itself, and begin-of-text stands before each of them."""

    def __init__(self, tokenizer: transformers.PreTrainedTokenizerFast, origin: object) -> None:
        """
        Args:
            origin: where the tokenizer comes from, for people.
        Raises:
            CheckpointError: it lacks a token of EchoX.
        """
        self.tokenizer = tokenizer
        self.origin = origin
        self.vocabulary = self.tokenizer.get_vocab()
        self.begin_id = self._id("<|begin_of_text|>")
        self.end_id = self._id("<|eot_id|>")
        self.audio_id = self._id("<audio_patch>")
        self._open, self._close = self._id("<|start_header_id|>"), self._id("<|end_header_id|>")
        self.trigger_id = self.piece(TRIGGER)[-1]
        self.unit_words = {
            tuple(map(int, match[1].split("_"))): index for token, index in self.vocabulary.items() if (match := UNIT_WORD.fullmatch(token))
        }

    @classmethod
    def of(cls, folder: str | Path) -> ReleaseTokens:
        """Those of a published folder.

        Raises:
            CheckpointError: there is no tokenizer, or it lacks a token of EchoX.
        """
        if not (Path(folder) / "tokenizer.json").is_file():
            raise CheckpointError(f"{folder} has no tokenizer.json; copy it from the language model's folder, with the unit tokens added")
        return cls(transformers.PreTrainedTokenizerFast.from_pretrained(folder, clean_up_tokenization_spaces=False), folder)

    def _id(self, token: str) -> int:
        if token not in self.vocabulary:
            raise CheckpointError(
                f"the tokenizer in {self.origin} lacks {token}, which EchoX's prompt needs; take the tokenizer that belongs to the checkpoint"
            )
        return self.vocabulary[token]

    def piece(self, text: str) -> list[int]:
        """A piece of text as the release tokenizes it."""
        return self.tokenizer(text).input_ids

    def header(self, role: str) -> list[int]:
        """What opens a turn, without the line break after it."""
        return [self._open, *self.piece(role), self._close]

    def prompt(self, turns: Sequence[Turn], limit: int | None = None) -> list[int]:
        """A conversation, opened for the assistant's answer, one audio placeholder for each turn with audio.

        A user's turn without audio has no line break after its header. A first turn of role "system" replaces the default message.

        Args:
            limit: cut after so many ids, as the release does at `PROMPT_TOKENS`; None cuts nothing.
        Raises:
            SignalError: a turn's role is unknown, or an audio stands in a turn that is not the user's.
        """
        ids = [token for piece in self._pieces(turns) for token in piece]
        return (ids + self.header("assistant") + self.piece("\n"))[:limit]

    def lesson(self, turns: Sequence[Turn], *, last_only: bool = False) -> tuple[list[int], list[int]]:
        """A conversation with its answers -> its ids, and the same ids as labels, IGNORE where they are no answer's.

        Args:
            last_only: the last answer alone is one to learn.
        Raises:
            SignalError: as `prompt`.
        """
        pieces = list(self._pieces(turns))
        answers = [number for number, turn in enumerate(turns, len(pieces) - len(turns)) if turn.role == "assistant"]
        ids, labels = [], []
        for number, piece in enumerate(pieces):
            # An answer follows the header and a line break, and ends with its turn.
            opening = len(self.header("assistant") + self.piece("\n")) if number in answers[-1 if last_only else 0 :] else len(piece)
            ids += piece
            labels += [IGNORE] * opening + piece[opening:]
        return ids, labels

    def _pieces(self, turns: Sequence[Turn]) -> Iterator[list[int]]:
        """The ids of each turn; the default system message first where none is given."""
        rest = list(turns)
        system = rest.pop(0).text if rest and rest[0].role == "system" else SYSTEM
        yield [self.begin_id, *self.header("system"), *self.piece("\n"), *self.piece(system), self.end_id]
        yield from map(self._turn, rest)

    def _turn(self, turn: Turn) -> list[int]:
        if turn.role not in ("user", "assistant"):
            raise SignalError(f"a turn's role is {turn.role!r}; EchoX's prompt has user and assistant, and one system turn at the start")
        if turn.has_audio and turn.role != "user":
            raise SignalError("an assistant's turn has audio; EchoX hears the user's alone")
        if turn.has_audio:
            opening = [*self.piece("\n"), self.audio_id]
        else:
            opening = [] if turn.role == "user" else self.piece("\n")
        return [*self.header(turn.role), *opening, *self.piece(turn.text), self.end_id]

    def before_text(self, compatibility: Compatibility, *, begin: bool = True) -> list[int]:
        """What opens the text of a segment in the unit translator; the first chunk of a training text has no begin."""
        header = [*self.header("speaker"), *self.piece("\n")]
        if not begin:
            return header
        return [*header, self.begin_id if compatibility.t2c_begin_id is None else compatibility.t2c_begin_id]

    def after_text(self) -> list[int]:
        """What closes the text of a segment and opens its units."""
        return [self.end_id, *self.header("speaker"), *self.piece("\n")]

    def spoken(self, units: Sequence[int]) -> list[int] | None:
        """Units -> ids of the fewest unit words that say them, the longer word first; None where no words do.

        The release's own segmentation is not published.
        """
        longest = max(map(len, self.unit_words), default=0)
        # best[i]: words that units i.. need, and how many units the first of them holds.
        best: list[tuple[int, int] | None] = [None] * len(units) + [(0, 0)]
        for start in reversed(range(len(units))):
            sizes = [size for size in range(1, min(longest, len(units) - start) + 1) if tuple(units[start : start + size]) in self.unit_words]
            best[start] = min(((1 + rest[0], -size) for size in sizes if (rest := best[start + size]) is not None), default=None)
        if best[0] is None:
            return None
        ids, start = [], 0
        while start < len(units):
            size = -best[start][1]
            ids.append(self.unit_words[tuple(units[start : start + size])])
            start += size
        return ids

    def words(self, words: Sequence[Sequence[int]]) -> list[int] | None:
        """Words of the unit language, as a manifest groups them -> ids; a word that the tokenizer lacks is said in others, None where none do."""
        ids = []
        for word in words:
            known = self.unit_words.get(tuple(word))
            said = [known] if known is not None else self.spoken(word)
            if said is None:
                return None
            ids += said
        return ids

    def text(self, ids: Sequence[int]) -> str:
        """Ids -> text, special tokens dropped."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def units(self, ids: Sequence[int]) -> list[int]:
        """Ids of the unit translator -> units."""
        return units_in(self.tokenizer.decode(list(ids)))


def units_in(text: str) -> list[int]:
    """The units that a decoded string names, by the release's rule.

    Every run of digits is a unit, whatever token it stands in, and numbers from `UNIT_COUNT` on are dropped. Where SentencePiece's
    mark U+2581 occurs, unit tokens are pieces of words: their contents are joined first, so that neighbouring digits run together.
    """
    if "\u2581" in text:
        text = "".join(re.findall(r"<\|unit_(.*?)\|>", text))
    return [unit for unit in map(int, re.findall(r"\d+", text)) if unit < UNIT_COUNT]
