"""The encoder as a stage's model has it where it is trained: its features, weights and limits."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from echox.core import checkpoint
from echox.core.checkpoint import Checkpoint
from echox.core.errors import CheckpointError
from echox.core.signals import Features, Waveform
from echox.encoders.base import Encoder, trained_tensors, trains
from echox.models.speech_llm import SpeechLLM
from echox.tasks.conversations import RowsConfig

PREFIX = "encoder."  # of the encoder's names in the models of stages


def encoded(encoder: Encoder, clips: Features | Waveform) -> Features:
    """Return the features [A, F, D] of clips, encoded now where their samples [A, T] are given."""
    return encoder(clips) if isinstance(clips, Waveform) else clips


def trained_encoder_state(encoder: Encoder) -> dict[str, Tensor]:
    """Return the encoder's trained weights by their names in the model; none where it is frozen."""
    return {f"{PREFIX}{name}": weight for name, weight in trained_tensors(encoder).items()}


def check_encoder(encoder: Encoder, parent: Checkpoint) -> None:
    """Check that an encoder is one that is trained where a parent stage has trained it.

    Raises:
        CheckpointError: it is taken as pretrained, and checkpoints would not hold its weights.
    """
    if parent.part(PREFIX).tensors and not encoder.trained:
        raise CheckpointError(
            f"{parent.folder} was trained with encoder.train=true, without which its adapter does "
            "not fit the encoder; set that here too"
        )


def fill_encoder(model: SpeechLLM, parent: Checkpoint) -> None:
    """Copy the encoder's weights of a parent stage, where that trained it, into a model.

    Raises:
        CheckpointError: the parent trained the encoder and this stage takes it as pretrained, or
            the weights do not fit.
    """
    check_encoder(model.encoder, parent)
    checkpoint.fill(model, parent.part(PREFIX), set())


def encoder_group(encoder: Encoder, lr_scale: float) -> list[dict[str, Any]]:
    """Return the encoder's group for `Task.parameter_groups`; none where it is not trained."""
    params = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    return [{"name": "encoder", "params": params, "lr_scale": lr_scale}] if params else []


def encoder_notes(encoder: Encoder) -> list[str]:
    """Return what a dry run has to say about an encoder that is trained."""
    if not trains(encoder):
        return []
    return ["the encoder is trained, and its activations are not counted"]


def masks_in_training(config: RowsConfig) -> str | None:
    """Return why an encoder cannot be trained on these rows, or None where it can."""
    augmentation = config.augmentation
    if augmentation is None or not augmentation.hides_features:
        return None
    return (
        "its augmentation masks features that are computed before the step; set time_masks=0 and "
        "channel_masks=0"
    )
