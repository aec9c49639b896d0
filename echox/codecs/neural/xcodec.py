"""X-Codec and the tokenizer of Higgs Audio: a DAC that also codes what HuBERT hears."""

from __future__ import annotations

from dataclasses import dataclass

import transformers
from torch import Tensor

from echox.codecs.base import CODECS
from echox.codecs.neural.codec import NeuralCodec, NeuralCodecConfig, Shape
from echox.codecs.neural.streaming import Window, dac_reach, windowed
from echox.errors import ConfigError

TINY_HUBERT = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "conv_dim": [4] * 7,
    "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip


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


class SemanticDacCodec(NeuralCodec):
    """Codes of a DAC's and a speech encoder's features together, spoken by the DAC's decoder; it streams as DAC does."""

    streams = True

    @classmethod
    def shape(cls, hub: transformers.PretrainedConfig) -> Shape:
        return Shape(hub.sample_rate, hub.hop_length, hub.num_quantizers, hub.codebook_size)

    def codes(self, samples: Tensor) -> Tensor:
        F = samples.shape[-1] // self.hop_samples
        # At the end of a clip the two encoders may make a frame more or less of it.
        made = self.net.encode(samples, bandwidth=self._bandwidth()).audio_codes[..., :F]
        return made if made.shape[-1] == F else made[..., [*range(made.shape[-1]), *[-1] * (F - made.shape[-1])]]

    def _bandwidth(self) -> float:
        """The model's own bandwidth, thousands of bits a second, that takes as many codebooks as are used."""
        hub = self.net.config
        sizes = {int(1000 * width // (hub.frame_rate * hub.codebook_nbits)): width for width in hub.target_bandwidths}
        if self.codebooks not in sizes:
            raise ConfigError(f"codec.codebooks is {self.codebooks}, and this model encodes with {', '.join(map(str, sorted(sizes)))}; use one of these")
        return sizes[self.codebooks]

    def sound(self, codes: Tensor) -> Tensor:
        return self.net.decode(codes).audio_values[:, 0]

    def sound_on(self, codes: Tensor, past: Window | None, last: bool) -> tuple[Tensor, Window]:
        return windowed(codes, past, last, sound=self.sound, reach=dac_reach(self.net.acoustic_decoder), hop_samples=self.hop_samples)


@CODECS.register("xcodec", XcodecCodecConfig)
class XcodecCodec(SemanticDacCodec):
    """X-Codec, whose every codebook also says what is spoken.

    Source: Ye et al. 2024, arXiv:2408.17175.
    """

    hub_name = "XcodecModel"

    @classmethod
    def tiny(cls, codebooks: int) -> transformers.PretrainedConfig:
        acoustic = transformers.DacConfig(encoder_hidden_size=2, decoder_hidden_size=32, downsampling_ratios=[8, 5, 4, 2], upsampling_ratios=[8, 5, 4, 2])
        return transformers.XcodecConfig(
            acoustic_model_config=acoustic, semantic_model_config=transformers.HubertConfig(**TINY_HUBERT), codebook_size=32, codebook_dim=48,
            target_bandwidths=[count * 0.25 for count in range(1, codebooks + 1)],
        )  # fmt: skip


@CODECS.register("higgs_audio", HiggsCodecConfig)
class HiggsCodec(SemanticDacCodec):
    """The tokenizer of Higgs Audio 2, X-Codec's form at 24 kHz and half its rate.

    Source: github.com/boson-ai/higgs-audio, 2025.
    """

    hub_name = "HiggsAudioV2TokenizerModel"

    @classmethod
    def tiny(cls, codebooks: int) -> transformers.PretrainedConfig:
        acoustic = transformers.DacConfig(encoder_hidden_size=2, decoder_hidden_size=64, downsampling_ratios=[8, 5, 4, 2, 3], upsampling_ratios=[8, 5, 4, 2, 3])
        return transformers.HiggsAudioV2TokenizerConfig(
            acoustic_model_config=acoustic, semantic_model_config=transformers.HubertConfig(**TINY_HUBERT), codebook_size=32, codebook_dim=16,
            target_bandwidths=[count * 0.125 for count in range(1, codebooks + 1)],
        )  # fmt: skip
