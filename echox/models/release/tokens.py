"""The tokenizer of a released checkpoint: its prompt format and its unit tokens.

A unit token, `<|unit_837_81|>`, stands for one or several units of speech; the release calls
the language of these tokens unit language.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import transformers

from echox.backbones.base import Turn
from echox.core.errors import CheckpointError, SignalError
from echox.models.compatibility import Compatibility
from echox.models.speech_llm import IGNORE

SYSTEM = (
    "You are a helpful language and speech assistant. "
    "You are able to understand the speech content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
)
# Tokens of a conversation, one for each audio; the release cuts what is beyond.
PROMPT_TOKENS = 1024
UNIT_COUNT = 1000  # clusters of the release's units; larger numbers are no units
UNIT_WORD = re.compile(r"<\|unit_(\d+(?:_\d+)*)\|>")


class ReleaseTokens:
    """Token ids as the release makes them: each piece of text by itself, after begin-of-text.

    Args:
        tokenizer: of the checkpoint.
        origin: where it comes from, for error messages.

    Raises:
        CheckpointError: the tokenizer lacks a token of EchoX.
    """

    def __init__(self, tokenizer: transformers.PreTrainedTokenizerFast, origin: object) -> None:
        self.tokenizer = tokenizer
        self.origin = origin
        self.vocabulary = self.tokenizer.get_vocab()
        self.begin_id = self._id("<|begin_of_text|>")
        self.end_id = self._id("<|eot_id|>")
        self.audio_id = self._id("<audio_patch>")
        self._open, self._close = self._id("<|start_header_id|>"), self._id("<|end_header_id|>")
        # Units of a token -> its id.
        self.unit_tokens = {
            tuple(map(int, match[1].split("_"))): index
            for token, index in self.vocabulary.items()
            if (match := UNIT_WORD.fullmatch(token))
        }

    @classmethod
    def of(cls, folder: str | Path) -> ReleaseTokens:
        """Read the tokenizer of a released folder.

        Raises:
            CheckpointError: there is no tokenizer, or it lacks a token of EchoX.
        """
        if not (Path(folder) / "tokenizer.json").is_file():
            raise CheckpointError(
                f"{folder} has no tokenizer.json; copy it from the language model's folder, "
                "with the unit tokens added"
            )
        # Cleaning up would drop blanks before punctuation marks.
        tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(
            folder, clean_up_tokenization_spaces=False
        )
        return cls(tokenizer, folder)

    def _id(self, token: str) -> int:
        if token not in self.vocabulary:
            raise CheckpointError(
                f"the tokenizer in {self.origin} lacks {token}, which EchoX's prompt needs; "
                "take the tokenizer that belongs to the checkpoint"
            )
        return self.vocabulary[token]

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a piece of text, begin-of-text first, as in the release."""
        return self.tokenizer(text).input_ids

    def header(self, role: str) -> list[int]:
        """Token ids that open a turn, without the line break after them."""
        return [self._open, *self.tokenize(role), self._close]

    def prompt(self, turns: Sequence[Turn], limit: int | None = None) -> list[int]:
        """Token ids of a conversation, opened for the assistant's answer.

        A turn with audio has one placeholder. A user's turn without audio has no line break after
        its header. A first turn of role "system" replaces the default message.

        Args:
            turns: of the conversation.
            limit: tokens at most, as the release cuts at `PROMPT_TOKENS`; None cuts nothing.

        Raises:
            SignalError: a turn's role is unknown, or an audio stands in a turn that is not the
                user's.
        """
        ids = [token for piece in self._pieces(turns) for token in piece]
        return (ids + self._answer_opening())[:limit]

    def example(
        self, turns: Sequence[Turn], *, last_only: bool = False
    ) -> tuple[list[int], list[int]]:
        """Token ids of a conversation with its answers, and the labels to train on.

        Args:
            turns: of the conversation, answers included.
            last_only: the last answer alone is a target.

        Returns:
            ids [N], and labels [N]: the same ids, IGNORE where they are no target.

        Raises:
            SignalError: as `prompt`.
        """
        pieces = list(self._pieces(turns))  # one for the system message and each turn
        first = len(pieces) - len(turns)  # 1 where the default system message was put in front
        answers = [number for number, turn in enumerate(turns, first) if turn.role == "assistant"]
        targets = answers[-1:] if last_only else answers
        ids, labels = [], []
        for number, piece in enumerate(pieces):
            # An answer follows the header and a line break, and ends with its turn.
            opening = len(self._answer_opening()) if number in targets else len(piece)
            ids += piece
            labels += [IGNORE] * opening + piece[opening:]
        return ids, labels

    def _answer_opening(self) -> list[int]:
        return self.header("assistant") + self.tokenize("\n")

    def _pieces(self, turns: Sequence[Turn]) -> Iterator[list[int]]:
        """Token ids of each turn, after those of the system message."""
        rest = list(turns)
        system = rest.pop(0).text if rest and rest[0].role == "system" else SYSTEM
        opening = [self.begin_id, *self.header("system"), *self.tokenize("\n")]
        yield [*opening, *self.tokenize(system), self.end_id]
        yield from map(self._turn, rest)

    def _turn(self, turn: Turn) -> list[int]:
        if turn.role not in ("user", "assistant"):
            raise SignalError(
                f"a turn's role is {turn.role!r}; EchoX's prompt has user and assistant, "
                "and one system turn at the start"
            )
        if turn.has_audio and turn.role != "user":
            raise SignalError("an assistant's turn has audio; EchoX takes the user's alone")
        # Line breaks after headers as the release has them, which its weights have learned.
        if turn.has_audio:
            opening = [*self.tokenize("\n"), self.audio_id]
        else:
            opening = [] if turn.role == "user" else self.tokenize("\n")
        return [*self.header(turn.role), *opening, *self.tokenize(turn.text), self.end_id]

    def before_text(self, compatibility: Compatibility, *, begin: bool = True) -> list[int]:
        """Token ids that open the text of a segment in the unit translator.

        Args:
            compatibility: has the id that begins a text.
            begin: end with that id; the first chunk of a training text does not.
        """
        header = [*self.header("speaker"), *self.tokenize("\n")]
        if not begin:
            return header
        begin_id = compatibility.t2c_begin_id
        return [*header, self.begin_id if begin_id is None else begin_id]

    def after_text(self) -> list[int]:
        """Token ids that close the text of a segment and open its units."""
        return [self.end_id, *self.header("speaker"), *self.tokenize("\n")]

    def tokenize_units(self, units: Sequence[int]) -> list[int] | None:
        """Tokenize units into the fewest unit tokens.

        Of equally few, the longer token comes first. The release's own segmentation is not
        published.

        Args:
            units: of an utterance, in order.

        Returns:
            token ids, or None where no sequence of unit tokens stands for the units.
        """
        longest = max(map(len, self.unit_tokens), default=0)
        # best[i]: tokens that units i.. need, and minus the units of the first of them, so that
        # the minimum prefers fewer tokens, then a longer one.
        best: list[tuple[int, int] | None] = [None] * len(units) + [(0, 0)]
        # From the end, so that the best of each rest is known.
        for start in reversed(range(len(units))):
            sizes = [
                size
                for size in range(1, min(longest, len(units) - start) + 1)
                if tuple(units[start : start + size]) in self.unit_tokens
            ]
            rests = [(best[start + size], size) for size in sizes]
            best[start] = min(
                ((1 + rest[0], -size) for rest, size in rests if rest is not None), default=None
            )
        if best[0] is None:
            return None
        ids, start = [], 0
        # From the front, along the best first tokens.
        while start < len(units) and (first := best[start]) is not None:
            size = -first[1]
            ids.append(self.unit_tokens[tuple(units[start : start + size])])
            start += size
        return ids

    def tokenize_grouped(self, groups: Sequence[Sequence[int]]) -> list[int] | None:
        """Tokenize units that a manifest has grouped into tokens.

        Args:
            groups: units of each token; a group that the tokenizer lacks is split.

        Returns:
            token ids, or None where a group cannot be split into unit tokens.
        """
        ids = []
        for group in groups:
            token = self.unit_tokens.get(tuple(group))
            tokens = [token] if token is not None else self.tokenize_units(group)
            if tokens is None:
                return None
            ids += tokens
        return ids

    def text(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens dropped."""
        return self._decoded(ids, skip_special_tokens=True)

    def units(self, ids: Sequence[int]) -> list[int]:
        """Units of the unit translator's token ids, by the rule of `units_in`."""
        # Through text, as in the release: digits of other tokens count too.
        return units_in(self._decoded(ids))

    def _decoded(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        # A list of texts comes of a list of rows alone.
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))


def units_in(text: str) -> list[int]:
    """The units that a decoded string names, by the release's rule.

    Every run of digits is a unit, whatever token it stands in, and numbers from `UNIT_COUNT` on
    are dropped. Where SentencePiece's mark U+2581 occurs, unit tokens are pieces of words: their
    contents are joined first, so that neighbouring digits run together.

    Source: github.com/FreedomIntelligence/EchoX, state of 2025-09-19.
    """
    if "\u2581" in text:
        text = "".join(re.findall(r"<\|unit_(.*?)\|>", text))
    return [unit for unit in map(int, re.findall(r"\d+", text)) if unit < UNIT_COUNT]
