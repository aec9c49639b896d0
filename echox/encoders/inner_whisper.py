"""A Whisper encoder stored among the weights of another model, as in Soundwave's checkpoints.

Such a folder has no Whisper config, so the encoder's sizes are read from the tensor shapes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

from echox.assets.tensors import StoredTensors
from echox.core.errors import AssetError

if TYPE_CHECKING:
    from transformers.models.whisper.modeling_whisper import WhisperEncoder as HubWhisperEncoder

TOWER_PREFIX = "model.audio_tower."  # of the encoder's tensor names in the checkpoint
HEAD_WIDTH = 64  # channels of an attention head in every published Whisper size


def inner_encoder(
    folder: Path,
) -> tuple[HubWhisperEncoder, transformers.WhisperFeatureExtractor] | None:
    """Load the Whisper encoder inside another model's checkpoint.

    Args:
        folder: a model folder with `config.json` and safetensors files.

    Returns:
        the float32 encoder and its log-mel extractor; None where the folder is a plain Whisper
        or has no tensors below `TOWER_PREFIX`.

    Raises:
        CheckpointError: a weight file is damaged.
        AssetError: tensors of the encoder are missing or have inconsistent shapes.
    """
    if not _is_other_model(folder):
        return None
    stored = StoredTensors(sorted(folder.glob("*.safetensors")))
    names = {
        name.removeprefix(TOWER_PREFIX): name for name in stored if name.startswith(TOWER_PREFIX)
    }
    if not names:
        return None
    try:
        encoder = _build(stored, names)
    # A missing tensor is a KeyError, an impossible size a ValueError, a mismatch a RuntimeError.
    except (KeyError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise AssetError(
            f"the Whisper inside {folder} cannot be read ({reason}); copy the folder again"
        ) from error
    return encoder, transformers.WhisperFeatureExtractor(feature_size=encoder.config.num_mel_bins)


def _build(stored: StoredTensors, names: dict[str, str]) -> HubWhisperEncoder:
    """Build the encoder from the tensors `names`: name in the encoder -> name in the files."""
    # On the meta device, because `assign` below replaces every tensor anyway.
    with torch.device("meta"):
        encoder = transformers.models.whisper.modeling_whisper.WhisperEncoder(
            _config_from_shapes({name: stored.specs[full].shape for name, full in names.items()})
        )
    weights = {name: stored[full].float() for name, full in names.items()}
    encoder.load_state_dict(weights, assign=True)
    return encoder


def _is_other_model(folder: Path) -> bool:
    """True where `config.json` names another model type than Whisper."""
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        return config.get("model_type") != "whisper"
    # An unreadable config is reported by transformers, which reads the folder next.
    except (OSError, ValueError, AttributeError):
        return False


def _config_from_shapes(shapes: dict[str, tuple[int, ...]]) -> transformers.WhisperConfig:
    width, bins, _ = shapes["conv1.weight"]  # [H, M, 3]
    positions = shapes["embed_positions.weight"][0]  # [positions, H]
    last_layer = max(int(name.split(".")[1]) for name in shapes if name.startswith("layers."))
    settings: dict[str, Any] = {
        "d_model": width,
        "num_mel_bins": bins,
        "max_source_positions": positions,
        "encoder_layers": 1 + last_layer,
        # The shapes do not tell the number of heads, since q, k and v are [H, H] for any number.
        "encoder_attention_heads": max(1, width // HEAD_WIDTH),
        "encoder_ffn_dim": shapes["layers.0.fc1.weight"][0],
        "attn_implementation": "sdpa",
    }
    return transformers.WhisperConfig(**settings)
