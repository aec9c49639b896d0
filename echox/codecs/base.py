"""The codec interface: waveform <-> discrete units."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from echox.errors import ConfigError
from echox.packages import OptionalPackage
from echox.registry import Registry
from echox.signals import Units, Waveform


@dataclass(kw_only=True, slots=True)
class CodecConfig:
    """Base of every codec's config."""


@dataclass(frozen=True, slots=True)
class DecodeState:
    """What a stream of units leaves behind between two chunks. It is a value: nothing in it is ever changed, and a codec keeps none."""


@dataclass(frozen=True, slots=True)
class WaitingUnits(DecodeState):
    """All units so far, for a codec that speaks when it has them all."""

    rows: tuple[Tensor, ...]  # each [U], or [K, U]


class Codec(nn.Module, ABC):
    """Speech as a sequence of small integers, and back. Attributes are set by the constructor."""

    rate_hz: int  # sample rate of both waveforms, Hz
    unit_rate_hz: float  # units per second before repeats are merged
    vocab_size: int  # number of units, in each codebook where there are several
    codebooks: int = 1  # K; several are written frame after frame where units are a list
    merges: bool = True  # whether adjacent repeats are merged; False gives `unit_rate_hz` units every second
    encodes: bool = True  # False where units can be turned into speech alone, and `encode` refuses
    decodes: bool = True  # False where speech can be turned into units alone, and `decode` refuses
    streams: bool = False  # True where `decode_chunk` gives sound before the last chunk

    @abstractmethod
    def encode(self, wave: Waveform) -> Units:
        """Samples [B, T] -> units [B, U], or [B, K, U]; adjacent repeats merged where the codec works on merged units.

        Raises:
            SignalError: the sample rate is not the codec's.
        """

    def encode_frames(self, wave: Waveform) -> Units:
        """Samples [B, T] -> a unit per frame [B, F], `unit_rate_hz` a second, repeats and all: what a vocoder learns durations from.

        Raises:
            SignalError: as `encode`. ConfigError: the codec merges repeats and does not say how often each was there.
        """
        units = self.encode(wave)
        if units.rate_hz is None:
            raise ConfigError(f"{type(self).__name__} merges repeated units and does not say how long each lasted; use a codec that does")
        return units

    @abstractmethod
    def decode(self, units: Units) -> Waveform:
        """Units [B, U], or [B, K, U], -> samples [B, T]; an empty row gives a waveform of length 0.

        Raises:
            ConfigError: the codec has nothing to speak with (`decodes` is False).
        """

    def decode_chunk(self, units: Units, state: DecodeState | None = None, *, last: bool) -> tuple[Waveform, DecodeState]:
        """The next units of a stream -> the samples that are settled by now; joined over all chunks they are `decode` of all units.

        Here everything is decoded with the last chunk, which is right for every codec; one that can speak earlier overrides it.

        Args:
            units: ids [B, U] or [B, K, U], the same B rows in every chunk; a row may have no units in a chunk.
            state: None for the first chunk, then what the chunk before returned. The state given is left as it is.
            last: no more units follow in any row, so all that is left is given.
        Returns:
            samples [B, T], lengths 0 where nothing is settled yet; and the state for the next chunk.
        """
        before = state.rows if state is not None else [units.ids[row, ..., :0] for row in range(len(units.ids))]
        rows = tuple(torch.cat([row, ids[..., :length]], dim=-1) for row, ids, length in zip(before, units.ids, units.lengths.tolist()))
        lengths = torch.tensor([row.shape[-1] for row in rows], device=units.ids.device)
        if last:
            padded = pad_sequence([row.movedim(-1, 0) for row in rows], batch_first=True).movedim(1, -1)
            return self.decode(Units(padded, lengths, units.rate_hz)), WaitingUnits(rows)
        nothing = torch.zeros(len(rows), 0, device=units.ids.device)
        return Waveform(nothing, torch.zeros_like(lengths), self.rate_hz), WaitingUnits(rows)

    def words(self, units: list[int]) -> list[int]:
        """Units -> unit-language words, the tokens the unit decoder predicts. [U] -> [W], W <= U; here a word is a unit, or a code of K codebooks, frame after frame [U * K]."""
        return list(units)

    def units_of(self, words: list[int]) -> list[int]:
        """Unit-language words -> units; the inverse of `words`."""
        return list(words)

    @property
    def word_count(self) -> int:
        """Size of the unit language; `vocab_size` where a word is a unit."""
        return self.vocab_size

    @classmethod
    def expected_word_count(cls, config: Any) -> int:
        """`word_count` of the codec that a config describes, also where it is not fitted yet; here it is built and asked."""
        return cls(config).word_count

    @classmethod
    def expected_codebooks(cls, config: Any) -> int:
        """`codebooks` of the codec that a config describes, without building it."""
        return cls.codebooks

    @classmethod
    def missing(cls, config: Any) -> list[str]:
        """Files it needs, to be built or to be fitted, that are not here and that echox does not make or fetch from a pinned package."""
        return []

    @classmethod
    def packages(cls, config: Any) -> Sequence[OptionalPackage]:
        """Packages that building it asks for beside echox; they are asked for before a run begins."""
        return ()

    @classmethod
    def why_mute(cls, config: Any) -> str | None:
        """Why the codec that a config describes cannot decode, and the way out; None where it can. Nothing is built."""
        return None if cls.decodes else f"{cls.__name__} turns speech into units alone; name a codec that speaks"

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
