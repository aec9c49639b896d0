"""Mimi: 12.5 frames per second, causal, the first codebook distilled from a speech encoder."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import transformers
from torch import Tensor

from echox.codecs.base import CODECS
from echox.codecs.neural.codec import NeuralCodec, NeuralCodecConfig, Shape, spread_entries
from echox.codecs.neural.streaming import CausalPass
from echox.core.errors import ConfigError

T = TypeVar("T")

RANDOM_RMS = 0.1  # of the tiny model's samples, so that few of them are clipped


@dataclass(kw_only=True, slots=True)
class MimiCodecConfig(NeuralCodecConfig):
    """Mimi, 24 kHz, 12.5 frames of up to 32 codes a second."""

    weights: str = "kyutai/mimi"
    """Hub id or local folder; "random" builds a tiny untrained one for tests, "random:NAME" that
    model's true shapes untrained, for speed work."""
    codebooks: int = 8
    """Codebooks that are used, the first ones, the first of all being semantic; Moshi uses 8, which
    are 1.1 kbit/s."""


@dataclass(frozen=True, slots=True)
class MimiState:
    """State of Mimi's decoder between two chunks."""

    layers: tuple[Any, ...]  # of the convolutions
    cache: transformers.DynamicCache  # keys and values of the transformer; never written to


@CODECS.register("mimi", MimiCodecConfig)
class MimiCodec(NeuralCodec["transformers.MimiModel"]):
    """Kyutai's Mimi.

    Its first codebook encodes what is spoken, and text and units are aligned by it.

    Source: Defossez et al. 2024, Moshi, arXiv:2410.00037, section 3.3.
    """

    hub_name = "MimiModel"
    min_padded_frames = 1  # causal throughout, so padding after a row never changes it
    streams = True

    @classmethod
    def shape(cls, hub: transformers.PretrainedConfig) -> Shape:
        """Return the facts of a model's config.

        Raises:
            ConfigError: the model is not causal, or not of a single channel.
        """
        # Reflection padding looks ahead at the beginning of a stream.
        if hub.audio_channels != 1 or not hub.use_causal_conv or hub.pad_mode == "reflect":
            raise ConfigError(
                "this Mimi is not the causal one of a single channel, which alone can be used; use "
                "kyutai/mimi"
            )
        return Shape(hub.sampling_rate, hub.frame_size, hub.num_quantizers, hub.codebook_size)

    @classmethod
    def tiny_config(cls, codebooks: int) -> transformers.PretrainedConfig:
        """Return the config of a model for tests, of the published frame rate."""
        return transformers.MimiConfig(
            hidden_size=16,
            num_filters=2,
            codebook_size=32,
            codebook_dim=8,
            vector_quantization_hidden_dimension=8,
            num_quantizers=max(2, codebooks),  # one semantic and one acoustic at least
            upsample_groups=16,
            num_hidden_layers=2,
            intermediate_size=32,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=8,
            sliding_window=8,  # shorter than the tests' streams, so that they cross it
            layer_scale_initial_scale=0.5,
        )

    @classmethod
    @torch.no_grad()
    def spread_codebooks(cls, net: transformers.MimiModel) -> None:
        """Move the entries near the latents of noise, and scale the output to `RANDOM_RMS`."""
        noise = torch.randn(1, 1, net.config.codebook_size * net.config.frame_size)
        latents = _part(net.encoder, "encoder")(0.2 * noise).latents  # [1, D, F]
        for quantizer in (
            net.quantizer.semantic_residual_vector_quantizer,
            net.quantizer.acoustic_residual_vector_quantizer,
        ):
            spread_entries(quantizer.layers, _part(quantizer.input_proj, "projection")(latents))
        rms = net.decode(net.encode(0.2 * noise).audio_codes).audio_values.std()
        for tensor in _part(net.decoder, "decoder").decoder_seanet.layers[-1].conv.parameters():
            tensor.mul_(RANDOM_RMS / rms)

    def encode_samples(self, samples: Tensor) -> Tensor:
        """Encode samples [B, 1, T] of whole frames to codes [B, K, F]."""
        return self.net.encode(samples, num_quantizers=self.codebooks).audio_codes

    def decode_codes(self, codes: Tensor) -> Tensor:
        """Decode codes [B, K, F] to samples [B, T]."""
        return self.net.decode(codes).audio_values[:, 0]

    def decode_next(
        self, codes: Tensor, past: MimiState | None, last: bool
    ) -> tuple[Tensor, MimiState | None]:
        """Decode the next frames [1, K, F] of one stream; see `NeuralCodec.decode_next`."""
        if not codes.shape[-1]:
            return codes.new_zeros(0, dtype=torch.float32), past
        decoder = _part(self.net.decoder, "decoder")
        causal = CausalPass(None if past is None else past.layers)
        upsampled = causal.run([decoder.upsample], self.net.quantizer.decode(codes))  # [1, D, 2F]
        # The library writes into a cache, and the given state must stay as it is.
        cache = (
            transformers.DynamicCache(config=decoder.config)
            if past is None
            else copy.deepcopy(past.cache)
        )
        states = decoder.decoder_transformer(
            upsampled.transpose(1, 2), cache=cache, use_cache=True
        ).last_hidden_state  # [1, 2F, D]
        samples = causal.run(decoder.decoder_seanet.layers, states.transpose(1, 2))
        return samples[0, 0], MimiState(tuple(causal.states), cache)

    def _apply(self, function: Callable[[Tensor], Tensor], recurse: bool = True) -> MimiCodec:
        # The library caches each codebook's entries in an attribute that is no buffer, so `.to`
        # would leave them on the old device; they are computed again when needed.
        codebook_type = transformers.models.mimi.modeling_mimi.MimiEuclideanCodebook
        for module in self.net.quantizer.modules():
            if isinstance(module, codebook_type):
                module._embed = None
        return super()._apply(function, recurse)


def _part(part: T | None, name: str) -> T:
    """Return a part of the model that its config may leave out.

    Raises:
        ConfigError: the model was built without it.
    """
    if part is None:
        raise ConfigError(f"this Mimi has no {name}; name weights of a whole model")
    return part
