"""The unit language: runs of units grouped into words by sentencepiece.

sentencepiece works on text, so each unit is one character of Unicode's private use area.
"""

from __future__ import annotations

import io
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from sentencepiece import sentencepiece_model_pb2
from torch import Tensor

from echox.core.config import refuse_below
from echox.core.errors import ConfigError, SignalError

FIRST_CHARACTER = 0xE000  # Unicode's private use area, U+E000 to U+F8FF
MAX_UNITS = 6_400  # size of that area
SEEDS_PER_WORD = 10  # candidates that the unigram model prunes its words from


@dataclass(kw_only=True, slots=True)
class LanguageConfig:
    """How units are grouped into words.

    Raises:
        ConfigError: a number is out of range.
    """

    words: int = 2_000
    """Words of the unit language, single units included; 0 leaves each unit a word."""
    kind: str = "unigram"
    """"unigram" finds the most probable segmentation; "bpe" merges the commonest neighbours."""
    longest: int = 8
    """Units in a word at most."""

    def __post_init__(self) -> None:
        refuse_below(self, 0, "words")
        refuse_below(self, 1, "longest")


class UnitLanguage:
    """Words over units; every single unit is a word too, so that any sequence can be written.

    Source: Kudo 2018, arXiv:1804.10959 (unigram); Sennrich et al. 2016, arXiv:1508.07909
    (byte-pair merges).
    """

    def __init__(self, vocab_size: int, model: bytes = b"") -> None:
        """Load a sentencepiece model.

        Args:
            vocab_size: number of units V.
            model: a trained sentencepiece model; without one a word is a unit.

        Raises:
            ConfigError: the model has no word for some single unit.
        """
        self.vocab_size = vocab_size
        self.model = model
        self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model) if model else None
        self._spellings = self._word_units()
        if {word[0] for word in self._spellings if len(word) == 1} != set(range(vocab_size)):
            raise ConfigError(
                f"the unit language does not spell each of {vocab_size} units; fit the codec again"
            )

    def _word_units(self) -> list[list[int]]:
        """Units of each word, in the order of the words' ids."""
        if self._pieces is None:
            return [[unit] for unit in range(self.vocab_size)]
        # From 1 on: piece 0 is sentencepiece's unknown symbol, which no unit sequence needs.
        pieces = (
            self._pieces.id_to_piece(index) for index in range(1, self._pieces.get_piece_size())
        )
        return [[ord(character) - FIRST_CHARACTER for character in piece] for piece in pieces]

    @property
    def unit_vocab_size(self) -> int:
        """Number of words W."""
        return len(self._spellings)

    def tokens(self) -> list[str]:
        """Return the words in EchoX's tokenizer format, such as `<|unit_837_81_194|>`, by id."""
        return [f"<|unit_{'_'.join(map(str, units))}|>" for units in self._spellings]

    def unit_tokens_of(self, units: Sequence[int]) -> list[int]:
        """Segment units [U] into tokens [W]: the most probable segmentation, or the merges.

        Raises:
            SignalError: a unit is not in 0..V-1.
        """
        # Here, because sentencepiece would turn an unknown unit into the unknown symbol.
        for unit in units:
            if not 0 <= unit < self.vocab_size:
                raise SignalError(f"unit {unit} is outside the codec's 0..{self.vocab_size - 1}")
        if self._pieces is None:
            return list(units)
        return [index - 1 for index in self._pieces.encode(_to_text(units))]

    def units_of(self, unit_tokens: Sequence[int]) -> list[int]:
        """Expand tokens [W] to units [U].

        Raises:
            SignalError: a token is not in 0..W-1.
        """
        for token in unit_tokens:
            if not 0 <= token < self.unit_vocab_size:
                raise SignalError(
                    f"unit token {token} is outside the unit language's "
                    f"0..{self.unit_vocab_size - 1}"
                )
        return [unit for token in unit_tokens for unit in self._spellings[token]]


def train_language(
    sequences: Iterable[Sequence[int]], vocab_size: int, config: LanguageConfig
) -> UnitLanguage:
    """Learn words from merged unit sequences.

    There are fewer words than asked for where the sequences hold fewer repeated runs.

    Args:
        sequences: unit sequences [U], ids 0..V-1.
        vocab_size: number of units V.
        config: number, kind and length of the words.

    Raises:
        ConfigError: the kind is unknown, there are more units than private characters, or `words`
            leaves none for groups.
    """
    _check(config, vocab_size)
    if not config.words:
        return UnitLanguage(vocab_size)
    sentences = [_to_text(units) for units in sequences if len(units)]
    # Only characters that occur become pieces, so each unit is one sentence more.
    sentences += [_to_text([unit]) for unit in range(vocab_size)]
    if config.kind == "bpe":
        return UnitLanguage(vocab_size, _train(sentences, config, seeds_file=""))
    with tempfile.TemporaryDirectory() as folder:
        # sentencepiece reads candidates from a file only.
        path = Path(folder) / "seeds.tsv"
        seeds = _seeds(sentences, config.words, config.longest)
        path.write_text("".join(f"{piece}\t{score}\n" for piece, score in seeds), "utf-8")
        return UnitLanguage(vocab_size, _train(sentences, config, seeds_file=str(path)))


def _check(config: LanguageConfig, vocab_size: int) -> None:
    if config.kind not in ("unigram", "bpe"):
        raise ConfigError(f"language.kind is {config.kind!r}; use 'unigram' or 'bpe'")
    if vocab_size > MAX_UNITS:
        raise ConfigError(
            f"{vocab_size} units do not fit the {MAX_UNITS} private characters of the unit "
            "language; use fewer clusters"
        )
    if config.words and config.words <= vocab_size:
        raise ConfigError(
            f"a unit language of {config.words} words cannot hold {vocab_size} single units and "
            "groups; use more words, or 0 for none"
        )


def _seeds(sentences: list[str], words: int, longest: int) -> list[tuple[str, int]]:
    """Candidate pieces with sentencepiece's own score, count * length.

    All single units come first, then the best runs. sentencepiece's search for candidates finds
    almost none in such text (515 in five hours of 512 units, 512 of them single), which leaves a
    unigram model nothing to choose from.
    """
    runs = Counter(
        text[start : start + size]
        for text in sentences
        for size in range(2, longest + 1)
        for start in range(len(text) - size + 1)
    )
    scored = [(run, count * len(run)) for run, count in runs.items() if count > 1]
    # The text breaks ties, so that the words do not depend on the order of the recordings.
    scored.sort(key=lambda pair: (-pair[1], pair[0]))
    return [*sorted(Counter("".join(sentences)).items()), *scored[: SEEDS_PER_WORD * words]]


def _train(sentences: list[str], config: LanguageConfig, seeds_file: str) -> bytes:
    """A serialised sentencepiece model, the same bytes for the same sentences."""
    content = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=content,
        model_type=config.kind,
        vocab_size=config.words + 1,  # and the unknown symbol
        seed_sentencepieces_file=seeds_file,
        hard_vocab_limit=False,  # fewer words rather than an error
        character_coverage=1.0,  # every unit, however rare
        # Units are no text: nothing may be normalised, added, or split at "spaces" and scripts.
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        split_by_whitespace=False,
        split_by_unicode_script=False,
        split_by_number=False,
        max_sentencepiece_length=config.longest,
        max_sentence_length=1_000_000,  # bytes; longer sentences would be dropped
        bos_id=-1,
        eos_id=-1,
        num_threads=1,  # repeatable
        minloglevel=2,
    )
    return _without_seeds_path(content.getvalue())


def _without_seeds_path(serialised: bytes) -> bytes:
    """A serialised model without the path of its seeds, which is that of a temporary file."""
    # Protobuf makes the class when the module is imported.
    prototype = sentencepiece_model_pb2.ModelProto  # type: ignore[attr-defined]  # made at import
    model = prototype.FromString(serialised)
    # The path would change the codec's fingerprint.
    model.trainer_spec.ClearField("seed_sentencepieces_file")
    return model.SerializeToString(deterministic=True)


def _to_text(units: Iterable[int]) -> str:
    return "".join(chr(FIRST_CHARACTER + unit) for unit in units)


def rates(labels: Sequence[Tensor], language: UnitLanguage, audio_s: float) -> dict[str, float]:
    """Measure how densely recordings are written in units and words.

    Args:
        labels: units of every frame [F] of each recording.
        language: groups merged units into words.
        audio_s: seconds of all recordings.

    Returns:
        name -> number, as `metrics` of a fitted codec records them; rates are per second.
    """
    merged = [torch.unique_consecutive(units).tolist() for units in labels]
    units = sum(map(len, merged))
    words = sum(len(language.unit_tokens_of(sequence)) for sequence in merged)
    return {
        "audio_s": round(audio_s, 1),
        "units": language.vocab_size,
        "words": language.unit_vocab_size,
        "frames_per_s": round(sum(map(len, labels)) / audio_s, 2),
        "units_per_s": round(units / audio_s, 2),
        "words_per_s": round(words / audio_s, 2),
        "units_per_word": round(units / max(1, words), 3),
    }


def density(metrics: Mapping[str, Any]) -> str:
    """Format the result of `rates` as one line."""
    return (
        f"{metrics['frames_per_s']} frames/s, {metrics['units_per_s']} units/s without repeats, "
        f"{metrics['words_per_s']} words/s of {metrics['words']} words; "
        f"{metrics['units_per_word']} units a word"
    )
