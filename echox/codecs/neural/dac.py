"""The Descript audio codec: non-causal convolutions, 50 to 86 frames per second."""

from __future__ import annotations

from dataclasses import dataclass

import transformers
from torch import Tensor

from echox.codecs.base import CODECS
from echox.codecs.neural.codec import NeuralCodec, NeuralCodecConfig, Shape
from echox.codecs.neural.streaming import Window, dac_reach, decode_window


@dataclass(kw_only=True, slots=True)
class DacCodecConfig(NeuralCodecConfig):
    """DAC, 16 kHz and 12 codebooks, 24 kHz and 32, or 44.1 kHz and 9, by its weights."""

    weights: str = "descript/dac_16khz"
    """Hub id or local folder; "random" builds a tiny untrained one for tests, "random:NAME" that
    model's true shapes untrained, for speed work."""
    codebooks: int = 8
    """Codebooks that are used, the first ones; each takes 500 bit/s at 16 kHz."""


@CODECS.register("dac", DacCodecConfig)
class DacCodec(NeuralCodec["transformers.DacModel"]):
    """Descript's audio codec; a stream is decoded about ten frames late.

    So many frames after its own does the decoder's receptive field take in.

    Source: Kumar et al. 2023, arXiv:2306.06546.
    """

    hub_name = "DacModel"
    # Rows are never padded: non-causal kernels take in what follows a row's last frame.
    streams = True

    @classmethod
    def shape(cls, hub: transformers.PretrainedConfig) -> Shape:
        """Return the facts of a model's config."""
        return Shape(hub.sampling_rate, hub.hop_length, hub.n_codebooks, hub.codebook_size)

    @classmethod
    def tiny_config(cls, codebooks: int) -> transformers.PretrainedConfig:
        """Return the config of a model for tests, of the published frame rate."""
        return transformers.DacConfig(
            encoder_hidden_size=2,
            decoder_hidden_size=32,
            downsampling_ratios=[2, 4, 5, 8],  # 320 samples a frame
            n_codebooks=codebooks,
            codebook_size=32,
            codebook_dim=4,
        )

    def encode_samples(self, samples: Tensor) -> Tensor:
        """Encode samples [B, 1, T] of whole frames to codes [B, K, F]."""
        return self.net.encode(samples, n_quantizers=self.codebooks).audio_codes

    def decode_codes(self, codes: Tensor) -> Tensor:
        """Decode codes [B, K, F] to samples [B, T]."""
        return self.net.decode(audio_codes=codes).audio_values

    def decode_next(self, codes: Tensor, past: Window | None, last: bool) -> tuple[Tensor, Window]:
        """Decode the next frames [1, K, F] of one stream; see `NeuralCodec.decode_next`."""
        # The residual units' dilated kernels make most of the receptive field.
        return decode_window(
            codes,
            past,
            last,
            decode=self.decode_codes,
            reach=dac_reach(self.net.decoder),
            hop_samples=self.hop_samples,
        )
