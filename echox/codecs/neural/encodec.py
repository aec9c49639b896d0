"""EnCodec at 24 kHz: causal convolutions around an LSTM, 75 frames per second."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor

from echox.codecs.base import CODECS
from echox.codecs.neural.codec import NeuralCodec, NeuralCodecConfig, Shape, spread_entries
from echox.codecs.neural.streaming import CausalPass
from echox.core.errors import ConfigError

# The beginning of a stream is padded by its own reflection in kernels of 7, which needs so many
# frames.
FIRST_FRAMES = 8


@dataclass(kw_only=True, slots=True)
class EncodecCodecConfig(NeuralCodecConfig):
    """EnCodec, 24 kHz, 75 frames of up to 32 codes a second."""

    weights: str = "facebook/encodec_24khz"
    """Hub id or local folder; "random" builds a tiny untrained one for tests, "random:NAME" that
    model's true shapes untrained, for speed work."""
    codebooks: int = 8
    """Codebooks that are used, the first ones: 2 are 1.5 kbit/s, 4 are 3, 8 are 6, 16 are 12, 32
    are 24."""


@dataclass(frozen=True, slots=True)
class EncodecState:
    """State of the decoder between two chunks."""

    waiting: Tensor  # [1, K, F] codes, until there are enough to decode the beginning
    layers: tuple[Any, ...] | None  # None until then


@CODECS.register("encodec", EncodecCodecConfig)
class EncodecCodec(NeuralCodec["transformers.EncodecModel"]):
    """Meta's EnCodec at 24 kHz.

    The model at 48 kHz, which takes two channels and scales each second, is refused.

    Source: Defossez et al. 2022, arXiv:2210.13438.
    """

    hub_name = "EncodecModel"
    min_padded_frames = FIRST_FRAMES  # with fewer, the reflection would reach into the padding
    streams = True

    @classmethod
    def shape(cls, hub: transformers.PretrainedConfig) -> Shape:
        """Return the facts of a model's config.

        Raises:
            ConfigError: the model is not causal, not of a single channel, or scales its input.
        """
        is_causal = hub.use_causal_conv and hub.norm_type == "weight_norm"
        if hub.audio_channels != 1 or hub.normalize or hub.chunk_length_s or not is_causal:
            raise ConfigError(
                "this EnCodec is not the causal one of a single channel, which alone can be used; "
                "use facebook/encodec_24khz"
            )
        return Shape(hub.sampling_rate, hub.hop_length, hub.num_quantizers, hub.codebook_size)

    @classmethod
    def tiny_config(cls, codebooks: int) -> transformers.PretrainedConfig:
        """Return the config of a model for tests, of the published frame rate."""
        # 75 frames a second of 5 bits per codebook; the library counts in kbit/s.
        bandwidth = 75 * 5 * codebooks / 1000
        return transformers.EncodecConfig(
            hidden_size=8,
            num_filters=2,
            codebook_size=32,
            num_lstm_layers=1,
            target_bandwidths=[bandwidth],
        )

    @classmethod
    @torch.no_grad()
    def spread_codebooks(cls, net: transformers.EncodecModel) -> None:
        """Move the entries near the latents of noise."""
        noise = torch.randn(1, 1, net.config.codebook_size * net.config.hop_length)
        spread_entries(net.quantizer.layers, net.encoder(0.2 * noise))

    def encode_samples(self, samples: Tensor) -> Tensor:
        """Encode samples [B, 1, T] of whole frames to codes [B, K, F]."""
        # The library counts codebooks by bandwidth in kbit/s, and rounds down; half a codebook
        # more keeps rounding errors from losing one.
        bits = self.net.quantizer.frame_rate * self.net.bits_per_codebook
        bandwidth = (self.codebooks + 0.5) * bits / 1000
        latents = self.net.encoder(samples)
        return self.net.quantizer.encode(latents, bandwidth).transpose(0, 1)  # from [K, B, F]

    def decode_codes(self, codes: Tensor) -> Tensor:
        """Decode codes [B, K, F] to samples [B, T]."""
        return self.net.decoder(self.net.quantizer.decode(codes.transpose(0, 1)))[:, 0]

    def decode_next(
        self, codes: Tensor, past: EncodecState | None, last: bool
    ) -> tuple[Tensor, EncodecState | None]:
        """Decode the next frames [1, K, F] of one stream; see `NeuralCodec.decode_next`."""
        layers = None if past is None else past.layers
        waiting = codes if past is None else torch.cat([past.waiting, codes], dim=-1)
        can_decode = layers is not None or last or waiting.shape[-1] >= FIRST_FRAMES
        if not waiting.shape[-1] or not can_decode:
            return codes.new_zeros(0, dtype=torch.float32), EncodecState(waiting, layers)
        causal = CausalPass(layers)
        latents = self.net.quantizer.decode(waiting.transpose(0, 1))
        samples = causal.run(self.net.decoder.layers, latents)
        return samples[0, 0], EncodecState(waiting[..., :0], tuple(causal.states))
