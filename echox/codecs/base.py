"""The codec interface: waveform <-> discrete units."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from echox.codecs.quantization.folder import codec_name_in
from echox.core.errors import ConfigError, SignalError
from echox.core.indexable import Indexable
from echox.core.packages import OptionalPackage
from echox.core.registry import Registry
from echox.core.signals import Units, Waveform, valid_mask


@dataclass(kw_only=True, slots=True)
class CodecConfig:
    """Base of every codec's config."""


@dataclass(frozen=True, slots=True)
class DecodeState:
    """State of a stream of units between two chunks.

    It is an immutable value and the codec keeps no copy, so one codec serves many streams, and a
    chunk can be decoded again from the same state.
    """


@dataclass(frozen=True, slots=True)
class PendingUnits(DecodeState):
    """All units of a stream so far, for a codec that decodes only with the last chunk."""

    rows: tuple[Tensor, ...]  # each [U], or [K, U]


State = TypeVar("State", bound=DecodeState)


def state_of(state: DecodeState | None, kind: type[State]) -> State | None:
    """Return a stream's state as the kind that a codec makes.

    Raises:
        SignalError: the state is that of another codec.
    """
    if state is not None and not isinstance(state, kind):
        raise SignalError(
            f"a stream goes on from a {kind.__name__}, and not from a {type(state).__name__} of "
            "another codec; begin the stream anew, without a state"
        )
    return state


class Codec(nn.Module, ABC):
    """Encoder of speech to small integers and decoder back to speech.

    The constructor sets the attributes that have no default here.

    Needed: `rate_hz`, `unit_rate_hz`, `vocab_size`, `encode`, `decode`, `fingerprint`.

    Optional: `codebooks`, `merges`, `encodes`, `decodes`, `streams`, `encode_frames`,
    `decode_chunk`, `unit_tokens_of`, `units_of`, `unit_vocab_size`, `expected_unit_vocab_size`,
    `expected_codebooks`, `missing`, `packages`, `cannot_decode_reason`, `is_ready`,
    `check_folder`, `fit`, `fit_rate_hz`, `files`.
    """

    rate_hz: int  # sample rate of both waveforms, Hz
    unit_rate_hz: float  # units per second before repeats are merged
    vocab_size: int  # number of units, in each codebook where there are several
    codebooks: int = 1  # K; several are flattened frame after frame where units are a list
    merges: bool = True  # adjacent repeats are merged; False: `unit_rate_hz` units every second
    encodes: bool = True  # False: units can only be decoded, and `encode` raises
    decodes: bool = True  # False: speech can only be encoded, and `decode` raises
    streams: bool = False  # `decode_chunk` returns samples before the last chunk

    @abstractmethod
    def encode(self, wave: Waveform) -> Units:
        """Encode samples [B, T] to units [B, U], or [B, K, U] for K codebooks.

        Adjacent repeats are merged where the codec works on merged units.

        Raises:
            SignalError: the sample rate is not the codec's.
        """

    def encode_frames(self, wave: Waveform) -> Units:
        """Encode samples [B, T] to one unit per frame [B, F], repeats included.

        A vocoder learns durations from these units; there are `unit_rate_hz` of them per second.

        Raises:
            SignalError: the sample rate is not the codec's.
            ConfigError: the codec merges repeats and does not keep their counts.
        """
        units = self.encode(wave)
        if units.rate_hz is None:
            raise ConfigError(
                f"{type(self).__name__} merges repeated units and does not say how long each "
                "lasted; use a codec that does"
            )
        return units

    @abstractmethod
    def decode(self, units: Units) -> Waveform:
        """Decode units [B, U], or [B, K, U], to samples [B, T]; an empty row has length 0.

        Raises:
            ConfigError: the codec has no decoder (`decodes` is False).
        """

    def decode_chunk(
        self, units: Units, state: DecodeState | None = None, *, last: bool
    ) -> tuple[Waveform, DecodeState]:
        """Decode the next units of a stream to the samples that no later unit changes.

        The samples of all chunks joined equal `decode` of all units. This default decodes
        everything with the last chunk, which is correct for every codec; override it to stream.

        Args:
            units: ids [B, U] or [B, K, U], the same B rows in every chunk; a row may be empty.
            state: None for the first chunk, then the state that the last call returned.
            last: no more units follow in any row, so all remaining samples are returned.

        Returns:
            samples [B, T], length 0 where no sample is final yet; the state for the next chunk.
        """
        B = len(units.ids)
        past = state_of(state, PendingUnits)
        nothing = [units.ids[b, ..., :0] for b in range(B)]
        pending = past.rows if past is not None else nothing
        rows = tuple(
            torch.cat([seen, ids[..., :length]], dim=-1)
            for seen, ids, length in zip(pending, units.ids, units.lengths.tolist())
        )
        lengths = torch.tensor([ids.shape[-1] for ids in rows], device=units.ids.device)
        if not last:
            silence = torch.zeros(B, 0, device=units.ids.device)
            return Waveform(silence, torch.zeros_like(lengths), self.rate_hz), PendingUnits(rows)
        # `pad_sequence` pads the first axis, so [K, U] goes through it as [U, K].
        padded = pad_sequence([ids.movedim(-1, 0) for ids in rows], batch_first=True)
        ids = padded.movedim(1, -1)  # [B, U] or [B, K, U]
        return self.decode(Units(ids, lengths, units.rate_hz)), PendingUnits(rows)

    def unit_tokens_of(self, units: list[int]) -> list[int]:
        """Group units [U] into tokens [W] of the unit language, which the unit decoder generates.

        In this default a token is a unit, or for K codebooks a code, frame after frame [U * K].
        """
        return list(units)

    def units_of(self, unit_tokens: list[int]) -> list[int]:
        """Expand tokens [W] of the unit language to units [U]; undoes `unit_tokens_of`."""
        return list(unit_tokens)

    @property
    def unit_vocab_size(self) -> int:
        """Size of the unit language; `vocab_size` where a word is a unit."""
        return self.vocab_size

    @classmethod
    def expected_unit_vocab_size(cls, config: Any) -> int:
        """Return the `unit_vocab_size` of a config's codec, also before it is fitted.

        This default builds the codec; override it where the size is known without the weights.
        """
        return cls(config).unit_vocab_size

    @classmethod
    def expected_codebooks(cls, config: Any) -> int:
        """Return the `codebooks` of a config's codec without building it."""
        return cls.codebooks

    @classmethod
    def missing(cls, config: Any) -> list[str]:
        """List the absent files that the codec needs to be built or fitted.

        Files that echox makes or fetches from a pinned package are left out.
        """
        return []

    @classmethod
    def packages(cls, config: Any) -> Sequence[OptionalPackage]:
        """List the optional packages the codec needs; they are checked before a run begins."""
        return ()

    @classmethod
    def cannot_decode_reason(cls, config: Any) -> str | None:
        """Return why a config's codec cannot decode, and the way out; None where it can.

        Nothing is built, so that a run can be refused before weights are loaded.
        """
        if cls.decodes:
            return None
        return f"{cls.__name__} only turns speech into units; name a codec that decodes them"

    @classmethod
    def is_ready(cls, config: Any) -> bool:
        """Return whether the codec can be built; False while it has not been fitted."""
        return True

    @classmethod
    def check_folder(cls, config: Any) -> None:
        """Check that the folder a ready codec was fitted to agrees with the config.

        A codec whose config says sizes that its folder says too overrides this.

        Raises:
            ConfigError: they differ.
        """

    @classmethod
    def fit(cls, config: Any, clips: Indexable[Tensor], device: torch.device) -> None:
        """Fit the codec to recordings; an interrupted fit resumes.

        Args:
            config: names the folder to write, in its field `folder`, and the settings of the fit.
            clips: recordings, samples [T] each at `fit_rate_hz`, read lazily.
            device: where the models run.

        Raises:
            ConfigError: this codec needs no fitting.
        """
        raise ConfigError(f"{cls.__name__} is ready to use and cannot be fitted")

    @classmethod
    def fit_rate_hz(cls, config: Any) -> int:
        """Return the sample rate of the recordings that `fit` takes, in Hz.

        A codec that is fitted to audio of another rate overrides this.
        """
        return 16_000

    def files(self) -> list[Path]:
        """List the files that the codec was read from, to be copied beside a model.

        Raises:
            ConfigError: this codec has none that can stand alone.
        """
        raise ConfigError(f"{type(self).__name__} is not copied beside a model; name unit_hifigan")

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a short hash of everything that decides `encode` and `unit_tokens_of`.

        Where the decoder is fitted to the units, the hash covers it too. Manifests and checkpoints
        record the hash.
        """


def encode_checked(codec: Codec, wave: Waveform) -> Units:
    """Encode samples [B, T] to units, as `Codec.encode`, and check them.

    Raises:
        SignalError: the sample rate is not the codec's.
        ConfigError: a unit is beyond the vocabulary that the codec states, as where a fitted folder
            is of another size than the config says.
    """
    units = codec.encode(wave)
    check_units(type(codec).__name__, units, codec.vocab_size)
    return units


def check_units(codec: str, units: Units, vocab_size: int) -> None:
    """Check that encoded units [B, U] or [B, K, U] are of a codec's vocabulary.

    Args:
        codec: name of its class.
        units: as it encoded them.
        vocab_size: number of units that it states.

    Raises:
        ConfigError: one is not.
    """
    # What lies past a length is unspecified, so it is not checked.
    mask = valid_mask(units.lengths, units.ids.shape[-1])  # [B, U]
    real = units.ids.movedim(-1, 1)[mask]  # [N] or [N, K]
    if real.numel() and not 0 <= int(real.min()) <= int(real.max()) < vocab_size:
        raise ConfigError(
            f"{codec} gave units from {int(real.min())} to {int(real.max())}, but states "
            f"0..{vocab_size - 1}; its config and the folder it was fitted to differ, so set the "
            "config to the folder's sizes, or fit it again"
        )


def check_unit_count(folder: str, asked: int, default: int, fitted: int) -> None:
    """Check that `fit.units` of a codec's config agrees with the folder that it was fitted to.

    Args:
        folder: of the codec.
        asked: what the config says.
        default: its default, which asks for nothing.
        fitted: units of the folder.

    Raises:
        ConfigError: another number is asked for.
    """
    if asked not in (default, fitted):
        raise ConfigError(
            f"the codec in {folder} was fitted with {fitted} units, and codec.fit.units is "
            f"{asked}; set codec.fit.units={fitted}, or codec.folder to another folder"
        )


CODECS: Registry[Codec] = Registry("codec", CodecConfig)


def config_of_folder(folder: Path, **settings: Any) -> CodecConfig:
    """Return the config of the codec that was fitted to a folder.

    Args:
        folder: as `echox-prepare codec` or a run wrote it.
        settings: fields of the codec's config.

    Raises:
        CheckpointError: the folder holds no fitted codec.
        ConfigError, PluginError: a setting is no field of it, or its plugin is not there.
    """
    return CODECS.parse({"name": codec_name_in(folder), "folder": str(folder), **settings})
