"""Whisper's encoder inside another checkpoint: Soundwave keeps it among its own weights, without a config of its own."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers
from torch import nn

from echox.assets.tensors import StoredTensors
from echox.errors import AssetError

PREFIX = "model.audio_tower."
HEAD_WIDTH = 64  # channels of an attention head, in Whispers of every size


def inner_encoder(folder: Path) -> tuple[nn.Module, transformers.WhisperFeatureExtractor] | None:
    """The encoder among a folder's weights, and what makes its log-mel; None where there is none.

    Raises:
        CheckpointError: a file of weights is damaged. AssetError: tensors are missing or do not fit each other.
    """
    if not _is_host(folder):
        return None
    stored = StoredTensors(sorted(folder.glob("*.safetensors")))
    names = {name.removeprefix(PREFIX): name for name in stored if name.startswith(PREFIX)}
    if not names:
        return None
    try:
        with torch.device("meta"):
            encoder = transformers.models.whisper.modeling_whisper.WhisperEncoder(_shape({name: stored.specs[full].shape for name, full in names.items()}))
        encoder.load_state_dict({name: stored[full].float() for name, full in names.items()}, assign=True)
    except (KeyError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise AssetError(f"the Whisper inside {folder} cannot be read ({reason}); copy the folder again") from error
    return encoder, transformers.WhisperFeatureExtractor(feature_size=encoder.config.num_mel_bins)


def _is_host(folder: Path) -> bool:
    """Whether the folder is of another model than Whisper."""
    try:
        return json.loads((folder / "config.json").read_text("utf-8")).get("model_type") != "whisper"
    except (OSError, ValueError, AttributeError):
        return False


def _shape(shapes: dict[str, tuple[int, ...]]) -> transformers.WhisperConfig:
    width, bins, _ = shapes["conv1.weight"]
    return transformers.WhisperConfig(
        d_model=width,
        num_mel_bins=bins,
        max_source_positions=shapes["embed_positions.weight"][0],
        encoder_layers=1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("layers.")),
        encoder_attention_heads=max(1, width // HEAD_WIDTH),
        encoder_ffn_dim=shapes["layers.0.fc1.weight"][0],
        attn_implementation="sdpa",
    )
