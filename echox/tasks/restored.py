"""Models of finished checkpoints, rebuilt from their metadata and filled with their weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from torch import nn

from echox.assets.sources import taking_from
from echox.backbones.base import BACKBONES, Backbone
from echox.codecs.base import Codec
from echox.core import checkpoint as checkpoints
from echox.core.checkpoint import Checkpoint
from echox.core.errors import CheckpointError
from echox.core.registry import Registry
from echox.encoders.base import ENCODERS
from echox.models.speech_adapter import SpeechAdapterConfig
from echox.models.speech_llm import SpeechLLM, join_speech_llm
from echox.tasks.recorded import (
    check_asset_origins,
    recorded_part,
    recorded_sources,
    recorded_task,
    warn_of_changed_weights,
    weights_of,
)

M = TypeVar("M", bound=nn.Module)


def filled(model: M, checkpoint: Checkpoint) -> M:
    """Copy all tensors of a checkpoint into a model, and return it in eval mode.

    Raises:
        CheckpointError: a tensor does not belong to the model, or has another shape.
    """
    checkpoints.fill(model, checkpoint, set(checkpoint.tensors))
    return model.eval()


def recorded_backbone(checkpoint: Checkpoint) -> Backbone:
    """Load the pretrained language model that a checkpoint records, in eval mode.

    Raises:
        CheckpointError: the checkpoint records none, or was trained with weights of another source.
        AssetError: its weights cannot be had.
    """
    return _built_part(checkpoint, "backbone", BACKBONES).eval()


def _built_part(checkpoint: Checkpoint, kind: str, registry: Registry) -> Any:
    """Build a pretrained part that a checkpoint records, of the weights it was trained with."""
    config = recorded_part(checkpoint, kind, registry)
    references = weights_of(config)
    with taking_from(recorded_sources(checkpoint, references)):
        part = registry.build(config)
        # After the build, which fetches weights that are not here yet.
        check_asset_origins(checkpoint, references)
    warn_of_changed_weights(checkpoint, kind, config)
    return part


def recorded_adapter(checkpoint: Checkpoint, *roles: str) -> SpeechAdapterConfig:
    """Return the shape of the speech adapter that a checkpoint records.

    Args:
        checkpoint: of a stage that trains the adapter, whatever its task.
        roles: path to a stage before it, as `recorded_task` takes it.

    Raises:
        CheckpointError: the task that it records has no adapter.
    """
    config = recorded_task(checkpoint, *roles)
    shape = getattr(config, "adapter", None)
    if not isinstance(shape, SpeechAdapterConfig):
        raise CheckpointError(
            f"{checkpoint.folder} records a {type(config).__name__}, which has no speech adapter; "
            "it must come from the align, s2t or echo stage"
        )
    return shape


def required_codec(checkpoint: Checkpoint, codec: Codec | None) -> Codec:
    """Return the codec with which a checkpoint that synthesizes speech is loaded.

    Raises:
        CheckpointError: there is none.
    """
    if codec is None:
        raise CheckpointError(
            f"{checkpoint.folder} synthesizes speech, so it cannot be loaded without its codec"
        )
    return codec


def empty_speech_llm(
    checkpoint: Checkpoint, roles: Sequence[str], prefix: str, backbone: Backbone | None
) -> SpeechLLM:
    """Build the S2T model of a checkpoint, whose adapter has its shape but not yet its weights.

    Args:
        checkpoint: of the S2T stage, or of a later one that holds the S2T model.
        roles: path from the checkpoint's stage to the S2T stage, as `recorded_task` takes it.
        prefix: of the S2T model's tensors in the checkpoint.
        backbone: the language model; None builds the one that the checkpoint records.

    Raises:
        CheckpointError: the checkpoint holds no speech adapter, records no config of a part, or was
            trained with weights of another source.
    """
    name = f"{prefix}adapter.token_ids"
    if name not in checkpoint.tensors:
        raise CheckpointError(
            f"{checkpoint.folder} holds no speech adapter ({name} is missing); "
            "it was not written by this version of echox"
        )
    # [C - 1] ids of the CTC vocabulary, which give the adapter its number of classes.
    token_ids = checkpoint.tensors[name]
    encoder = _built_part(checkpoint, "encoder", ENCODERS)
    shape = recorded_adapter(checkpoint, *roles)
    backbone = backbone or recorded_backbone(checkpoint)
    return join_speech_llm(encoder, backbone, shape, token_ids)
