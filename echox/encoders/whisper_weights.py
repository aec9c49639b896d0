"""Weights of the Whisper encoder: read from a folder, or untrained in the shapes of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import transformers
from torch import Tensor

from echox.assets import asset_folder
from echox.assets.loading import loading
from echox.assets.shapes import UNTRAINED, shape_of
from echox.core.errors import AssetError
from echox.encoders.inner_whisper import inner_encoder

# Of the random encoder's weights. With the library's 0.02 the frames of a clip differ by their
# positions alone: these made 99.96 % of the variance of speech, and here they make a fifth of it.
RANDOM_STD = 0.2

if TYPE_CHECKING:
    from transformers.models.whisper.modeling_whisper import WhisperEncoder as HubWhisperEncoder


def load_encoder(weights: str, random_dim: int) -> tuple[HubWhisperEncoder, Tensor]:
    """Load or build the encoder that a config's `weights` names.

    Args:
        weights: a catalogue name, hub id or local folder, "random" or "random:NAME".
        random_dim: channels of the random encoder.

    Returns:
        the float32 encoder and its mel filters [M, 201].

    Raises:
        AssetError: the weights are missing, damaged or not a Whisper's.
    """
    if weights == "random" or weights.startswith(UNTRAINED):
        return _untrained_model(_untrained_shape(weights, random_dim))
    folder = asset_folder(weights)
    if (inner := inner_encoder(folder)) is not None:
        encoder, extractor = inner
        return encoder, _mel_filters(extractor)
    with loading("a Whisper model", folder):
        encoder = transformers.WhisperModel.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="sdpa"
        ).encoder
        extractor = transformers.WhisperFeatureExtractor.from_pretrained(folder)
    return encoder, _mel_filters(extractor)


def _untrained_shape(weights: str, random_dim: int) -> transformers.WhisperConfig:
    """Return the config of an untrained model.

    Raises:
        AssetError: the named model is not known, or is not a Whisper.
    """
    if weights == "random":
        return transformers.WhisperConfig(
            d_model=random_dim,
            encoder_layers=2,
            encoder_attention_heads=2,
            encoder_ffn_dim=2 * random_dim,
            init_std=RANDOM_STD,
        )
    shape = shape_of(weights.removeprefix(UNTRAINED))
    if not isinstance(shape, transformers.WhisperConfig):
        raise AssetError(
            f"encoder.weights {weights!r} has the shape of a {shape.model_type}, not of a "
            "Whisper; name a Whisper"
        )
    return shape


def _untrained_model(shape: transformers.WhisperConfig) -> tuple[HubWhisperEncoder, Tensor]:
    generator_state = torch.get_rng_state()
    torch.manual_seed(0)  # the same random weights in every stage and on every rank
    encoder = transformers.models.whisper.modeling_whisper.WhisperEncoder(shape)
    torch.set_rng_state(generator_state)
    extractor = transformers.WhisperFeatureExtractor(feature_size=shape.num_mel_bins)
    return encoder, _mel_filters(extractor)


def _mel_filters(extractor: transformers.WhisperFeatureExtractor) -> Tensor:
    """Return the extractor's filter bank as float32 [M, 201]."""
    return torch.as_tensor(extractor.mel_filters, dtype=torch.float32).T.contiguous()
