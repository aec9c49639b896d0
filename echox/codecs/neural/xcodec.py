"""X-Codec and the tokenizer of Higgs Audio: a DAC that also encodes the features of a HuBERT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import transformers
from torch import Tensor

from echox.codecs.base import CODECS
from echox.codecs.neural.codec import NeuralCodec, NeuralCodecConfig, Shape
from echox.codecs.neural.streaming import Window, dac_reach, decode_window
from echox.core.errors import ConfigError

# Of the speech encoder in the tiny models, whose convolutions keep HuBERT's seven strides.
TINY_HUBERT: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": [4] * 7,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}


@dataclass(kw_only=True, slots=True)
class XcodecCodecConfig(NeuralCodecConfig):
    """X-Codec, 16 kHz, 50 frames of up to 8 codes a second."""

    weights: str = "hf-audio/xcodec-hubert-librispeech"
    """Hub id or local folder; "random" builds a tiny untrained one for tests."""
    codebooks: int = 8
    """Codebooks that are used, the first ones: 1, 2, 3, 4 or 8, of 500 bit/s each."""


@dataclass(kw_only=True, slots=True)
class HiggsCodecConfig(NeuralCodecConfig):
    """Higgs Audio 2's tokenizer, 24 kHz, 25 frames of 8 codes a second."""

    weights: str = "bosonai/higgs-audio-v2-tokenizer"
    """Hub id or local folder; "random" builds a tiny untrained one for tests."""
    codebooks: int = 8
    """Codebooks that are used, the first ones, as many as one of the model's bandwidths takes."""


class SemanticDacCodec(
    NeuralCodec["transformers.XcodecModel | transformers.HiggsAudioV2TokenizerModel"]
):
    """Base of codecs that quantise a DAC's and a speech encoder's features together.

    The decoder is that of a DAC, and streams like one.
    """

    streams = True

    @classmethod
    def shape(cls, hub: transformers.PretrainedConfig) -> Shape:
        """Return the facts of a model's config."""
        return Shape(hub.sample_rate, hub.hop_length, hub.num_quantizers, hub.codebook_size)

    def encode_samples(self, samples: Tensor) -> Tensor:
        """Encode samples [B, 1, T] of whole frames to codes [B, K, F].

        Raises:
            ConfigError: the model has no bandwidth of so many codebooks.
        """
        F = samples.shape[-1] // self.hop_samples
        # At the end of a clip the two encoders may give a frame more or less.
        codes = self.net.encode(samples, bandwidth=self._bandwidth()).audio_codes[..., :F]
        lacking = F - codes.shape[-1]
        if lacking == 0:
            return codes
        # The last frame is repeated, because a row's length promises F frames.
        return codes[..., [*range(codes.shape[-1]), *[-1] * lacking]]

    def _bandwidth(self) -> float:
        """The model's own bandwidth, kbit/s, that takes as many codebooks as are in use."""
        hub = self.net.config
        # The library takes a bandwidth, and of those only the ones it was trained with.
        bits = hub.frame_rate * hub.codebook_nbits  # per second and codebook
        bandwidths = {int(1000 * width // bits): width for width in hub.target_bandwidths}
        if self.codebooks not in bandwidths:
            counts = ", ".join(map(str, sorted(bandwidths)))
            raise ConfigError(
                f"codec.codebooks is {self.codebooks}, and this model encodes with {counts}; use "
                "one of these"
            )
        return bandwidths[self.codebooks]

    def decode_codes(self, codes: Tensor) -> Tensor:
        """Decode codes [B, K, F] to samples [B, T]."""
        return self.net.decode(codes).audio_values[:, 0]

    def decode_next(self, codes: Tensor, past: Window | None, last: bool) -> tuple[Tensor, Window]:
        """Decode the next frames [1, K, F] of one stream; see `NeuralCodec.decode_next`."""
        return decode_window(
            codes,
            past,
            last,
            decode=self.decode_codes,
            reach=dac_reach(self.net.acoustic_decoder),
            hop_samples=self.hop_samples,
        )


@CODECS.register("xcodec", XcodecCodecConfig)
class XcodecCodec(SemanticDacCodec):
    """X-Codec, all of whose codebooks also encode what is spoken.

    Source: Ye et al. 2024, arXiv:2408.17175.
    """

    hub_name = "XcodecModel"

    @classmethod
    def tiny_config(cls, codebooks: int) -> transformers.PretrainedConfig:
        """Return the config of a model for tests, of the published frame rate."""
        ratios = [8, 5, 4, 2]  # 320 samples a frame
        acoustic: dict[str, Any] = {
            "encoder_hidden_size": 2,
            "decoder_hidden_size": 32,
            "downsampling_ratios": ratios,
            "upsampling_ratios": ratios,
        }
        return transformers.XcodecConfig(
            acoustic_model_config=transformers.DacConfig(**acoustic),
            semantic_model_config=transformers.HubertConfig(**TINY_HUBERT),
            codebook_size=32,
            codebook_dim=48,  # channels of the two encoders together
            # kbit/s: 50 frames a second of 5 bits, for every number of codebooks.
            target_bandwidths=[count * 0.25 for count in range(1, codebooks + 1)],
        )


@CODECS.register("higgs_audio", HiggsCodecConfig)
class HiggsCodec(SemanticDacCodec):
    """The tokenizer of Higgs Audio 2: X-Codec's architecture at 24 kHz and half its frame rate.

    Source: github.com/boson-ai/higgs-audio, 2025.
    """

    hub_name = "HiggsAudioV2TokenizerModel"

    @classmethod
    def tiny_config(cls, codebooks: int) -> transformers.PretrainedConfig:
        """Return the config of a model for tests, of the published frame rate."""
        ratios = [8, 5, 4, 2, 3]  # 960 samples a frame
        acoustic: dict[str, Any] = {
            "encoder_hidden_size": 2,
            "decoder_hidden_size": 64,
            "downsampling_ratios": ratios,
            "upsampling_ratios": ratios,
        }
        return transformers.HiggsAudioV2TokenizerConfig(
            acoustic_model_config=transformers.DacConfig(**acoustic),
            semantic_model_config=transformers.HubertConfig(**TINY_HUBERT),
            codebook_size=32,
            codebook_dim=16,
            # kbit/s: 25 frames a second of 5 bits, for every number of codebooks.
            target_bandwidths=[count * 0.125 for count in range(1, codebooks + 1)],
        )
