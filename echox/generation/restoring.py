"""Finished checkpoints as models again: everything they need is in their own recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from echox import checkpoint
from echox.backbones.base import BACKBONES, Backbone
from echox.checkpoint import Checkpoint
from echox.codecs.base import CODECS, Codec, CodecConfig
from echox.encoders.base import ENCODERS
from echox.errors import CheckpointError, ConfigError
from echox.models.denoising import DenoisingAdapter, TextVoice, join_voice
from echox.models.echo import EchoModel
from echox.models.speech_llm import SpeechLLM, join_speech_llm
from echox.registry import Registry
from echox.tasks.base import TASKS


def load_stage(folder: str | Path, stages: tuple[str, ...]) -> Checkpoint:
    """A finished checkpoint of one of some stages.

    Raises:
        CheckpointError: it is missing, damaged, or of another stage.
    """
    found = checkpoint.load(Path(folder))
    _refuse_other(found, stages)
    return found


def _refuse_other(found: Checkpoint, stages: tuple[str, ...]) -> None:
    stage = found.meta.get("stage")
    if stage not in stages:
        raise CheckpointError(f"{found.folder} is a checkpoint of stage {stage!r}; this needs one of {' or '.join(stages)}")
    if _begins_from_folder(found.meta.get("recipe"), stage):
        raise CheckpointError(
            f"{found.folder} was trained in the published form; write 'echox-prepare export {found.folder} output=FOLDER', and name that folder"
        )


def _begins_from_folder(recipe: Any, stage: str) -> bool:
    """Whether a stage was trained in the published form: it began from a folder, without which its weights are no model."""
    plan = recipe.get(stage) if isinstance(recipe, Mapping) else None
    task = plan.get("task") if isinstance(plan, Mapping) else None
    return isinstance(task, Mapping) and "checkpoint" in task


def speech_llm_of(found: Checkpoint, backbone: Backbone | None = None) -> SpeechLLM:
    """The S2T model of an s2t checkpoint, its weights filled in."""
    model = _unfilled_speech_llm(found, "", backbone)
    checkpoint.fill(model, found, set(found.tensors))
    return model.eval()


def echo_of(found: Checkpoint, codec: Codec) -> EchoModel:
    """The Echo model of an echo checkpoint, its weights filled in."""
    speech_llm = _unfilled_speech_llm(found, "speech_llm.", None)
    task = _task(found, "echo")
    denoiser = DenoisingAdapter(task.denoiser, speech_llm.backbone.hidden_size)
    model = EchoModel(speech_llm, denoiser, _unfilled_voice(found, speech_llm.backbone, codec), task.segments)
    checkpoint.fill(model, found, set(found.tensors))
    return model.eval()


def voice_of(found: Checkpoint, backbone: Backbone, codec: Codec) -> TextVoice:
    """The T2C model of a t2c checkpoint, its weights filled in."""
    voice = _unfilled_voice(found, backbone, codec)
    checkpoint.fill(voice, found, set(found.tensors))
    return voice.eval()


def backbone_of(found: Checkpoint) -> Backbone:
    """The pretrained language model of a checkpoint's recipe."""
    return BACKBONES.build(_part(found, "backbone", BACKBONES)).eval()


def codec_of(found: Checkpoint, folder: str | None = None) -> Codec:
    """The codec a checkpoint was trained with.

    Args:
        folder: where the codec lies now; None takes the folder that the recipe names.
    Raises:
        CheckpointError: it is not the codec of the checkpoint's lineage.
        ConfigError: a folder is given, and this codec has none; or it has nothing to speak with.
    """
    codec = CODECS.build(_speaking(found, folder)).eval()
    check_codec(found, codec)
    return codec


def refuse_mute(folder: Path, codec_folder: str | None = None) -> None:
    """See, before anything is loaded, that what a finished checkpoint of echo or t2c says can be heard.

    Args:
        codec_folder: as in `codec_of`.
    Raises:
        CheckpointError: as `load_stage`. ConfigError: as `codec_of`.
    """
    found = Checkpoint(folder, checkpoint.verify(folder), {}, None)
    _refuse_other(found, ("echo", "t2c"))
    _speaking(found, codec_folder)


def _speaking(found: Checkpoint, folder: str | None) -> CodecConfig:
    """The config of a checkpoint's codec, as it lies now."""
    config = _part(found, "codec", CODECS)
    if folder is not None:
        place = next((field.name for field in dataclasses.fields(config) if field.name in ("folder", "weights")), None)
        if place is None:
            raise ConfigError(f"codec_folder is {folder!r}, but the {CODECS.name_of(config)} codec of {found.folder} is not kept in a folder; leave it out")
        config = dataclasses.replace(config, **{place: folder})
    if reason := CODECS.entry_of(config).implementation.why_mute(config):
        raise ConfigError(f"{found.folder} cannot be heard: {reason}")
    return config


def check_codec(found: Checkpoint, codec: Codec) -> None:
    """
    Raises:
        CheckpointError: the checkpoint was trained with another codec.
    """
    trained_with = found.meta.get("lineage", {}).get("data", {}).get("codec")
    if trained_with != codec.fingerprint():
        raise CheckpointError(f"{found.folder} was trained with codec {trained_with}, but the codec at hand is {codec.fingerprint()}; set codec_folder to the former")


def _unfilled_speech_llm(found: Checkpoint, prefix: str, backbone: Backbone | None) -> SpeechLLM:
    name = f"{prefix}adapter.token_ids"
    if name not in found.tensors:
        raise CheckpointError(f"{found.folder} holds no speech adapter ({name} is missing); it was not written by this version of echox")
    encoder = ENCODERS.build(_part(found, "encoder", ENCODERS))
    return join_speech_llm(encoder, backbone or backbone_of(found), _task(found, "s2t").adapter, found.tensors[name])


def _unfilled_voice(found: Checkpoint, backbone: Backbone, codec: Codec) -> TextVoice:
    task = _task(found, "t2c")
    return join_voice(task.decoder, task.spelling_channels, backbone, codec.word_count, codec.codebooks)


def _part(found: Checkpoint, kind: str, registry: Registry) -> Any:
    return registry.parse(_recorded(found, found.meta.get("recipe"), kind))


def _task(found: Checkpoint, stage: str) -> Any:
    return TASKS.parse(_recorded(found, _recorded(found, found.meta.get("recipe"), stage), "task"))


def _recorded(found: Checkpoint, recipe: Any, key: str) -> Mapping[str, Any]:
    value = recipe.get(key) if isinstance(recipe, Mapping) else None
    if not isinstance(value, Mapping):
        raise CheckpointError(f"the recipe in {found.folder} says nothing of {key!r}, so its model cannot be rebuilt; train it with echox-train")
    return value
