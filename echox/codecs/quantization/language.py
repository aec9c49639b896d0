"""The unit language: runs of units grouped into words by sentencepiece, each unit one private-use character."""

from __future__ import annotations

import io
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import sentencepiece
import torch
from sentencepiece import sentencepiece_model_pb2
from torch import Tensor

from echox.errors import ConfigError, SignalError

FIRST_CHARACTER = 0xE000  # Unicode's private use area, U+E000 to U+F8FF
MOST_UNITS = 6_400  # its size
SEEDS_PER_WORD = 10  # candidates the unigram model prunes its words from


@dataclass(kw_only=True, slots=True)
class LanguageConfig:
    """How units are grouped into words."""

    words: int = 2_000
    """Words of the unit language, single units included; 0 leaves each unit a word."""
    kind: str = "unigram"
    """"unigram" finds the most probable segmentation; "bpe" merges the commonest neighbours."""
    longest: int = 8
    """Units in a word at most."""


class UnitLanguage:
    """Words over units; every single unit is a word too, so that any sequence of units can be said.

    Source: Kudo 2018, arXiv:1804.10959 (unigram); Sennrich et al. 2016, arXiv:1508.07909 (byte-pair merges).
    """

    def __init__(self, vocab_size: int, model: bytes = b"") -> None:
        """
        Args:
            vocab_size: number of units V.
            model: a trained sentencepiece model; without one a word is a unit.
        Raises:
            ConfigError: the model does not spell every unit.
        """
        self.vocab_size = vocab_size
        self.model = model
        self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model) if model else None
        self._spelling = self._spell() if self._pieces else [[unit] for unit in range(vocab_size)]
        if {word[0] for word in self._spelling if len(word) == 1} != set(range(vocab_size)):
            raise ConfigError(f"the unit language does not spell each of {vocab_size} units; fit the codec again")

    def _spell(self) -> list[list[int]]:
        """The units of each word; piece 0 is sentencepiece's unknown symbol, which no unit sequence needs."""
        pieces = (self._pieces.id_to_piece(index) for index in range(1, self._pieces.get_piece_size()))
        return [[ord(character) - FIRST_CHARACTER for character in piece] for piece in pieces]

    @property
    def word_count(self) -> int:
        """Number of words W."""
        return len(self._spelling)

    def tokens(self) -> list[str]:
        """The words as EchoX writes them in a tokenizer, in the order of their ids: `<|unit_837_81_194|>`."""
        return [f"<|unit_{'_'.join(map(str, units))}|>" for units in self._spelling]

    def words(self, units: Sequence[int]) -> list[int]:
        """Units -> words, the most probable segmentation (or the merges).

        Raises:
            SignalError: a unit is not in 0..V-1.
        """
        for unit in units:
            if not 0 <= unit < self.vocab_size:
                raise SignalError(f"unit {unit} is outside the codec's 0..{self.vocab_size - 1}")
        if self._pieces is None:
            return list(units)
        return [index - 1 for index in self._pieces.encode(_characters(units))]

    def units_of(self, words: Sequence[int]) -> list[int]:
        """Words -> units.

        Raises:
            SignalError: a word is not in 0..W-1.
        """
        for word in words:
            if not 0 <= word < self.word_count:
                raise SignalError(f"word {word} is outside the unit language's 0..{self.word_count - 1}")
        return [unit for word in words for unit in self._spelling[word]]


def train_language(sequences: Iterable[Sequence[int]], vocab_size: int, config: LanguageConfig) -> UnitLanguage:
    """Learn words from merged unit sequences; fewer than are asked for where the sequences hold fewer regular runs.

    Args:
        sequences: unit sequences [U], ids 0..V-1.
        vocab_size: number of units V.
    Raises:
        ConfigError: the kind is unknown, there are more units than private characters, or `words` leaves none for groups.
    """
    words, kind, longest = config.words, config.kind, config.longest
    if kind not in ("unigram", "bpe"):
        raise ConfigError(f"language.kind is {kind!r}; use 'unigram' or 'bpe'")
    if vocab_size > MOST_UNITS:
        raise ConfigError(f"{vocab_size} units do not fit the {MOST_UNITS} private characters of the unit language; use fewer clusters")
    if not words:
        return UnitLanguage(vocab_size)
    if words <= vocab_size:
        raise ConfigError(f"a unit language of {words} words cannot hold {vocab_size} single units and groups; use more words, or 0 for none")
    sentences = [_characters(units) for units in sequences if len(units)]
    # Only characters that occur become pieces, so each unit is said once alone.
    sentences += [_characters([unit]) for unit in range(vocab_size)]
    with tempfile.TemporaryDirectory() as folder:
        seeds = Path(folder) / "seeds.tsv"
        if kind == "unigram":
            seeds.write_text("".join(f"{piece}\t{score}\n" for piece, score in _seeds(sentences, words, longest)), "utf-8")
        return UnitLanguage(vocab_size, _train(sentences, kind, words, longest, str(seeds) if kind == "unigram" else ""))


def _seeds(sentences: list[str], words: int, longest: int) -> list[tuple[str, int]]:
    """Candidate pieces with sentencepiece's own score, count * length: all single units, then the best runs.

    sentencepiece's search for candidates finds almost none in such text (515 in five hours of 512 units, 512 of them single),
    which leaves a unigram model nothing to choose from.
    """
    runs = Counter(text[start : start + size] for text in sentences for size in range(2, longest + 1) for start in range(len(text) - size + 1))
    scored = [(run, count * len(run)) for run, count in runs.items() if count > 1]
    scored.sort(key=lambda pair: (-pair[1], pair[0]))
    return [*sorted(Counter("".join(sentences)).items()), *scored[: SEEDS_PER_WORD * words]]


def _train(sentences: list[str], kind: str, words: int, longest: int, seeds_file: str) -> bytes:
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=written,
        model_type=kind,
        vocab_size=words + 1,  # and the unknown symbol
        seed_sentencepieces_file=seeds_file,
        hard_vocab_limit=False,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        split_by_whitespace=False,
        split_by_unicode_script=False,
        split_by_number=False,
        max_sentencepiece_length=longest,
        max_sentence_length=1_000_000,
        bos_id=-1,
        eos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    model = sentencepiece_model_pb2.ModelProto.FromString(written.getvalue())
    model.trainer_spec.ClearField("seed_sentencepieces_file")  # a temporary path would change the codec's fingerprint
    return model.SerializeToString(deterministic=True)


def _characters(units: Iterable[int]) -> str:
    return "".join(chr(FIRST_CHARACTER + unit) for unit in units)


def rates(labels: Sequence[Tensor], language: UnitLanguage, audio_s: float) -> dict[str, float]:
    """How densely speech is written: units of every frame [F] of recordings, `audio_s` seconds in all -> what `metrics` records."""
    merged = [torch.unique_consecutive(row).tolist() for row in labels]
    units = sum(map(len, merged))
    words = sum(len(language.words(row)) for row in merged)
    return {
        "audio_s": round(audio_s, 1),
        "units": language.vocab_size,
        "words": language.word_count,
        "frames_per_s": round(sum(map(len, labels)) / audio_s, 2),
        "units_per_s": round(units / audio_s, 2),
        "words_per_s": round(words / audio_s, 2),
        "units_per_word": round(units / max(1, words), 3),
    }


def density(metrics: Mapping[str, float]) -> str:
    """What `rates` found, in a line for people."""
    return (
        f"{metrics['frames_per_s']} frames/s, {metrics['units_per_s']} units/s without repeats, {metrics['words_per_s']} words/s "
        f"of {metrics['words']} words; {metrics['units_per_word']} units a word"
    )
