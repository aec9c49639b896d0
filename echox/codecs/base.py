"""The codec interface: waveform <-> discrete units."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from echox.errors import ConfigError
from echox.registry import Registry
from echox.signals import Units, Waveform


@dataclass(kw_only=True, slots=True)
class CodecConfig:
    """Base of every codec's config."""


class Codec(nn.Module, ABC):
    """Speech as a sequence of small integers, and back. Attributes are set by the constructor."""

    rate_hz: int  # sample rate of both waveforms, Hz
    unit_rate_hz: float  # units per second before repeats are merged
    vocab_size: int  # number of units
    encodes: bool = True  # False where units can be turned into speech alone, and `encode` refuses
    decodes: bool = True  # False where speech can be turned into units alone, and `decode` refuses

    @abstractmethod
    def encode(self, wave: Waveform) -> Units:
        """Samples [B, T] -> units [B, U], adjacent repeats merged where the codec works on merged units.

        Raises:
            SignalError: the sample rate is not the codec's.
        """

    @abstractmethod
    def decode(self, units: Units) -> Waveform:
        """Units [B, U] -> samples [B, T]; an empty row gives a waveform of length 0.

        Raises:
            ConfigError: the codec has nothing to speak with (`decodes` is False).
        """

    @abstractmethod
    def words(self, units: list[int]) -> list[int]:
        """Units -> unit-language words, the tokens the unit decoder predicts. [U] -> [W], W <= U."""

    @abstractmethod
    def units_of(self, words: list[int]) -> list[int]:
        """Unit-language words -> units; the inverse of `words`."""

    @property
    @abstractmethod
    def word_count(self) -> int:
        """Size of the unit language; equal to `vocab_size` where a word is a unit."""

    @classmethod
    def expected_word_count(cls, config: Any) -> int:
        """`word_count` of the codec that a config describes, also where it is not fitted yet; here it is built and asked."""
        return cls(config).word_count

    @classmethod
    def missing(cls, config: Any) -> list[str]:
        """Files it needs, to be built or to be fitted, that are not here and that echox does not make or fetch from a pinned package."""
        return []

    @classmethod
    def is_ready(cls, config: CodecConfig) -> bool:
        """Whether the codec can be built; a codec that is fitted to a voice first says here whether that is done."""
        return True

    @classmethod
    def fit(cls, config: CodecConfig, clips: Sequence[Tensor], device: torch.device) -> None:
        """Fit what must be fitted before the codec can be built; resumable.

        Args:
            clips: recordings of the voice it shall speak with, samples [T] at the codec's rate, read lazily.
        Raises:
            ConfigError: this codec needs no fitting.
        """
        raise ConfigError(f"{cls.__name__} comes ready made and cannot be fitted")

    @abstractmethod
    def fingerprint(self) -> str:
        """A short hash of everything that decides `encode` and `words`, and of how units sound where that is fitted to them; manifests and
        checkpoints record it."""


CODECS: Registry[Codec] = Registry("codec", CodecConfig)
