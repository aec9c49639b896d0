"""EnCodec of 24 kHz: causal convolutions around an LSTM, 75 frames a second."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor

from echox.codecs.base import CODECS
from echox.codecs.neural.codec import NeuralCodec, NeuralCodecConfig, Shape, spread_entries
from echox.codecs.neural.streaming import CausalWalk
from echox.errors import ConfigError

FIRST_FRAMES = 8  # a beginning is padded by its own reflection in kernels of 7, which needs so many frames


@dataclass(kw_only=True, slots=True)
class EncodecCodecConfig(NeuralCodecConfig):
    """EnCodec, 24 kHz, 75 frames of up to 32 codes a second."""

    weights: str = "facebook/encodec_24khz"
    """Hub id or local folder; "random" builds a tiny untrained one for tests, "random:NAME" that model's true shapes untrained, for speed work."""
    codebooks: int = 8
    """Codebooks that are used, the first ones: 2 are 1.5 kbit/s, 4 are 3, 8 are 6, 16 are 12, 32 are 24."""


@dataclass(frozen=True, slots=True)
class EncodecPast:
    """What the decoder remembers between two chunks."""

    waiting: Tensor  # [1, K, F] codes before the beginning can be spoken
    layers: tuple[Any, ...] | None  # None before that


@CODECS.register("encodec", EncodecCodecConfig)
class EncodecCodec(NeuralCodec):
    """Meta's EnCodec; the codec of 48 kHz, which takes two channels and scales each second, is refused.

    Source: Defossez et al. 2022, arXiv:2210.13438.
    """

    hub_name = "EncodecModel"
    pads_from = FIRST_FRAMES
    streams = True

    @classmethod
    def shape(cls, hub: transformers.PretrainedConfig) -> Shape:
        if hub.audio_channels != 1 or hub.normalize or hub.chunk_length_s or not hub.use_causal_conv or hub.norm_type != "weight_norm":
            raise ConfigError("this EnCodec is not the causal one of a single channel, which alone can be used; use facebook/encodec_24khz")
        return Shape(hub.sampling_rate, hub.hop_length, hub.num_quantizers, hub.codebook_size)

    @classmethod
    def tiny(cls, codebooks: int) -> transformers.PretrainedConfig:
        bandwidth = 75 * 5 * codebooks / 1000  # thousands of bits a second
        return transformers.EncodecConfig(hidden_size=8, num_filters=2, codebook_size=32, num_lstm_layers=1, target_bandwidths=[bandwidth])

    @classmethod
    @torch.no_grad()
    def spread(cls, net: transformers.EncodecModel) -> None:
        noise = torch.randn(1, 1, net.config.codebook_size * net.config.hop_length)
        spread_entries(net.quantizer.layers, net.encoder(0.2 * noise))

    def codes(self, samples: Tensor) -> Tensor:
        # The library counts codebooks by bandwidth, and rounds down.
        bits = self.net.quantizer.frame_rate * self.net.bits_per_codebook
        return self.net.quantizer.encode(self.net.encoder(samples), (self.codebooks + 0.5) * bits / 1000).transpose(0, 1)

    def sound(self, codes: Tensor) -> Tensor:
        return self.net.decoder(self.net.quantizer.decode(codes.transpose(0, 1)))[:, 0]

    def sound_on(self, codes: Tensor, past: EncodecPast | None, last: bool) -> tuple[Tensor, EncodecPast | None]:
        layers = None if past is None else past.layers
        waiting = codes if past is None else torch.cat([past.waiting, codes], dim=-1)
        begins = layers is not None or last or waiting.shape[-1] >= FIRST_FRAMES
        if not waiting.shape[-1] or not begins:
            return codes.new_zeros(0, dtype=torch.float32), EncodecPast(waiting, layers)
        walk = CausalWalk(layers)
        samples = walk.through(self.net.decoder.layers, self.net.quantizer.decode(waiting.transpose(0, 1)))
        return samples[0, 0], EncodecPast(waiting[..., :0], tuple(walk.left))
