"""The Descript audio codec: convolutions that look both ways, 50 to 86 frames a second."""

from __future__ import annotations

from dataclasses import dataclass

import transformers
from torch import Tensor

from echox.codecs.base import CODECS
from echox.codecs.neural.codec import NeuralCodec, NeuralCodecConfig, Shape
from echox.codecs.neural.streaming import Window, dac_reach, windowed


@dataclass(kw_only=True, slots=True)
class DacCodecConfig(NeuralCodecConfig):
    """DAC, 16 kHz and 12 codebooks, 24 kHz and 32, or 44.1 kHz and 9, by its weights."""

    weights: str = "descript/dac_16khz"
    """Hub id or local folder; "random" builds a tiny untrained one for tests, "random:NAME" that model's true shapes untrained, for speed work."""
    codebooks: int = 8
    """Codebooks that are used, the first ones; each takes 500 bit/s at 16 kHz."""


@CODECS.register("dac", DacCodecConfig)
class DacCodec(NeuralCodec):
    """Descript's audio codec; a stream is spoken some ten frames late, for that far a frame is heard before its place.

    Source: Kumar et al. 2023, arXiv:2306.06546.
    """

    hub_name = "DacModel"
    streams = True

    @classmethod
    def shape(cls, hub: transformers.PretrainedConfig) -> Shape:
        return Shape(hub.sampling_rate, hub.hop_length, hub.n_codebooks, hub.codebook_size)

    @classmethod
    def tiny(cls, codebooks: int) -> transformers.PretrainedConfig:
        return transformers.DacConfig(encoder_hidden_size=2, decoder_hidden_size=32, downsampling_ratios=[2, 4, 5, 8], n_codebooks=codebooks, codebook_size=32, codebook_dim=4)

    def codes(self, samples: Tensor) -> Tensor:
        return self.net.encode(samples, n_quantizers=self.codebooks).audio_codes

    def sound(self, codes: Tensor) -> Tensor:
        return self.net.decode(audio_codes=codes).audio_values

    def sound_on(self, codes: Tensor, past: Window | None, last: bool) -> tuple[Tensor, Window]:
        return windowed(codes, past, last, sound=self.sound, reach=dac_reach(self.net.decoder), hop_samples=self.hop_samples)
