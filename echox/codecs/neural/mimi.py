"""Mimi: 12.5 frames a second, the first codebook distilled from a speech encoder, all of it causal."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor

from echox.codecs.base import CODECS
from echox.codecs.neural.codec import NeuralCodec, NeuralCodecConfig, Shape, spread_entries
from echox.codecs.neural.streaming import CausalWalk
from echox.errors import ConfigError


@dataclass(kw_only=True, slots=True)
class MimiCodecConfig(NeuralCodecConfig):
    """Mimi, 24 kHz, 12.5 frames of up to 32 codes a second."""

    weights: str = "kyutai/mimi"
    """Hub id or local folder; "random" builds a tiny untrained one for tests, "random:NAME" that model's true shapes untrained, for speed work."""
    codebooks: int = 8
    """Codebooks that are used, the first ones, the first of all being semantic; Moshi uses 8, which are 1.1 kbit/s."""


@dataclass(frozen=True, slots=True)
class MimiPast:
    """What Mimi's decoder remembers between two chunks."""

    layers: tuple[Any, ...]  # of the convolutions
    cache: transformers.DynamicCache  # keys and values of the transformer; never written to


@CODECS.register("mimi", MimiCodecConfig)
class MimiCodec(NeuralCodec):
    """Kyutai's Mimi; its first codebook says what is spoken, which is what text and units are aligned by.

    Source: Defossez et al. 2024, Moshi, arXiv:2410.00037, section 3.3.
    """

    hub_name = "MimiModel"
    pads_from = 1
    streams = True

    @classmethod
    def shape(cls, hub: transformers.PretrainedConfig) -> Shape:
        if hub.audio_channels != 1 or not hub.use_causal_conv or hub.pad_mode == "reflect":
            raise ConfigError("this Mimi is not the causal one of a single channel, which alone can be used; use kyutai/mimi")
        return Shape(hub.sampling_rate, hub.frame_size, hub.num_quantizers, hub.codebook_size)

    @classmethod
    def tiny(cls, codebooks: int) -> transformers.PretrainedConfig:
        return transformers.MimiConfig(
            hidden_size=16, num_filters=2, codebook_size=32, codebook_dim=8, vector_quantization_hidden_dimension=8, num_quantizers=max(2, codebooks),
            upsample_groups=16, num_hidden_layers=2, intermediate_size=32, num_attention_heads=2, num_key_value_heads=2, head_dim=8, sliding_window=8,
            layer_scale_initial_scale=0.5,
        )  # fmt: skip

    @classmethod
    @torch.no_grad()
    def spread(cls, net: transformers.MimiModel) -> None:
        """And such a loudness that little of them is clipped."""
        noise = torch.randn(1, 1, net.config.codebook_size * net.config.frame_size)
        latents = net.encoder(0.2 * noise).latents
        for quantizer in (net.quantizer.semantic_residual_vector_quantizer, net.quantizer.acoustic_residual_vector_quantizer):
            spread_entries(quantizer.layers, quantizer.input_proj(latents))
        loudness = net.decode(net.encode(0.2 * noise).audio_codes).audio_values.std()
        for tensor in net.decoder.decoder_seanet.layers[-1].conv.parameters():
            tensor.mul_(0.1 / loudness)

    def codes(self, samples: Tensor) -> Tensor:
        return self.net.encode(samples, num_quantizers=self.codebooks).audio_codes

    def sound(self, codes: Tensor) -> Tensor:
        return self.net.decode(codes).audio_values[:, 0]

    def sound_on(self, codes: Tensor, past: MimiPast | None, last: bool) -> tuple[Tensor, MimiPast | None]:
        if not codes.shape[-1]:
            return codes.new_zeros(0, dtype=torch.float32), past
        decoder = self.net.decoder
        walk = CausalWalk(None if past is None else past.layers)
        upsampled = walk.through([decoder.upsample], self.net.quantizer.decode(codes))
        # The library writes into a cache, and the one that was given must stay as it is.
        cache = transformers.DynamicCache(config=decoder.config) if past is None else copy.deepcopy(past.cache)
        states = decoder.decoder_transformer(upsampled.transpose(1, 2), cache=cache, use_cache=True).last_hidden_state
        samples = walk.through(decoder.decoder_seanet.layers, states.transpose(1, 2))
        return samples[0, 0], MimiPast(tuple(walk.left), cache)

    def _apply(self, function: Callable[[Tensor], Tensor], recurse: bool = True) -> MimiCodec:
        # The library keeps each codebook's entries a second time where `.to` does not find them.
        for module in self.net.quantizer.modules():
            if getattr(module, "_embed", None) is not None:
                module._embed = None
        return super()._apply(function, recurse)
