"""WavTokenizer: one codebook, with a decoder that attends to the whole clip."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch
import transformers
from torch import Tensor

from echox.codecs.base import CODECS
from echox.codecs.neural.codec import NeuralCodec, NeuralCodecConfig, Shape, spread_entries
from echox.codecs.neural.streaming import Window, decode_window


@dataclass(kw_only=True, slots=True)
class WavTokenizerCodecConfig(NeuralCodecConfig):
    """WavTokenizer, 24 kHz, 40 or 75 codes a second by its weights."""

    weights: str = "swiss-ai/wavtokenizer-large-unify-40token"
    """Hub id or local folder; "random" builds a tiny untrained one for tests."""
    codebooks: int = 1
    """Codebooks that are used; there is one."""


@CODECS.register("wavtokenizer", WavTokenizerCodecConfig)
class WavTokenizerCodec(NeuralCodec["transformers.WavTokenizerModel"]):
    """WavTokenizer; every code changes all samples, so a stream is decoded when it has ended.

    Source: Ji et al. 2024, arXiv:2408.16532.
    """

    hub_name = "WavTokenizerModel"
    # Rows are never padded, because attention would take padding in.
    streams = False

    @classmethod
    def shape(cls, hub: transformers.PretrainedConfig) -> Shape:
        """Return the facts of a model's config."""
        return Shape(hub.sampling_rate, hub.hop_length, 1, hub.codebook_size)

    @classmethod
    def tiny_config(cls, codebooks: int) -> transformers.PretrainedConfig:
        """Return the config of a model for tests, of the published frame rate."""
        return transformers.WavTokenizerConfig(
            num_filters=2,
            num_lstm_layers=1,
            hidden_size=8,
            codebook_size=32,
            codebook_dim=8,
            decoder_hidden_size=16,
            decoder_intermediate_size=32,
            decoder_num_layers=2,
            decoder_attention_num_groups=4,
        )

    @classmethod
    @torch.no_grad()
    def spread_codebooks(cls, net: transformers.WavTokenizerModel) -> None:
        """Move the entries near the latents of noise."""
        noise = torch.randn(1, 1, net.config.codebook_size * net.config.hop_length)
        spread_entries([net.encoder_model.quantizer], net.encoder_model.encoder(0.2 * noise))

    def encode_samples(self, samples: Tensor) -> Tensor:
        """Encode samples [B, 1, T] of whole frames to codes [B, 1, F]."""
        return self.net.encode(samples).audio_codes

    def decode_codes(self, codes: Tensor) -> Tensor:
        """Decode codes [B, 1, F] to samples [B, T]."""
        return self.net.decode(codes).audio_values.flatten(1)

    def decode_next(self, codes: Tensor, past: Window | None, last: bool) -> tuple[Tensor, Window]:
        """Keep the next frames [1, 1, F] of one stream; decode all with the last chunk."""
        # A reach without bound, by which no frame is final before the last chunk.
        return decode_window(
            codes,
            past,
            last,
            decode=self.decode_codes,
            reach=sys.maxsize,
            hop_samples=self.hop_samples,
        )
