"""Where Echo begins: S2T and T2C as they were trained, joined."""

from __future__ import annotations

from echox import checkpoint
from echox.checkpoint import Checkpoint
from echox.codecs.base import Codec
from echox.errors import CheckpointError
from echox.models.denoising import DenoisingAdapter, DenoisingConfig
from echox.models.echo import EchoModel, teacher_of
from echox.models.segmenting import SegmentsConfig
from echox.tasks.base import TASKS, Parts
from echox.tasks.speech_text import adapter_token_ids, build_speech_llm
from echox.tasks.text_units import build_voice


def joined_stages(
    parts: Parts,
    speech_text: Checkpoint,
    text_units: Checkpoint,
    codec: Codec,
    denoiser: DenoisingConfig,
    segments: SegmentsConfig | None,
    *,
    with_teacher: bool,
) -> EchoModel:
    """S2T and T2C, as their checkpoints left them, joined by a fresh denoising adapter.

    Args:
        with_teacher: keep a frozen copy of T2C beside it, which makes labels at every step.
    Raises:
        CheckpointError: a checkpoint does not fit, or T2C was trained with another codec.
    """
    trained_with = text_units.meta["lineage"]["data"].get("codec")
    if trained_with != codec.fingerprint():
        raise CheckpointError(
            f"T2C checkpoint {text_units.folder} was trained with codec {trained_with}, but codec {codec.fingerprint()} is in use; "
            "set codec.folder to the former"
        )
    shape = TASKS.parse(speech_text.meta["recipe"]["s2t"]["task"]).adapter
    speech_llm = build_speech_llm(parts, shape, adapter_token_ids(speech_text))
    checkpoint.fill(speech_llm, speech_text, set(speech_text.tensors))
    voice = build_voice(TASKS.parse(text_units.meta["recipe"]["t2c"]["task"]), speech_llm.backbone, codec)
    checkpoint.fill(voice, text_units, set(text_units.tensors))
    adapter = DenoisingAdapter(denoiser, speech_llm.backbone.hidden_size)
    return EchoModel(speech_llm, adapter, voice, segments, teacher_of(voice) if with_teacher else None)
