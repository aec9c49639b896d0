"""Loading a released EchoX or Soundwave folder as a pipeline."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch

from echox.assets import asset_folder
from echox.codecs.base import CODECS
from echox.core.checkpoint import META
from echox.core.device import device_named
from echox.core.errors import AssetError
from echox.encoders.base import ENCODERS, Encoder
from echox.inference.pipeline import SpeechToSpeechPipeline
from echox.models.release.echo import ReleaseEcho
from echox.models.release.folder import Release, build, read_release
from echox.models.release.hearing import check_encoder
from echox.models.release.model import ReleaseSpeechLLM
from echox.models.release.names import INNER_WHISPER

RELEASE_TOKENS = 512  # of an answer's text, as in the release's own script


def load_release_pipeline(
    folder: str | Path,
    *,
    device: str = "auto",
    encoder_folder: str | None = None,
    max_tokens: int = RELEASE_TOKENS,
) -> SpeechToSpeechPipeline:
    """Load a released EchoX or Soundwave folder as a pipeline.

    Args:
        folder: as downloaded, or as `echox-prepare import` wrote it.
        device: auto, cpu, cuda or cuda:N.
        encoder_folder: where Whisper lies; None finds it by the folder's `audio_tower`, and
            Soundwave's among its own weights.
        max_tokens: text tokens of an answer at most.

    Raises:
        CheckpointError, ConfigError: a file or a tensor is missing, damaged or misshapen.
        AssetError: Whisper cannot be had.
    """
    target = device_named(device)
    release = read_release(folder)
    encoder = _encoder(encoder_folder or whisper_of(release), release.config["adapter_size"])
    # Half precision as released where that is fast; CPUs multiply it slowly.
    model = build(release, dtype=None if target.type == "cuda" else torch.float32)
    speech_llm = ReleaseSpeechLLM(encoder, model).to(target)
    if not release.speaks:
        # Soundwave has no unit translator, and no vocoder in its folder.
        return SpeechToSpeechPipeline(speech_llm, None, max_tokens=max_tokens, bf16=False)
    codec = CODECS.build(CODECS.parse({"name": "unit_hifigan", "folder": str(folder)}))
    echo, codec = ReleaseEcho(speech_llm), codec.to(target)
    # The weights have their precision already, so nothing runs under autocast.
    return SpeechToSpeechPipeline(echo, codec, max_tokens=max_tokens, bf16=False)


def _encoder(weights: str, dim: int) -> Encoder:
    """The Whisper of a folder.

    Raises:
        CheckpointError: its frames have another number of channels than the adapter takes.
    """
    # The release pads every window to Whisper's 30 seconds.
    config = ENCODERS.parse({"name": "whisper", "weights": weights, "pad_to_window": True})
    encoder = ENCODERS.build(config)
    check_encoder(encoder, dim, f"the Whisper in {weights}", "encoder_folder")
    return encoder


def whisper_of(release: Release) -> str:
    """Find the Whisper of a released folder.

    Soundwave's is among its own weights. EchoX's path is relative to the folder it was started
    from: tried are that of this process, the checkpoint's own and the one above it, and what
    `echox-prepare import` noted; then the catalogue and the hub are asked.

    Returns:
        a folder.

    Raises:
        AssetError: it is nowhere.
    """
    if any(name.startswith(INNER_WHISPER) for name in release.tensors):
        return str(release.folder)
    tower = str(release.config.get("audio_tower") or "")
    for place in _whisper_places(release.folder, tower):
        # A folder of this name may hold something else.
        if (place / "config.json").is_file():
            return str(place)
    # A path names no model of the hub, but its last part may be that of OpenAI's model.
    is_hub_name = tower and not tower.startswith((".", "/"))
    try:
        return str(asset_folder(tower if is_hub_name else "openai/" + Path(tower).name))
    except AssetError as error:
        raise AssetError(
            f"the Whisper of {release.folder} ({tower or 'audio_tower is not in its config.json'}) "
            "was not found; set encoder_folder to where it lies"
        ) from error


def _whisper_places(folder: Path, tower: str) -> Iterator[Path]:
    """Where the Whisper of a folder may lie, the likeliest place first."""
    if tower:
        yield Path(tower).expanduser()
        yield folder / tower
        yield folder.parent / tower
        yield folder.parent / Path(tower).name
    if noted := _noted_whisper(folder):
        yield Path(noted)


def _noted_whisper(folder: Path) -> str | None:
    """The folder that `echox-prepare import` noted, if any."""
    # A folder as downloaded has no such file.
    try:
        return json.loads((folder / META).read_text("utf-8")).get("whisper")
    except (OSError, ValueError):
        return None
