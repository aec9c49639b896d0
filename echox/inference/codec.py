"""Codecs from Python: audio files into units, and units into audio."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from echox.codecs.base import CODECS, Codec, CodecConfig, config_of_folder, encode_checked
from echox.core.device import device_named
from echox.core.errors import ConfigError
from echox.core.signals import Units
from echox.data.audio import pad_waveforms
from echox.inference.answers import Answer
from echox.inference.base import samples_of


class CodecPipeline:
    """Encodes one clip at a time into units, and decodes units into speech."""

    def __init__(self, config: CodecConfig, device: torch.device) -> None:
        """Build the codec of a config.

        Raises:
            ConfigError, AssetError, CheckpointError: it cannot be built.
        """
        self.config = config
        self.codec: Codec = CODECS.build(config).to(device).eval()
        self.device = device

    @torch.no_grad()
    def encode(self, clip: str | Path | Tensor, *, rate_hz: int | None = None) -> list[int]:
        """Encode a clip into units; of K codebooks, frame after frame [F * K].

        Args:
            clip: an audio file of any rate, or samples [T] in [-1, 1].
            rate_hz: sampling rate of samples; a file says its own.

        Raises:
            SignalError: the clip cannot be used, or samples come without a rate.
        """
        samples = samples_of(clip, rate_hz, self.codec.rate_hz)
        wave = pad_waveforms([samples], self.codec.rate_hz).to(self.device)
        return list(encode_checked(self.codec, wave).rows()[0])

    @torch.no_grad()
    def decode(self, units: Sequence[int]) -> Answer:
        """Decode units into speech, whose `samples` [T] are at `rate_hz` and which can be saved.

        Args:
            units: as `encode` returns them.

        Raises:
            ConfigError: the codec has no vocoder.
        """
        # Before decoding, which would fail somewhere inside the missing vocoder.
        if reason := type(self.codec).cannot_decode_reason(self.config):
            raise ConfigError(f"units cannot be decoded: {reason}")
        wave = self.codec.decode(Units.of_rows([tuple(units)], self.codec.codebooks, self.device))
        length = int(wave.lengths[0])
        # None for units that give no sound, as in answers without speech.
        samples = wave.samples[0, :length].float().cpu() if length else None
        return Answer(
            "",
            units=tuple(units),
            codebooks=self.codec.codebooks,
            samples=samples,
            rate_hz=self.codec.rate_hz,
        )


def load_codec(codec: str | Path, *, device: str = "auto", **settings: Any) -> CodecPipeline:
    """Load a codec by the folder it was fitted to, or by its registered name.

    Args:
        codec: a folder that `echox-prepare codec` or a run wrote (runs/NAME/codec), or a name such
            as "mimi".
        device: auto, cpu, cuda or cuda:N.
        settings: fields of the codec's config.

    Raises:
        ConfigError: there is no such codec, or a setting is not one of its fields.
        AssetError, CheckpointError: its weights cannot be had.
    """
    # A registered name wins over a folder of the same name, which `./NAME` still reaches.
    if isinstance(codec, str) and codec in CODECS:
        config = CODECS.parse({"name": codec, **settings})
    else:
        config = config_of_folder(Path(codec), **settings)
    return CodecPipeline(config, device_named(device))
