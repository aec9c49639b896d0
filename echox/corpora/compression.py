"""Compression of a codec: frames, units and unit tokens per second and per text token."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import transformers
from omegaconf import MISSING

from echox.assets import asset_folder
from echox.assets.loading import loading
from echox.codecs.base import CODECS, Codec, CodecConfig
from echox.core.durations import duration_text
from echox.core.errors import ConfigError, ManifestError
from echox.data.audio import duration_s
from echox.data.manifest import Item, OnBroken, Row, read_manifests

# Per text token, of Llama 3's tokenizer. Source: EchoX, arXiv:2509.09174, table 5.
PAPERS_UNITS, PAPERS_WORDS = 9.31, 4.57


@dataclass(kw_only=True, slots=True)
class CompressionConfig:
    """Report units and words of the answers of manifests, per second and per text token."""

    manifests: list[str] = field(default_factory=list)
    """Manifests with units, as `echox-prepare units` writes them."""
    codec: CodecConfig = MISSING
    """The codec whose units they hold."""
    tokenizer: str = MISSING
    """Folder, catalogue name or hub id of the language model whose text tokens are counted."""
    on_broken: OnBroken = OnBroken.skip
    """What to do with broken rows: skip them, each reported with its line, or refuse the
    manifest."""
    allow_outside: bool = False
    """Allow audio outside a manifest's folder."""


@dataclass(slots=True)
class Compression:
    """Counts over answers that have audio, units and text."""

    answers: int = 0
    audio_s: float = 0.0
    frames: float = 0.0  # units before repeats are merged
    units: int = 0
    words: int = 0  # tokens of the unit language
    tokens: int = 0  # of the text

    def lines(self) -> list[str]:
        """Return the lines of the printed report: a head, a table, and the paper's numbers."""
        counts = {"frames": self.frames, "units without repeats": self.units, "words": self.words}
        rows = [
            f"{name:<22}{count / self.audio_s:>10.2f}{count / self.tokens:>14.2f}"
            for name, count in counts.items()
        ]
        return [
            f"{self.answers} answers, {duration_text(self.audio_s)}, {self.tokens} text tokens; "
            f"{self.units / max(1, self.words):.2f} units a word",
            f"{'':<22}{'a second':>10}{'a text token':>14}",
            *rows,
            f"EchoX reports {PAPERS_UNITS} units and {PAPERS_WORDS} words a text token "
            "(arXiv:2509.09174)",
        ]


def report_compression(config: CompressionConfig) -> None:
    """Measure the compression of manifests and print it.

    Raises:
        ConfigError: no manifest is named.
        ManifestError: no row has an answer with audio, units and text, or one has units of another
            codec.
        AssetError: there is no such tokenizer.
    """
    if not config.manifests:
        raise ConfigError("no manifest was named; give manifests=[FILE.units.jsonl,...]")
    # Before the manifests are read, which takes longer.
    folder = asset_folder(config.tokenizer)
    with loading("a tokenizer", folder):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows = read_manifests(
        config.manifests, on_broken=config.on_broken, allow_outside=config.allow_outside
    )
    compression = measure_compression(rows, CODECS.build(config.codec), tokenizer)
    print("\n".join(compression.lines()))


def measure_compression(
    rows: Iterable[Row], codec: Codec, tokenizer: transformers.PreTrainedTokenizerBase
) -> Compression:
    """Count frames, units, unit tokens and text tokens over answers.

    Args:
        rows: of which those whose answers have audio, units and text are counted.
        codec: whose units the rows have.
        tokenizer: of the language model.

    Raises:
        ManifestError: there is no such row, or a row has units of another codec.
    """
    compression = Compression()
    for row in rows:
        answer = row.answer
        # Seconds of an answer without units or text would distort the ratios.
        if answer is None or answer.audio is None or not answer.units or not answer.text:
            continue
        # Numbers of units mean nothing to another codec, whose unit language is used below.
        if (fingerprint := row.extra.get("codec")) != codec.fingerprint():
            raise ManifestError(
                f"row {row.id!r} has units of codec {fingerprint or 'unknown'}, but "
                f"codec={codec.fingerprint()} is in use; run 'echox-prepare units' with this codec"
            )
        _add_answer(compression, answer, codec, tokenizer)
    if not compression.tokens or not compression.audio_s:
        raise ManifestError(
            "no row has an answer with audio, units and text; "
            "run 'echox-prepare units' and name the manifests that it writes"
        )
    return compression


def _add_answer(
    compression: Compression,
    answer: Item,
    codec: Codec,
    tokenizer: transformers.PreTrainedTokenizerBase,
) -> None:
    seconds, units = duration_s(answer.require_audio()), answer.require_units()
    compression.answers += 1
    compression.audio_s += seconds
    # Computed, not counted: the units are stored without repeats where the codec merges them.
    compression.frames += seconds * codec.unit_rate_hz
    compression.units += len(units)
    compression.words += len(codec.unit_tokens_of(list(units)))
    compression.tokens += len(tokenizer(answer.text, add_special_tokens=False).input_ids)
