"""Self-supervised encoders: HuBERT, wav2vec 2.0 and WavLM, any layer of any checkpoint.

Every folder that `transformers.AutoModel` reads as one of these families works.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from echox.assets import asset_folder
from echox.assets.loading import loading
from echox.assets.shapes import UNTRAINED, missing_weights, shape_of, untrained
from echox.core.config import refuse_below
from echox.core.errors import AssetError, ConfigError, SignalError
from echox.core.signals import Features, Waveform, valid_mask
from echox.encoders.base import ENCODERS, Encoder, EncoderConfig

RATE_HZ = 16_000
if TYPE_CHECKING:
    SslModel = transformers.HubertModel | transformers.Wav2Vec2Model | transformers.WavLMModel

FAMILIES = ("hubert", "wav2vec2", "wavlm")  # values of `model_type` in config.json
NORM_EPSILON = 1e-7  # as in transformers' Wav2Vec2FeatureExtractor


@dataclass(kw_only=True, slots=True)
class SslConfig(EncoderConfig):
    """A HuBERT, wav2vec 2.0 or WavLM encoder, frozen unless `train`, by hub id or folder.

    Raises:
        ConfigError: a number is out of range.
    """

    weights: str = "facebook/hubert-base-ls960"
    """Hub id or local folder of the weights; "random" builds a small untrained HuBERT for tests,
    "random:NAME" that model's true shapes untrained, for speed work."""
    layer: int | None = None
    """The transformer layer whose states are returned, counted from 1 as fairseq counts; null is
    the model's own output, which differs from its last layer where a final norm follows."""
    normalize: bool | None = None
    """Scale each clip to mean 0 and variance 1 first; null does what the folder's
    preprocessor_config.json says, or config.json's feat_extract_norm where there is none."""
    window_s: float = 100.0
    """Audio encoded at once, seconds; longer clips are encoded in windows and joined. fairseq
    takes 100."""
    random_dim: int = 32
    """Channels of the random encoder."""

    def __post_init__(self) -> None:
        refuse_below(self, 1, "random_dim")
        if self.layer is not None and self.layer < 1:
            raise ConfigError(
                f"encoder.layer is {self.layer}; use 1 or more, or null for the model's own output"
            )
        if not self.window_s >= 1:
            raise ConfigError(f"encoder.window_s is {self.window_s}; use 1 second or more")


@ENCODERS.register("ssl", SslConfig)
class SslEncoder(Encoder):
    """HuBERT, wav2vec 2.0 or WavLM: 50 frames/s from 25 ms of samples each, batch-independent.

    A clip shorter than 25 ms has no frame. transformers lets padding into the mean where a model
    normalizes its first convolution over time (feat_extract_norm "group": HuBERT and WavLM base);
    here a row's own frames alone are counted.

    Source: Hsu et al. 2021, arXiv:2106.07447; Baevski et al. 2020, arXiv:2006.11477; Chen et al.
    2022, arXiv:2110.13900.
    """

    rate_hz = RATE_HZ
    trainable = True

    def __init__(self, config: SslConfig) -> None:
        """Load the weights, or build the random model that `config.weights` asks for.

        Raises:
            AssetError: the weights are missing or of another family.
            ConfigError: the model has fewer layers than `config.layer`.
        """
        super().__init__()
        self.config = config
        self.model, self.normalizes = _load(config)
        self.model.requires_grad_(config.train).eval()
        _adapt(self.model, config)
        # What stands in place of masked frames in pretraining has no effect here.
        if (masked := getattr(self.model, "masked_spec_embed", None)) is not None:
            masked.requires_grad_(False)
        shape = self.model.config
        self.kernels, self.strides = tuple(shape.conv_kernel), tuple(shape.conv_stride)
        self.frame_rate_hz = RATE_HZ / math.prod(self.strides)
        self.dim = shape.hidden_size
        self.window_s = config.window_s

    @classmethod
    def outline(cls, config: SslConfig) -> SslEncoder:
        """Build the encoder with its true shapes on the meta device, without reading weights."""
        return super().outline(dataclasses.replace(config, weights=untrained(config.weights)))

    @classmethod
    def missing(cls, config: SslConfig) -> list[str]:
        """List the weight files that are neither here nor in a pinned package."""
        return missing_weights(config.weights)

    def train(self, mode: bool = True) -> SslEncoder:
        """Stay in evaluation mode: an encoder drops no value and no layer, trained or not."""
        return super().train(False)

    def forward(self, wave: Waveform) -> Features:
        """Encode a batch, each row as if it were alone.

        Args:
            wave: samples [B, T] at 16 kHz; what lies past a row's length is ignored.

        Returns:
            values [B, F, D], zeros past a row's length.

        Raises:
            SignalError: `wave.rate_hz` is not 16 kHz.
        """
        if wave.rate_hz != RATE_HZ:
            raise SignalError(
                f"the encoder {self.config.weights!r} takes audio at {RATE_HZ} Hz, got "
                f"{wave.rate_hz} Hz; resample it first"
            )
        samples = wave.samples.float().where(valid_mask(wave.lengths, wave.samples.shape[1]), 0)
        samples = _normalized(samples, wave.lengths) if self.normalizes else samples
        size = round(self.config.window_s * RATE_HZ)
        starts = range(0, max(samples.shape[1], 1), size)  # an empty batch is one window too
        windows = [self._window(samples, wave.lengths, start, size) for start in starts]
        # All windows of a row but its last are full, so its frames are contiguous when joined.
        lengths = torch.stack([frames for _, frames in windows]).sum(0)
        joined = torch.cat([states for states, _ in windows], dim=1)
        values = joined[:, : max(1, int(lengths.max()))]  # [B, F, D]
        real = valid_mask(lengths, values.shape[1])[:, :, None]
        return Features(values * real, lengths, self.frame_rate_hz)

    def _window(
        self, samples: Tensor, lengths: Tensor, start: int, size: int
    ) -> tuple[Tensor, Tensor]:
        """Encode `size` samples of [B, T] from `start` -> states [B, F, D], frames [B]."""
        samples = samples[:, start : start + size]
        lengths = (lengths - start).clamp(0, samples.shape[1])
        # A convolution fails on inputs shorter than its kernel, even where no row has a frame.
        shortest = self._receptive_samples()
        samples = F.pad(samples, (0, max(0, shortest - samples.shape[1])))
        # bfloat16 convolutions double the error of the states, and are a tenth faster on a CPU.
        with torch.autocast(samples.device.type, enabled=False):
            states, frames = self._convolve(samples, lengths)
        projected = self.model.feature_projection(states.transpose(1, 2))
        # Families other than HuBERT return the convolution's normalized output too.
        projected = projected[0] if isinstance(projected, tuple) else projected
        mask = valid_mask(frames, projected.shape[1])
        mask[:, 0] |= ~mask.any(dim=1)  # a row without frames still needs one attention key
        return self.model.encoder(projected, attention_mask=mask).last_hidden_state, frames

    def _convolve(self, samples: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Samples [B, T], lengths [B] -> features [B, C, F], frames [B]."""
        states, frames = samples[:, None], lengths
        layers = self.model.feature_extractor.conv_layers
        for layer, kernel, stride in zip(layers, self.kernels, self.strides, strict=True):
            # Without padding: a frame within a row's length sees no sample beyond that length.
            frames = torch.div(frames - kernel, stride, rounding_mode="floor").add(1).clamp(min=0)
            norm = getattr(layer, "layer_norm", None)
            if isinstance(norm, nn.GroupNorm):
                # The library's own forward would average over the padding too.
                conv, activation = layer.get_submodule("conv"), layer.get_submodule("activation")
                states = activation(_norm_over_time(conv(states), frames, norm))
            else:
                states = layer(states)
        return states, frames

    def _receptive_samples(self) -> int:
        """Count the samples one frame is computed from."""
        return 1 + sum(
            (kernel - 1) * math.prod(self.strides[:index])
            for index, kernel in enumerate(self.kernels)
        )

    def fingerprint(self) -> str:
        """Hash the first values of each weight and the settings: 16 hexadecimal digits."""
        # Bytes, not sums: a GPU rounds sums differently, and a codec fitted there with this
        # encoder would be refused on a CPU.
        settings = [self.config.layer, self.normalizes, self.config.window_s, "v2"]
        digest = hashlib.sha256(json.dumps(settings).encode())
        for tensor in self.model.state_dict().values():
            digest.update(tensor.detach().flatten()[:64].cpu().numpy().tobytes())
        return digest.hexdigest()[:16]


class _PaddedNorm(nn.Module):
    """Batch norm before a convolution over time that keeps padding at zero.

    The norm would turn the encoder's zero padding into its bias, and the convolution after it
    would mix that into real frames.
    """

    def __init__(self, norm: nn.BatchNorm1d) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, states: Tensor) -> Tensor:
        """States [B, D, F] -> the same shape, columns of zeros unchanged."""
        return self.norm(states) * (states != 0).any(dim=1, keepdim=True)


def _normalized(samples: Tensor, lengths: Tensor) -> Tensor:
    """Scale the samples [B, T] of each row to mean 0 and variance 1, zeros past its length."""
    real = valid_mask(lengths, samples.shape[1])
    counts = lengths.clamp(min=1)[:, None]
    centred = (samples - samples.sum(1, keepdim=True) / counts) * real
    variance = centred.square().sum(1, keepdim=True) / counts
    return centred / (variance + NORM_EPSILON).sqrt()


def _norm_over_time(states: Tensor, frames: Tensor, norm: nn.GroupNorm) -> Tensor:
    """Normalize each channel of states [B, C, F] over the first `frames` [B] of its row."""
    real = valid_mask(frames, states.shape[2])[:, None]
    counts = frames.clamp(min=1)[:, None, None]
    mean = (states * real).sum(2, keepdim=True) / counts
    variance = ((states - mean) * real).square().sum(2, keepdim=True) / counts
    normalized = (states - mean) * (variance + norm.eps).rsqrt()
    return normalized * norm.weight[:, None] + norm.bias[:, None]


def _adapt(model: SslModel, config: SslConfig) -> None:
    """Make positions independent of padding and remove the layers above `config.layer`."""
    encoder = model.encoder
    if (norm := getattr(encoder.pos_conv_embed, "batch_norm", None)) is not None:
        encoder.pos_conv_embed.batch_norm = _PaddedNorm(norm)
    if config.layer is None:
        return
    count = len(encoder.layers)
    if config.layer > count:
        raise ConfigError(
            f"encoder.layer is {config.layer} but {config.weights!r} has {count} layers"
        )
    encoder.layers = encoder.layers[: config.layer]
    if model.config.do_stable_layer_norm:
        # The norm follows the last layer and is part of the model's own output only.
        encoder.add_module("layer_norm", nn.Identity())


def _load(config: SslConfig) -> tuple[SslModel, bool]:
    """Return the model, and whether it was trained on normalized clips."""
    if config.weights == "random" or config.weights.startswith(UNTRAINED):
        shape = _untrained_shape(config)
        return _untrained_model(shape), _normalizes(config, None, shape)
    folder = asset_folder(config.weights)
    shape = _check_family(shape_of(str(folder)), config)
    with loading("a HuBERT, wav2vec 2.0 or WavLM model", folder):
        model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32)
    return model, _normalizes(config, folder, shape)


def _normalizes(
    config: SslConfig, folder: Path | None, shape: transformers.PretrainedConfig
) -> bool:
    """Decide on normalization by the config, else the folder, else the kind of convolution norm."""
    if config.normalize is not None:
        return config.normalize
    if not folder:
        return False
    try:
        preprocessor = json.loads((folder / "preprocessor_config.json").read_text("utf-8"))
        return bool(preprocessor["do_normalize"])
    except (OSError, ValueError, KeyError, TypeError):
        # Models with layer norms in their convolutions were trained on normalized clips.
        return shape.feat_extract_norm == "layer"


def _untrained_shape(config: SslConfig) -> transformers.PretrainedConfig:
    if config.weights != "random":
        return _check_family(shape_of(config.weights.removeprefix(UNTRAINED)), config)
    width = config.random_dim
    return transformers.HubertConfig(
        conv_dim=(width,) * 7,
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * width,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
    )


def _check_family(
    shape: transformers.PretrainedConfig, config: SslConfig
) -> transformers.PretrainedConfig:
    """Return `shape`, or raise an AssetError where the model is of another family."""
    if shape.model_type not in FAMILIES:
        raise AssetError(
            f"encoder.weights {config.weights!r} is a {shape.model_type}; the encoder ssl reads "
            f"{', '.join(FAMILIES)}"
        )
    return shape


def _untrained_model(shape: transformers.PretrainedConfig) -> SslModel:
    # A fixed seed gives the same weights in every stage and on every rank.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.AutoModel.from_config(shape)
