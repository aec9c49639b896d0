"""WavTokenizer: one codebook, whose decoder attends to the whole clip."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch
import transformers
from torch import Tensor

from echox.codecs.base import CODECS
from echox.codecs.neural.codec import NeuralCodec, NeuralCodecConfig, Shape, spread_entries
from echox.codecs.neural.streaming import Window, windowed


@dataclass(kw_only=True, slots=True)
class WavTokenizerCodecConfig(NeuralCodecConfig):
    """WavTokenizer, 24 kHz, 40 or 75 codes a second by its weights."""

    weights: str = "swiss-ai/wavtokenizer-large-unify-40token"
    """Hub id or local folder; "random" builds a tiny untrained one for tests."""
    codebooks: int = 1
    """Codebooks that are used; there is one."""


@CODECS.register("wavtokenizer", WavTokenizerCodecConfig)
class WavTokenizerCodec(NeuralCodec):
    """WavTokenizer; a code is heard everywhere, so a stream is spoken when it has ended.

    Source: Ji et al. 2024, arXiv:2408.16532.
    """

    hub_name = "WavTokenizerModel"
    streams = False

    @classmethod
    def shape(cls, hub: transformers.PretrainedConfig) -> Shape:
        return Shape(hub.sampling_rate, hub.hop_length, 1, hub.codebook_size)

    @classmethod
    def tiny(cls, codebooks: int) -> transformers.PretrainedConfig:
        return transformers.WavTokenizerConfig(
            num_filters=2, num_lstm_layers=1, hidden_size=8, codebook_size=32, codebook_dim=8, decoder_hidden_size=16, decoder_intermediate_size=32,
            decoder_num_layers=2, decoder_attention_num_groups=4,
        )  # fmt: skip

    @classmethod
    @torch.no_grad()
    def spread(cls, net: transformers.WavTokenizerModel) -> None:
        noise = torch.randn(1, 1, net.config.codebook_size * net.config.hop_length)
        spread_entries([net.encoder_model.quantizer], net.encoder_model.encoder(0.2 * noise))

    def codes(self, samples: Tensor) -> Tensor:
        return self.net.encode(samples).audio_codes

    def sound(self, codes: Tensor) -> Tensor:
        return self.net.decode(codes).audio_values.flatten(1)

    def sound_on(self, codes: Tensor, past: Window | None, last: bool) -> tuple[Tensor, Window]:
        return windowed(codes, past, last, sound=self.sound, reach=sys.maxsize, hop_samples=self.hop_samples)
