"""Finished checkpoints made ready to answer and to speak."""

from __future__ import annotations

from pathlib import Path

import torch

from echox.checkpoint import Checkpoint
from echox.device import device_named, multiplies_bf16_fast
from echox.generation.answering import MAX_TOKENS, Answerer, Voice
from echox.generation.restoring import backbone_of, check_codec, codec_of, echo_of, load_stage, speech_llm_of, voice_of
from echox.number_format import recorded


def load_answerer(
    folder: str | Path, *, device: str = "auto", codec_folder: str | None = None, max_tokens: int = MAX_TOKENS, bf16: bool | None = None
) -> Answerer:
    """Everything an echo or s2t checkpoint needs to answer; s2t answers in text alone.

    Args:
        folder: a finished checkpoint, `runs/NAME/echo/final`.
        codec_folder: where the codec lies now, if not where it was in training.
        bf16: run the models under bfloat16 autocast; None does on a CPU as its training on one did, and elsewhere where it is faster.
    Raises:
        CheckpointError: it is missing, damaged, of another stage, or its codec is not the one it was trained with.
        ConfigError: its codec has nothing to speak with.
        PluginError, AssetError: a part it was trained with is not there.
    """
    found = load_stage(folder, ("echo", "s2t"))
    place = device_named(device)
    bf16 = _trained_in_bf16(found, place) if bf16 is None else bf16
    if found.meta["stage"] == "s2t":
        return Answerer(speech_llm_of(found).to(place), None, max_tokens=max_tokens, bf16=bf16)
    codec = codec_of(found, codec_folder)
    return Answerer(echo_of(found, codec).to(place), codec.to(place), max_tokens=max_tokens, bf16=bf16)


def load_voice(
    folder: str | Path, *, device: str = "auto", codec_folder: str | None = None, beside: Answerer | None = None, bf16: bool | None = None
) -> Voice:
    """A T2C checkpoint that speaks typed text.

    Args:
        folder: a finished checkpoint, `runs/NAME/t2c/final`.
        beside: an answerer of the same run, whose language model and codec are shared and whose device is taken.
    Raises:
        CheckpointError: as `load_answerer`; or `beside` speaks with another codec.
        ConfigError: as `load_answerer`.
    """
    found = load_stage(folder, ("t2c",))
    place = device_named(device) if beside is None else beside.device
    backbone = backbone_of(found).to(place) if beside is None else beside.backbone
    codec = codec_of(found, codec_folder).to(place) if beside is None or beside.codec is None else beside.codec
    check_codec(found, codec)
    bf16 = _trained_in_bf16(found, place) if bf16 is None else bf16
    return Voice(voice_of(found, backbone, codec).to(place), backbone, codec, bf16=bf16)


def _trained_in_bf16(found: Checkpoint, device: torch.device) -> bool:
    if device.type != "cpu":
        return multiplies_bf16_fast(device)
    return recorded(found.meta.get("lineage", {}).get("number_format")).bf16
