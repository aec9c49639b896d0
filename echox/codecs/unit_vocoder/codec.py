"""The embedded codec: k-means units of a pretrained encoder, spoken again by small nets and a vocoder."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from echox.assets.shapes import missing_weights
from echox.codecs.base import CODECS, Codec, CodecConfig
from echox.codecs.quantization.folder import CONFIG_FILE, FORMAT, LANGUAGE_FILE, hash_of, read_fitted, write_fitted
from echox.codecs.quantization.language import UnitLanguage
from echox.codecs.quantization.quantizer import frame_units, merged_units
from echox.codecs.unit_vocoder.fit_config import CodecFitConfig
from echox.codecs.unit_vocoder.speaker import SpeakerSizes, UnitSpeaker
from echox.codecs.unit_vocoder.vocoder import REACH_FRAMES, Vocoder, build_vocoder
from echox.config import from_plain
from echox.encoders.base import ENCODERS, Encoder
from echox.errors import CheckpointError, ConfigError, SignalError
from echox.signals import Units, Waveform, valid_mask

RANDOM = "random"
LENGTH_STEP_FRAMES = 64  # of the mels that a CPU vocodes


@dataclass(kw_only=True, slots=True)
class KMeansCodecConfig(CodecConfig):
    """Units from k-means over encoder features, fitted beforehand and kept in a folder."""

    folder: str = "codec"
    """Folder that `echox-prepare codec` wrote; "random" builds a small codec that was never fitted, for tests."""
    random_units: int = 32
    """Number of units of the random codec."""
    fit: CodecFitConfig = field(default_factory=CodecFitConfig)
    """How it is fitted where the folder is not there yet; `folder` above decides where."""


@dataclass(frozen=True, slots=True)
class CodecFolder:
    """What a fitted folder holds, read and checked."""

    encoder: Mapping[str, Any]  # as `ENCODERS.describe` wrote it
    vocoder: str
    sizes: SpeakerSizes
    tensors: Mapping[str, Tensor]  # "centroids" [V, D], and the speaker's under "speaker."
    language: bytes  # sentencepiece model, empty where a word is a unit
    metrics: Mapping[str, Any]
    fingerprint: str


@CODECS.register("kmeans", KMeansCodecConfig)
class KMeansCodec(Codec):
    """Encoder features to the nearest centroid, repeats merged; back by durations, melody, mel and vocoder."""

    def __init__(self, config: KMeansCodecConfig) -> None:
        """
        Raises:
            CheckpointError: the folder is missing, incomplete, changed or of another version.
        """
        super().__init__()
        self.config = config
        content = _random_folder(config) if config.folder == RANDOM else read_folder(Path(config.folder))
        self.encoder: Encoder = ENCODERS.build(ENCODERS.parse(content.encoder))
        self.vocoder: Vocoder = build_vocoder(content.vocoder)
        self.register_buffer("centroids", content.tensors["centroids"])
        self.rate_hz = self.encoder.rate_hz
        self.unit_rate_hz = self.encoder.frame_rate_hz
        self.vocab_size = len(self.centroids)
        self.language = UnitLanguage(self.vocab_size, content.language)
        self.metrics = content.metrics  # what fitting measured
        self.speaker = UnitSpeaker(self.vocab_size, content.sizes, frames_ratio(self.encoder, self.vocoder), self.vocoder.recipe)
        _load_speaker(self.speaker, content.tensors, config.folder)
        self._fingerprint = content.fingerprint
        self.requires_grad_(False).eval()

    @classmethod
    def is_ready(cls, config: KMeansCodecConfig) -> bool:
        return config.folder == RANDOM or (Path(config.folder) / CONFIG_FILE).is_file()

    @classmethod
    def expected_word_count(cls, config: KMeansCodecConfig) -> int:
        if config.folder == RANDOM:
            return config.random_units
        if not cls.is_ready(config):
            return config.fit.language.words or config.fit.units
        content = read_folder(Path(config.folder))
        return UnitLanguage(len(content.tensors["centroids"]), content.language).word_count

    @classmethod
    def missing(cls, config: KMeansCodecConfig) -> list[str]:
        if config.folder == RANDOM:
            return []
        content = read_folder(Path(config.folder)) if cls.is_ready(config) else None
        encoder = config.fit.encoder if content is None else ENCODERS.parse(content.encoder)
        vocoder = config.fit.vocoder if content is None else content.vocoder
        needs_no_weights = vocoder in ("griffin_lim", RANDOM)
        return ENCODERS.entry_of(encoder).implementation.missing(encoder) + ([] if needs_no_weights else missing_weights(vocoder))

    @classmethod
    def fit(cls, config: KMeansCodecConfig, clips: Sequence[Tensor], device: torch.device) -> None:
        # Imported here because fitting builds on this module.
        from echox.codecs.unit_vocoder.fit import fit_codec

        fit_codec(dataclasses.replace(config.fit, folder=config.folder), clips, str(device))

    def train(self, mode: bool = True) -> KMeansCodec:
        return super().train(False)  # frozen

    def encode(self, wave: Waveform) -> Units:
        """Samples [B, T] -> merged units [B, U]; an empty row gives no unit.

        Under an autocast context the encoder follows it; a percent or so of the units may then differ.
        """
        return merged_units(self.encoder, self.centroids, wave)

    def encode_frames(self, wave: Waveform) -> Units:
        return frame_units(self.encoder, self.centroids, wave)

    @torch.no_grad()
    def decode(self, units: Units) -> Waveform:
        """Merged units [B, U] -> samples [B, T], T = encoder frames * samples per frame; an empty row has length 0.

        It follows an autocast context: bfloat16 halves the time on a CPU that multiplies it.

        Raises:
            SignalError: a unit is not one of the codec's.
        """
        self._check(units)
        if not units.lengths.any():
            return Waveform(torch.zeros(len(units.lengths), 0, device=units.ids.device), torch.zeros_like(units.lengths), self.rate_hz)
        mel, lengths = self.speaker(units)
        hop = self.vocoder.recipe.hop_length
        # Silence as far as the vocoder reaches, so that a row sounds the same whatever it is batched with.
        mel = F.pad(mel, (0, 0, 0, REACH_FRAMES))
        mel = torch.where(valid_mask(lengths, mel.shape[1])[:, :, None], mel, self._silence)
        samples = self._vocode(mel, lengths + REACH_FRAMES)[:, : int(lengths.max()) * hop]
        lengths = lengths * hop
        return Waveform(samples * valid_mask(lengths, samples.shape[1]), lengths, self.rate_hz)

    def _vocode(self, mel: Tensor, lengths: Tensor) -> Tensor:
        """mel [B, F, M], lengths [B] frames -> [B, F * hop]."""
        if mel.device.type != "cpu":
            return self.vocoder(mel).float()
        # A CPU gains nothing from a batch here, and would work on its padding too.
        rows = [self._vocode_row(row[:count]) for row, count in zip(mel, lengths.tolist(), strict=True)]
        return pad_sequence(rows, batch_first=True)

    def _vocode_row(self, mel: Tensor) -> Tensor:
        """mel [F, M] -> [F * hop]."""
        frames = len(mel)
        # Setting up for a length not met before costs a CPU more than the convolutions, so few lengths are used.
        mel = F.pad(mel, (0, 0, 0, -frames % LENGTH_STEP_FRAMES), value=self._silence)
        return self.vocoder(mel[None])[0, : frames * self.vocoder.recipe.hop_length].float()

    @property
    def _silence(self) -> float:
        """A mel bin of silence."""
        return math.log(self.vocoder.recipe.clamp_min)

    def _check(self, units: Units) -> None:
        real = units.ids[valid_mask(units.lengths, units.ids.shape[1])]
        if len(real) and not 0 <= int(real.min()) <= int(real.max()) < self.vocab_size:
            raise SignalError(f"units from {int(real.min())} to {int(real.max())} do not fit the codec's 0..{self.vocab_size - 1}")

    def words(self, units: list[int]) -> list[int]:
        return self.language.words(units)

    def units_of(self, words: list[int]) -> list[int]:
        return self.language.units_of(words)

    @property
    def word_count(self) -> int:
        return self.language.word_count

    def fingerprint(self) -> str:
        return self._fingerprint


def frames_ratio(encoder: Encoder, vocoder: Vocoder) -> int:
    """Mel frames per encoder frame.

    Raises:
        ConfigError: the two do not fit each other.
    """
    recipe = vocoder.recipe
    ratio = recipe.sampling_rate / recipe.hop_length / encoder.frame_rate_hz
    if encoder.rate_hz != recipe.sampling_rate or ratio != int(ratio):
        raise ConfigError(
            f"the encoder gives {encoder.frame_rate_hz} frames/s from {encoder.rate_hz} Hz, the vocoder takes "
            f"{recipe.sampling_rate / recipe.hop_length} mel frames/s at {recipe.sampling_rate} Hz; the rates must be multiples, so choose another pair"
        )
    return int(ratio)


def write_folder(
    folder: Path,
    *,
    encoder: Mapping[str, Any],
    vocoder: str,
    sizes: Mapping[str, Any],
    centroids: Tensor,
    speaker: nn.Module,
    language: bytes,
    metrics: Mapping[str, Any],
) -> str:
    """Write a fitted codec.

    Returns:
        its fingerprint.
    """
    tensors = {"centroids": centroids, **{f"speaker.{name}": tensor for name, tensor in speaker.state_dict().items()}}
    settings = {"encoder": encoder, "vocoder": vocoder, "sizes": sizes}
    return write_fitted(folder, settings, tensors, {LANGUAGE_FILE: language}, metrics)


def read_folder(folder: Path) -> CodecFolder:
    """Read and check a fitted codec.

    Raises:
        CheckpointError: the folder is missing, incomplete, changed or of another version.
    """
    found = read_fitted(folder, "kmeans", ("encoder", "vocoder", "sizes"))
    language = (folder / LANGUAGE_FILE).read_bytes()
    sizes = from_plain(SpeakerSizes, found.settings["sizes"])
    return CodecFolder(found.settings["encoder"], found.settings["vocoder"], sizes, found.tensors, language, found.metrics, found.fingerprint)


def _load_speaker(speaker: UnitSpeaker, tensors: Mapping[str, Tensor], folder: str) -> None:
    weights = {name.removeprefix("speaker."): tensor for name, tensor in tensors.items() if name.startswith("speaker.")}
    try:
        speaker.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"the codec in {folder} holds nets of another shape than this version builds; fit it again") from error


def _random_folder(config: KMeansCodecConfig) -> CodecFolder:
    """A codec whose units are frames of noise under the random encoder: the same one in every process."""
    described = {"name": "whisper", "weights": "random"}
    encoder, vocoder = ENCODERS.build(ENCODERS.parse(described)), build_vocoder(RANDOM)
    sizes = SpeakerSizes(prosody_channels=16, prosody_depth=1, mel_channels=16, coarse_depth=1, fine_depth=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        samples = 0.1 * torch.randn(1, encoder.rate_hz * config.random_units // int(encoder.frame_rate_hz))
        features = encoder(Waveform(samples, torch.tensor([samples.shape[1]]), encoder.rate_hz)).values[0]
        speaker = UnitSpeaker(config.random_units, sizes, frames_ratio(encoder, vocoder), vocoder.recipe)
    tensors = {"centroids": features[: config.random_units].clone(), **{f"speaker.{name}": tensor for name, tensor in speaker.state_dict().items()}}
    return CodecFolder(described, RANDOM, sizes, tensors, b"", {}, hash_of({"random": config.random_units, "format": FORMAT}))
