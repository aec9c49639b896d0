"""Self-supervised encoders: HuBERT, wav2vec 2.0 and WavLM, any layer of any checkpoint that transformers reads."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from echox.assets import asset_folder
from echox.assets.loading import loading
from echox.assets.shapes import UNTRAINED, missing_weights, shape_of, untrained
from echox.encoders.base import ENCODERS, Encoder, EncoderConfig
from echox.errors import AssetError, ConfigError, SignalError
from echox.signals import Features, Waveform, valid_mask

RATE_HZ = 16_000
FAMILIES = ("hubert", "wav2vec2", "wavlm")
NORM_EPSILON = 1e-7  # as transformers' Wav2Vec2FeatureExtractor divides


@dataclass(kw_only=True, slots=True)
class SslConfig(EncoderConfig):
    """A HuBERT, wav2vec 2.0 or WavLM encoder, frozen, from a hub id or a local folder."""

    weights: str = "facebook/hubert-base-ls960"
    """Hub id or local folder of the weights; "random" builds a small untrained HuBERT for tests, "random:NAME" that model's true shapes
    untrained, for speed work."""
    layer: int | None = None
    """The transformer layer whose states are taken, counted from 1 as fairseq counts; null is the model's own output, which differs from
    its last layer where a final norm follows."""
    normalize: bool | None = None
    """Give each clip mean 0 and variance 1 first; null does what the folder's preprocessor_config.json says, or config.json's
    feat_extract_norm where there is none."""
    window_s: float = 100.0
    """Audio heard at once, seconds; longer clips are encoded in windows and joined. fairseq takes 100."""
    random_dim: int = 32
    """Channels of the random encoder."""

    def __post_init__(self) -> None:
        if self.layer is not None and self.layer < 1:
            raise ConfigError(f"encoder.layer is {self.layer}; use 1 or more, or null for the model's own output")
        if self.window_s < 1:
            raise ConfigError(f"encoder.window_s is {self.window_s}; use 1 second or more")


@ENCODERS.register("ssl", SslConfig)
class SslEncoder(Encoder):
    """Convolutions over samples, then transformer layers: 50 frames/s, each of 25 ms; a clip shorter than that has no frame.

    A row's states are those of its clip alone. In the library they are not where a model normalises its first convolution over time
    (feat_extract_norm "group": HuBERT and WavLM base), for padding enters the mean; here a row's own frames are counted alone.
    Source: Hsu et al. 2021, arXiv:2106.07447; Baevski et al. 2020, arXiv:2006.11477; Chen et al. 2022, arXiv:2110.13900.
    """

    rate_hz = RATE_HZ

    def __init__(self, config: SslConfig) -> None:
        """
        Raises:
            AssetError: the weights are missing or of another family. ConfigError: the model has fewer layers.
        """
        super().__init__()
        self.config = config
        self.model, self.normalizes = _load(config)
        self.model.requires_grad_(False).eval()
        _keep_layers(self.model, config)
        shape = self.model.config
        self.kernels, self.strides = tuple(shape.conv_kernel), tuple(shape.conv_stride)
        self.frame_rate_hz = RATE_HZ / math.prod(self.strides)
        self.dim = shape.hidden_size

    @classmethod
    def outline(cls, config: SslConfig) -> SslEncoder:
        return super().outline(dataclasses.replace(config, weights=untrained(config.weights)))

    @classmethod
    def missing(cls, config: SslConfig) -> list[str]:
        return missing_weights(config.weights)

    def train(self, mode: bool = True) -> SslEncoder:
        return super().train(False)  # frozen: no dropout, no dropped layers

    @torch.no_grad()
    def forward(self, wave: Waveform) -> Features:
        if wave.rate_hz != RATE_HZ:
            raise SignalError(f"the encoder {self.config.weights!r} takes audio at {RATE_HZ} Hz, got {wave.rate_hz} Hz; resample it first")
        samples = wave.samples.float().where(valid_mask(wave.lengths, wave.samples.shape[1]), 0)
        samples = _normalized(samples, wave.lengths) if self.normalizes else samples
        size = round(self.config.window_s * RATE_HZ)
        pieces = [self._window(samples, wave.lengths, start, size) for start in range(0, max(samples.shape[1], 1), size)]
        # A row's windows before its last one are full, so its frames stand together.
        lengths = torch.stack([frames for _, frames in pieces]).sum(0)
        values = torch.cat([states for states, _ in pieces], dim=1)[:, : max(1, int(lengths.max()))]
        return Features(values * valid_mask(lengths, values.shape[1])[:, :, None], lengths, self.frame_rate_hz)

    def _window(self, samples: Tensor, lengths: Tensor, start: int, size: int) -> tuple[Tensor, Tensor]:
        """Samples [B, T] from `start` -> states [B, F, D] and frames [B]."""
        samples = samples[:, start : start + size]
        lengths = (lengths - start).clamp(0, samples.shape[1])
        shortest = self._receptive_samples()
        samples = F.pad(samples, (0, max(0, shortest - samples.shape[1])))
        # In bfloat16 the convolutions make the states' error twice as large, and on a CPU are but a tenth faster.
        with torch.autocast(samples.device.type, enabled=False):
            states, frames = self._convolve(samples, lengths)
        projected = self.model.feature_projection(states.transpose(1, 2))
        projected = projected[0] if isinstance(projected, tuple) else projected
        keep = valid_mask(frames, projected.shape[1])
        keep[:, 0] |= ~keep.any(dim=1)  # a row without frames still needs one key
        return self.model.encoder(projected, attention_mask=keep).last_hidden_state, frames

    def _convolve(self, samples: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Samples [B, T], lengths [B] -> features [B, C, F], frames [B]."""
        states, frames = samples[:, None], lengths
        for layer, kernel, stride in zip(self.model.feature_extractor.conv_layers, self.kernels, self.strides, strict=True):
            # Unpadded: a frame inside a row's length reaches over no sample beyond it.
            frames = torch.div(frames - kernel, stride, rounding_mode="floor").add(1).clamp(min=0)
            norm = getattr(layer, "layer_norm", None)
            if isinstance(norm, nn.GroupNorm):
                states = layer.activation(_norm_over_time(layer.conv(states), frames, norm))
            else:
                states = layer(states)
        return states, frames

    def _receptive_samples(self) -> int:
        """Samples that one frame is computed from."""
        return 1 + sum((kernel - 1) * math.prod(self.strides[:index]) for index, kernel in enumerate(self.kernels))

    def fingerprint(self) -> str:
        # Of the values' bytes: sums are rounded otherwise on a GPU, and a codec that was fitted there would be refused here.
        settings = [self.config.layer, self.normalizes, self.config.window_s, "v2"]
        digest = hashlib.sha256(json.dumps(settings).encode())
        for tensor in self.model.state_dict().values():
            digest.update(tensor.detach().flatten()[:64].cpu().numpy().tobytes())
        return digest.hexdigest()[:16]


class _PaddedNorm(nn.Module):
    """A batch norm before a convolution over time: the encoder's padding arrives as zeros, and stays so for the convolution."""

    def __init__(self, norm: nn.BatchNorm1d) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, states: Tensor) -> Tensor:
        """[B, D, F] -> the same shape."""
        return self.norm(states) * (states != 0).any(dim=1, keepdim=True)


def _normalized(samples: Tensor, lengths: Tensor) -> Tensor:
    """Each row's own samples with mean 0 and variance 1, zeros behind them: [B, T] -> [B, T]."""
    keep = valid_mask(lengths, samples.shape[1])
    counts = lengths.clamp(min=1)[:, None]
    centred = (samples - samples.sum(1, keepdim=True) / counts) * keep
    variance = centred.square().sum(1, keepdim=True) / counts
    return centred / (variance + NORM_EPSILON).sqrt()


def _norm_over_time(states: Tensor, frames: Tensor, norm: nn.GroupNorm) -> Tensor:
    """A group norm of one channel a group, over each row's own frames: states [B, C, F], frames [B] -> [B, C, F]."""
    keep = valid_mask(frames, states.shape[2])[:, None]
    counts = frames.clamp(min=1)[:, None, None]
    mean = (states * keep).sum(2, keepdim=True) / counts
    variance = ((states - mean) * keep).square().sum(2, keepdim=True) / counts
    return (states - mean) * (variance + norm.eps).rsqrt() * norm.weight[:, None] + norm.bias[:, None]


def _keep_layers(model: nn.Module, config: SslConfig) -> None:
    """
    Raises:
        ConfigError: the model has fewer layers than are asked for.
    """
    encoder = model.encoder
    if (norm := getattr(encoder.pos_conv_embed, "batch_norm", None)) is not None:
        encoder.pos_conv_embed.batch_norm = _PaddedNorm(norm)
    if config.layer is None:
        return
    if config.layer > len(encoder.layers):
        raise ConfigError(f"encoder.layer is {config.layer} but {config.weights!r} has {len(encoder.layers)} layers")
    encoder.layers = encoder.layers[: config.layer]
    if model.config.do_stable_layer_norm:
        encoder.layer_norm = nn.Identity()  # it follows the last layer and belongs to the model's own output


def _load(config: SslConfig) -> tuple[nn.Module, bool]:
    """The model, and whether it takes normalised clips."""
    if config.weights == "random" or config.weights.startswith(UNTRAINED):
        shape = _untrained_shape(config)
        return _untrained(shape), _normalizes(config, None, shape)
    folder = asset_folder(config.weights)
    shape = _checked(shape_of(str(folder)), config)
    with loading("a HuBERT, wav2vec 2.0 or WavLM model", folder):
        model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32)
    return model, _normalizes(config, folder, shape)


def _normalizes(config: SslConfig, folder: Path | None, shape: transformers.PretrainedConfig) -> bool:
    """What the config, else the folder, else the family says: models with layer norms were trained on normalised clips."""
    if config.normalize is not None:
        return config.normalize
    try:
        return bool(json.loads((folder / "preprocessor_config.json").read_text("utf-8"))["do_normalize"]) if folder else False
    except (OSError, ValueError, KeyError, TypeError):
        return shape.feat_extract_norm == "layer"


def _untrained_shape(config: SslConfig) -> transformers.PretrainedConfig:
    if config.weights != "random":
        return _checked(shape_of(config.weights.removeprefix(UNTRAINED)), config)
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


def _checked(shape: transformers.PretrainedConfig, config: SslConfig) -> transformers.PretrainedConfig:
    """
    Raises:
        AssetError: the model is of another family.
    """
    if shape.model_type not in FAMILIES:
        raise AssetError(f"encoder.weights {config.weights!r} is a {shape.model_type}; the encoder ssl reads {', '.join(FAMILIES)}")
    return shape


def _untrained(shape: transformers.PretrainedConfig) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # random, but the same weights in every stage and on every rank
        return transformers.AutoModel.from_config(shape)
