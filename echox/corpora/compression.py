"""How densely a codec writes speech: frames, units and words a second, and beside each token of the text that is said."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import transformers
from omegaconf import MISSING

from echox.assets import asset_folder
from echox.assets.loading import loading
from echox.codecs.base import CODECS, Codec, CodecConfig
from echox.data.audio import duration_s
from echox.data.manifest import Item, OnBroken, Row, read_manifests
from echox.errors import ConfigError, ManifestError

PAPERS_UNITS, PAPERS_WORDS = 9.31, 4.57  # a text token, with Llama 3's tokens: EchoX, arXiv:2509.09174, table 5


@dataclass(kw_only=True, slots=True)
class CompressionConfig:
    """Report how densely units and words write the answers of manifests, a second and a text token."""

    manifests: list[str] = field(default_factory=list)
    """Manifests with units, as `echox-prepare units` writes them."""
    codec: CodecConfig = MISSING
    """The codec whose units they hold."""
    tokenizer: str = MISSING
    """Folder, catalogue name or hub id of the language model whose text tokens are counted."""
    on_broken: OnBroken = OnBroken.skip
    """What to do with broken rows: skip them, each reported with its line, or refuse the manifest."""
    allow_outside: bool = False
    """Allow audio outside a manifest's folder."""


@dataclass(slots=True)
class Compression:
    """Counts over answers that have audio, units and text."""

    answers: int = 0
    audio_s: float = 0.0
    frames: float = 0.0  # units before repeats are merged
    units: int = 0
    words: int = 0
    tokens: int = 0  # of the text

    def lines(self) -> list[str]:
        """The report for people."""
        counts = {"frames": self.frames, "units without repeats": self.units, "words": self.words}
        return [
            f"{self.answers} answers, {self.audio_s / 3600:.2f} h, {self.tokens} text tokens; {self.units / max(1, self.words):.2f} units a word",
            f"{'':<22}{'a second':>10}{'a text token':>14}",
            *(f"{name:<22}{count / self.audio_s:>10.2f}{count / self.tokens:>14.2f}" for name, count in counts.items()),
            f"EchoX reports {PAPERS_UNITS} units and {PAPERS_WORDS} words a text token (arXiv:2509.09174)",
        ]


def report_compression(config: CompressionConfig) -> None:
    """Measure and print.

    Raises:
        ConfigError: no manifest is named. ManifestError: no row has an answer with audio, units and text, or one has units of another codec.
        AssetError: there is no such tokenizer.
    """
    if not config.manifests:
        raise ConfigError("no manifest was named; give manifests=[FILE.units.jsonl,...]")
    folder = asset_folder(config.tokenizer)
    with loading("a tokenizer", folder):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows = read_manifests(config.manifests, on_broken=config.on_broken, allow_outside=config.allow_outside)
    found = measure_compression(rows, CODECS.build(config.codec), tokenizer)
    print("\n".join(found.lines()))


def measure_compression(rows: Iterable[Row], codec: Codec, tokenizer: transformers.PreTrainedTokenizerBase) -> Compression:
    """Count over rows whose answers have audio, units and text.

    Raises:
        ManifestError: there are none, or a row has units of another codec.
    """
    found = Compression()
    for row in rows:
        answer = row.answer
        if answer is None or answer.audio is None or not answer.units or not answer.text:
            continue
        if (written_by := row.extra.get("codec")) != codec.fingerprint():
            raise ManifestError(
                f"row {row.id!r} has units of codec {written_by or 'unknown'}, but codec={codec.fingerprint()} is in use; run 'echox-prepare units' with this codec"
            )
        _count(found, answer, codec, tokenizer)
    if not found.tokens or not found.audio_s:
        raise ManifestError("no row has an answer with audio, units and text; run 'echox-prepare units' and name the manifests that it writes")
    return found


def _count(found: Compression, answer: Item, codec: Codec, tokenizer: transformers.PreTrainedTokenizerBase) -> None:
    seconds = duration_s(answer.audio)
    found.answers += 1
    found.audio_s += seconds
    found.frames += seconds * codec.unit_rate_hz
    found.units += len(answer.units)
    found.words += len(codec.words(list(answer.units)))
    found.tokens += len(tokenizer(answer.text, add_special_tokens=False).input_ids)
