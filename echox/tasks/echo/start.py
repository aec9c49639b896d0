"""The model that Echo training starts from: S2T and T2C as they were trained, joined."""

from __future__ import annotations

from echox.codecs.base import Codec
from echox.core import checkpoint
from echox.core.checkpoint import Checkpoint
from echox.core.errors import CheckpointError
from echox.models.denoising import DenoisingAdapter, DenoisingConfig
from echox.models.echo import EchoModel, teacher_of
from echox.models.segmenting import SegmentsConfig
from echox.tasks.base import Parts
from echox.tasks.recorded import recorded_config
from echox.tasks.restored import recorded_adapter
from echox.tasks.s2t.task import adapter_token_ids, build_speech_llm
from echox.tasks.t2c.task import TextUnitsTaskConfig, t2c_model_of
from echox.tasks.trained_encoder import check_encoder


def join_stages(
    parts: Parts,
    speech_text: Checkpoint,
    text_units: Checkpoint,
    codec: Codec,
    denoiser: DenoisingConfig,
    segments: SegmentsConfig | None,
    *,
    with_teacher: bool,
) -> EchoModel:
    """Join the models of S2T and T2C checkpoints by an untrained denoising adapter.

    Args:
        parts: encoder and backbone of the recipe.
        speech_text: checkpoint of S2T.
        text_units: checkpoint of T2C.
        codec: in use.
        denoiser: shape of the denoising adapter.
        segments: how answers are cut; None leaves them whole.
        with_teacher: keep a frozen copy of T2C beside the model, for labels at every step.

    Raises:
        CheckpointError: a checkpoint does not fit, or T2C was trained with another codec.
    """
    trained_with = text_units.meta["lineage"]["data"].get("codec")
    if trained_with != codec.fingerprint():
        raise CheckpointError(
            f"T2C checkpoint {text_units.folder} was trained with codec {trained_with}, "
            f"but codec {codec.fingerprint()} is in use; set codec.folder to the former"
        )
    # Shapes as the checkpoints record them: the recipe's may have changed since.
    shape = recorded_adapter(speech_text)
    speech_llm = build_speech_llm(parts, shape, adapter_token_ids(speech_text))
    check_encoder(speech_llm.encoder, speech_text)
    # All tensors must have a place: what a checkpoint holds was trained.
    checkpoint.fill(speech_llm, speech_text, set(speech_text.tensors))
    t2c_config = recorded_config(text_units, TextUnitsTaskConfig)
    # Over the S2T model's text rows, in whose space the hidden states are denoised.
    t2c = t2c_model_of(t2c_config, speech_llm.backbone, codec)
    checkpoint.fill(t2c, text_units, set(text_units.tensors))
    adapter = DenoisingAdapter(denoiser, speech_llm.backbone.hidden_size)
    teacher = teacher_of(t2c) if with_teacher else None
    return EchoModel(speech_llm, adapter, t2c, segments, teacher)
