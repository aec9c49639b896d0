"""HuBERT units: an encoder's frames to the nearest centre, repeats merged, words over units; heard through a unit vocoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from echox.codecs.base import CODECS, Codec, CodecConfig, DecodeState
from echox.codecs.hubert_units.fit_config import UnitFitConfig
from echox.codecs.quantization.folder import CONFIG_FILE, FORMAT, LANGUAGE_FILE, FittedFolder, hash_of, read_fitted
from echox.codecs.quantization.language import UnitLanguage
from echox.codecs.quantization.quantizer import frame_units, merged_units
from echox.codecs.unit_hifigan import UnitHifiGan, UnitHifiGanConfig
from echox.encoders.base import ENCODERS, Encoder
from echox.errors import CheckpointError, ConfigError
from echox.signals import Units, Waveform
from echox.vocoders.layout import CONFIG as VOCODER_CONFIG
from echox.vocoders.layout import TINY, WEIGHTS, weights_path

NAME = "hubert_units"
RANDOM = "random"
SETTINGS = ("codec", "encoder", "encoder_fingerprint")


@dataclass(kw_only=True, slots=True)
class HubertUnitsConfig(CodecConfig):
    """Units of a self-supervised encoder, as EchoX speaks in; to be heard they need a unit vocoder."""

    folder: str = "codec"
    """Folder that `echox-prepare codec` wrote; "random" builds a small codec that was never fitted, for tests."""
    vocoder: UnitHifiGanConfig = field(default_factory=UnitHifiGanConfig)
    """The vocoder of these very units, a folder with g_00500000 and vocoder_config.json; empty takes those two where they lie in the codec's
    own folder, and without any, speech becomes units alone."""
    fit: UnitFitConfig = field(default_factory=UnitFitConfig)
    """How it is fitted where the folder is not there yet."""


@CODECS.register(NAME, HubertUnitsConfig)
class HubertUnits(Codec):
    """The vocoder is no part of the fingerprint: it may be trained on the units later, and be changed for another voice.

    Source: Lakhotia et al. 2021, arXiv:2102.01192 (units by k-means); Zhang et al. 2025, arXiv:2505.15333 (words over units).
    """

    def __init__(self, config: HubertUnitsConfig) -> None:
        """
        Raises:
            CheckpointError: the folder is missing, incomplete or changed, or the encoder has other weights than it was fitted with.
            ConfigError: the vocoder is one of other units.
        """
        super().__init__()
        self.config = config
        found, language = (_random_folder(), b"") if config.folder == RANDOM else _read(Path(config.folder))
        self.encoder: Encoder = ENCODERS.build(ENCODERS.parse(found.settings["encoder"]))
        if self.encoder.fingerprint() != found.settings["encoder_fingerprint"]:
            raise CheckpointError(f"the codec in {config.folder} was fitted with other weights of its encoder than are there now; put those back, or fit it again")
        self.register_buffer("centres", found.tensors["centres"])
        self.rate_hz = self.encoder.rate_hz
        self.unit_rate_hz = self.encoder.frame_rate_hz
        self.vocab_size = len(self.centres)
        self.language = UnitLanguage(self.vocab_size, language)
        self.metrics = found.metrics  # what fitting measured
        self.vocoder = self._vocoder()
        self.decodes = self.streams = self.vocoder is not None
        self._fingerprint = found.fingerprint
        self.requires_grad_(False).eval()

    def _vocoder(self) -> UnitHifiGan | None:
        config = _vocoder_config(self.config)
        if config is None:
            return None
        vocoder = UnitHifiGan(config)
        ours, theirs = (self.vocab_size, self.rate_hz), (vocoder.vocab_size, vocoder.rate_hz)
        if ours != theirs:
            raise ConfigError(
                f"the vocoder in {config.folder} speaks {theirs[0]} units at {theirs[1]} Hz, but the codec in {self.config.folder} has "
                f"{ours[0]} at {ours[1]} Hz; set codec.vocoder.folder to the vocoder of these units"
            )
        return vocoder

    @classmethod
    def is_ready(cls, config: HubertUnitsConfig) -> bool:
        return config.folder == RANDOM or (Path(config.folder) / CONFIG_FILE).is_file()

    @classmethod
    def expected_word_count(cls, config: HubertUnitsConfig) -> int:
        if config.folder == RANDOM:
            return TINY["num_embeddings"]
        if not cls.is_ready(config):
            return config.fit.language.words or config.fit.units
        found, language = _read(Path(config.folder))
        return UnitLanguage(len(found.tensors["centres"]), language).word_count

    @classmethod
    def why_mute(cls, config: HubertUnitsConfig) -> str | None:
        if _vocoder_config(config) is not None:
            return None
        return (
            f"the codec in {config.folder} has no vocoder, so its units cannot be heard; put a unit vocoder of these very units "
            f"there ({WEIGHTS} and {VOCODER_CONFIG}), or set codec.vocoder.folder to its folder"
        )

    @classmethod
    def missing(cls, config: HubertUnitsConfig) -> list[str]:
        if config.folder == RANDOM:
            return []
        is_fitted = cls.is_ready(config)
        encoder = ENCODERS.parse(_read(Path(config.folder))[0].settings["encoder"]) if is_fitted else config.fit.encoder
        centres = [config.fit.centres] if not is_fitted and config.fit.centres and not Path(config.fit.centres).is_file() else []
        vocoder = _vocoder_config(config)
        return ENCODERS.entry_of(encoder).implementation.missing(encoder) + centres + (UnitHifiGan.missing(vocoder) if vocoder else [])

    @classmethod
    def fit(cls, config: HubertUnitsConfig, clips: Sequence[Tensor], device: torch.device) -> None:
        # Imported here because building a codec needs nothing of it.
        from echox.codecs.hubert_units.fit import fit_units

        fit_units(config.folder, config.fit, clips, device)

    def train(self, mode: bool = True) -> HubertUnits:
        return super().train(False)  # frozen

    def encode(self, wave: Waveform) -> Units:
        """Samples [B, T] -> merged units [B, U]; an empty row gives no unit, nor does one shorter than a frame."""
        return merged_units(self.encoder, self.centres, wave)

    def encode_frames(self, wave: Waveform) -> Units:
        return frame_units(self.encoder, self.centres, wave)

    def decode(self, units: Units) -> Waveform:
        return self._speaking().decode(units)

    def decode_chunk(self, units: Units, state: DecodeState | None = None, *, last: bool) -> tuple[Waveform, DecodeState]:
        return self._speaking().decode_chunk(units, state, last=last)

    def _speaking(self) -> UnitHifiGan:
        if self.vocoder is None:
            raise ConfigError(self.why_mute(self.config))
        return self.vocoder

    def words(self, units: list[int]) -> list[int]:
        return self.language.words(units)

    def units_of(self, words: list[int]) -> list[int]:
        return self.language.units_of(words)

    @property
    def word_count(self) -> int:
        return self.language.word_count

    def fingerprint(self) -> str:
        return self._fingerprint


def _vocoder_config(config: HubertUnitsConfig) -> UnitHifiGanConfig | None:
    """The vocoder that is asked for, else the one beside the units: copied there, it speaks for every checkpoint trained with the codec."""
    if config.vocoder.folder:
        return config.vocoder
    is_beside = config.folder == RANDOM or weights_path(Path(config.folder)).is_file()
    return dataclasses.replace(config.vocoder, folder=config.folder) if is_beside else None


def _read(folder: Path) -> tuple[FittedFolder, bytes]:
    return read_fitted(folder, NAME, SETTINGS), (folder / LANGUAGE_FILE).read_bytes()


def _random_folder() -> FittedFolder:
    """Units that are frames of noise under a random HuBERT, as many as the random vocoder speaks: the same in every process."""
    described: dict[str, Any] = {"name": "ssl", "weights": RANDOM}
    encoder = ENCODERS.build(ENCODERS.parse(described))
    units = TINY["num_embeddings"]
    samples = 0.1 * torch.randn(1, (units + 1) * round(encoder.rate_hz / encoder.frame_rate_hz), generator=torch.Generator().manual_seed(0))
    centres = encoder(Waveform(samples, torch.tensor([samples.shape[1]]), encoder.rate_hz)).values[0, :units].clone()
    settings = {"codec": NAME, "encoder": described, "encoder_fingerprint": encoder.fingerprint()}
    return FittedFolder(settings, {"centres": centres}, {}, hash_of({**settings, "units": units, "format": FORMAT}))
