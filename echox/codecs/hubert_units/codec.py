"""The HuBERT unit codec: nearest centres of encoder frames, repeats merged, words over units.

Units are decoded by a unit vocoder, which may be added after the codec has been fitted.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from echox.codecs.base import CODECS, CodecConfig, DecodeState, check_unit_count
from echox.codecs.hubert_units.fit_config import NAME, UnitFitConfig
from echox.codecs.quantization.codec import RANDOM, QuantizedCodec
from echox.codecs.quantization.folder import (
    FORMAT,
    LANGUAGE_FILE,
    FittedFolder,
    read_fitted,
)
from echox.codecs.quantization.language import UnitLanguage
from echox.codecs.unit_hifigan import UnitHifiGan, UnitHifiGanConfig
from echox.core.errors import CheckpointError, ConfigError
from echox.core.files import json_hash
from echox.core.indexable import Indexable
from echox.core.signals import Units, Waveform
from echox.encoders.base import ENCODERS, Encoder
from echox.vocoders.layout import CONFIG as VOCODER_CONFIG
from echox.vocoders.layout import TINY, WEIGHTS, weights_path

SETTINGS = ("codec", "encoder", "encoder_fingerprint")  # keys of config.json


@dataclass(kw_only=True, slots=True)
class HubertUnitsConfig(CodecConfig):
    """Units of a self-supervised encoder, as in EchoX; decoding them needs a unit vocoder."""

    folder: str = "codec"
    """Folder that `echox-prepare codec` wrote; "random" builds a small codec that was never
    fitted, for tests."""
    vocoder: UnitHifiGanConfig = field(default_factory=UnitHifiGanConfig)
    """The vocoder of these very units, a folder with g_00500000 and vocoder_config.json; empty
    takes those two where they lie in the codec's own folder, and without any, speech becomes units
    alone."""
    fit: UnitFitConfig = field(default_factory=UnitFitConfig)
    """How it is fitted where the folder is not there yet."""


@CODECS.register(NAME, HubertUnitsConfig)
class HubertUnits(QuantizedCodec):
    """K-means units of a self-supervised encoder, decoded by a unit vocoder where there is one.

    The vocoder is no part of the fingerprint: it can be trained on the units later, and be
    replaced by that of another speaker.

    Source: Lakhotia et al. 2021, arXiv:2102.01192 (units by k-means); Zhang et al. 2025,
    arXiv:2505.15333 (words over units).
    """

    centres: Tensor

    def __init__(self, config: HubertUnitsConfig) -> None:
        """Read the fitted folder, the encoder and the vocoder.

        Raises:
            CheckpointError: the folder is missing, incomplete or changed, or the encoder has other
                weights than it was fitted with.
            ConfigError: the vocoder is one of other units.
        """
        if config.folder == RANDOM:
            fitted, language = _random_folder(), b""
        else:
            fitted, language = _read_folder(Path(config.folder))
        encoder: Encoder = ENCODERS.build(ENCODERS.parse(fitted.settings["encoder"]))
        # Other weights give other frames, and so other units than manifests were written with.
        if encoder.fingerprint() != fitted.settings["encoder_fingerprint"]:
            raise CheckpointError(
                f"the codec in {config.folder} was fitted with other weights of its encoder than "
                "are there now; put those back, or fit it again"
            )
        super().__init__(encoder, fitted.tensors["centres"], language, fitted.fingerprint)
        self.config = config
        self.metrics = fitted.metrics  # measured at the end of the fit
        self.vocoder = self._build_vocoder()
        # In place of the class's attributes, because both depend on the vocoder.
        self.decodes = self.streams = self.vocoder is not None
        self.requires_grad_(False).eval()

    def _build_vocoder(self) -> UnitHifiGan | None:
        config = _vocoder_config(self.config)
        if config is None:
            return None
        vocoder = UnitHifiGan(config)
        ours, theirs = (self.vocab_size, self.rate_hz), (vocoder.vocab_size, vocoder.rate_hz)
        # Only numbers can be compared: a published vocoder does not name the centres of its units.
        if ours != theirs:
            raise ConfigError(
                f"the vocoder in {config.folder} decodes {theirs[0]} units at {theirs[1]} Hz, but "
                f"the codec in {self.config.folder} has {ours[0]} at {ours[1]} Hz; set "
                "codec.vocoder.folder to the vocoder of these units"
            )
        return vocoder

    @classmethod
    def expected_unit_vocab_size(cls, config: HubertUnitsConfig) -> int:
        """Return the number of words in the folder, or those asked for where it is not fitted.

        Raises:
            CheckpointError: the folder is incomplete or changed.
        """
        if config.folder == RANDOM:
            return TINY["num_embeddings"]  # without a language: a word is a unit
        # The most there can be: a language learns fewer words from few recordings.
        if not cls.is_ready(config):
            return config.fit.language.words or config.fit.units
        fitted, language = _read_folder(Path(config.folder))
        return UnitLanguage(len(fitted.tensors["centres"]), language).unit_vocab_size

    @classmethod
    def cannot_decode_reason(cls, config: HubertUnitsConfig) -> str | None:
        """Return how to add a vocoder where there is none, else None."""
        if _vocoder_config(config) is not None:
            return None
        return (
            f"the codec in {config.folder} has no vocoder, so it cannot decode units to audio; put "
            f"a unit vocoder of these very units there ({WEIGHTS} and {VOCODER_CONFIG}), or set "
            "codec.vocoder.folder to its folder"
        )

    @classmethod
    def missing(cls, config: HubertUnitsConfig) -> list[str]:
        """List the absent files of encoder, vocoder, and published centres not yet fitted to.

        Raises:
            CheckpointError: the folder is incomplete or changed.
        """
        if config.folder == RANDOM:
            return []
        centres: list[str] = []
        if cls.is_ready(config):
            # A fitted folder names its encoder, which need not be the config's.
            fitted, _ = _read_folder(Path(config.folder))
            encoder = ENCODERS.parse(fitted.settings["encoder"])
        else:
            encoder = config.fit.encoder
            if config.fit.centres and not Path(config.fit.centres).is_file():
                centres = [config.fit.centres]
        vocoder = _vocoder_config(config)
        return [
            *ENCODERS.entry_of(encoder).implementation.missing(encoder),
            *centres,
            *(UnitHifiGan.missing(vocoder) if vocoder else []),
        ]

    @classmethod
    def check_folder(cls, config: HubertUnitsConfig) -> None:
        """Check that `fit.units` is the folder's, where it is not at its default.

        Raises:
            ConfigError: it is another number.
            CheckpointError: the folder is incomplete or changed.
        """
        # Published centres say themselves how many they are.
        if config.folder != RANDOM and not config.fit.centres:
            fitted = len(_read_folder(Path(config.folder))[0].tensors["centres"])
            check_unit_count(config.folder, config.fit.units, UnitFitConfig().units, fitted)

    @classmethod
    def fit(cls, config: HubertUnitsConfig, clips: Indexable[Tensor], device: torch.device) -> None:
        """Fit units to recordings and write them to `config.folder`; an interrupted fit resumes.

        Args:
            config: names the folder and the settings of the fit.
            clips: samples [T] each at the encoder's rate.
            device: of the encoder and the clustering.

        Raises:
            SignalError: there are fewer than two recordings.
            ConfigError: centres and encoder do not fit each other.
            CheckpointError: the file of centres cannot be read.
        """
        # Imported here, because building a codec needs nothing of it.
        from echox.codecs.hubert_units.fit import fit_units

        fit_units(config.folder, config.fit, clips, device)

    def decode(self, units: Units) -> Waveform:
        """Decode merged units [B, U] to samples [B, T].

        Raises:
            ConfigError: the codec has no vocoder.
            SignalError: a unit is not one of the codec's.
        """
        return self._require_vocoder().decode(units)

    def decode_chunk(
        self, units: Units, state: DecodeState | None = None, *, last: bool
    ) -> tuple[Waveform, DecodeState]:
        """Decode the next merged units [B, U] of a stream; see `Codec.decode_chunk`.

        Raises:
            ConfigError: the codec has no vocoder.
            SignalError: a unit is not one of the codec's.
        """
        return self._require_vocoder().decode_chunk(units, state, last=last)

    def _require_vocoder(self) -> UnitHifiGan:
        if self.vocoder is None:
            raise ConfigError(self.cannot_decode_reason(self.config))
        return self.vocoder


def _vocoder_config(config: HubertUnitsConfig) -> UnitHifiGanConfig | None:
    """The vocoder that is asked for, else the one in the codec's folder; None without any.

    A vocoder copied into the folder serves every checkpoint that was trained with the codec.
    """
    if config.vocoder.folder:
        return config.vocoder
    # The random codec and the random vocoder belong together.
    is_beside = config.folder == RANDOM or weights_path(Path(config.folder)).is_file()
    return dataclasses.replace(config.vocoder, folder=config.folder) if is_beside else None


def _read_folder(folder: Path) -> tuple[FittedFolder, bytes]:
    """The folder, and its sentencepiece model, empty where a word is a unit."""
    return read_fitted(folder, NAME, SETTINGS), (folder / LANGUAGE_FILE).read_bytes()


def _random_folder() -> FittedFolder:
    """Units of a random HuBERT, as many as the random vocoder has, the same in every process.

    The centres are frames of noise, so that other noise falls to many different units.
    """
    described: dict[str, Any] = {"name": "ssl", "weights": RANDOM}
    encoder = ENCODERS.build(ENCODERS.parse(described))
    units = TINY["num_embeddings"]
    hop = round(encoder.rate_hz / encoder.frame_rate_hz)
    # A hop more: the convolutions do not pad, so the last hop alone gives no frame.
    T = (units + 1) * hop
    samples = 0.1 * torch.randn(1, T, generator=torch.Generator().manual_seed(0))
    frames = encoder(Waveform(samples, torch.tensor([T]), encoder.rate_hz)).values
    centres = frames[0, :units].clone()  # [V, D]
    # As a fit writes them. The centres follow from them, so they are not hashed.
    settings = {"codec": NAME, "encoder": described, "encoder_fingerprint": encoder.fingerprint()}
    fingerprint = json_hash({**settings, "units": units, "format": FORMAT})
    return FittedFolder(settings, {"centres": centres}, {}, fingerprint)
