"""What codecs of k-means units have in common: all but the decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from echox.codecs.base import Codec
from echox.codecs.quantization.folder import CONFIG_FILE
from echox.codecs.quantization.language import UnitLanguage
from echox.codecs.quantization.quantizer import frame_units, merged_units
from echox.core.signals import Units, Waveform
from echox.encoders.base import ENCODERS, Encoder

RANDOM = "random"  # the folder of a codec that was never fitted, for tests


class QuantizedCodec(Codec):
    """Nearest centres of encoder frames, repeats merged, and a language over these units.

    A subclass reads its folder, and decodes.
    """

    centres: Tensor  # [V, D]

    def __init__(
        self, encoder: Encoder, centres: Tensor, language: bytes, fingerprint: str
    ) -> None:
        """Keep the parts of a fitted folder.

        Args:
            encoder: gives the frames.
            centres: [V, D].
            language: sentencepiece model of the unit language; empty where a token is a unit.
            fingerprint: hash of everything that decides `encode` and `unit_tokens_of`.
        """
        super().__init__()
        self.encoder = encoder
        self.register_buffer("centres", centres)
        self.rate_hz = encoder.rate_hz
        self.unit_rate_hz = encoder.frame_rate_hz
        self.vocab_size = len(centres)
        self.language = UnitLanguage(self.vocab_size, language)
        self._fingerprint = fingerprint

    @classmethod
    def is_ready(cls, config: Any) -> bool:
        """Return whether the folder holds a finished fit; the random codec needs none."""
        # config.json is written last, so it stands for a finished fit.
        return config.folder == RANDOM or (Path(config.folder) / CONFIG_FILE).is_file()

    @classmethod
    def fit_rate_hz(cls, config: Any) -> int:
        """Return the sample rate of the encoder whose features become units, in Hz."""
        encoder = config.fit.encoder
        return ENCODERS.entry_of(encoder).implementation.outline(encoder).rate_hz

    def train(self, mode: bool = True) -> QuantizedCodec:
        """Stay in evaluation mode, because the codec is frozen."""
        return super().train(False)

    def encode(self, wave: Waveform) -> Units:
        """Encode samples [B, T] to merged units [B, U]; a row shorter than a frame has none.

        Under an autocast context the encoder follows it; a percent or so of the units may then
        differ.

        Raises:
            SignalError: the sample rate is not the codec's.
        """
        return merged_units(self.encoder, self.centres, wave)

    def encode_frames(self, wave: Waveform) -> Units:
        """Encode samples [B, T] to one unit per frame [B, F].

        Raises:
            SignalError: the sample rate is not the codec's.
        """
        return frame_units(self.encoder, self.centres, wave)

    def unit_tokens_of(self, units: list[int]) -> list[int]:
        """Group merged units [U] into tokens [W] of the unit language.

        Raises:
            SignalError: a unit is not one of the codec's.
        """
        return self.language.unit_tokens_of(units)

    def units_of(self, unit_tokens: list[int]) -> list[int]:
        """Expand tokens [W] of the unit language to merged units [U].

        Raises:
            SignalError: a token is not in the unit language.
        """
        return self.language.units_of(unit_tokens)

    @property
    def unit_vocab_size(self) -> int:
        """Number of tokens in the unit language."""
        return self.language.unit_vocab_size

    def fingerprint(self) -> str:
        """Return the hash in the folder's config.json, of settings, weights and language."""
        return self._fingerprint
