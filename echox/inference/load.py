"""Finished checkpoints as pipelines; all that they need is in the recipe inside the checkpoint."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from echox.codecs.base import CODECS, Codec, CodecConfig
from echox.core.checkpoint import META, Checkpoint, described, load, verify
from echox.core.device import device_named, multiplies_bf16_fast
from echox.core.errors import CheckpointError, ConfigError, EchoxError
from echox.core.number_format import recorded
from echox.inference.pipeline import MAX_TOKENS, SpeechToSpeechPipeline
from echox.inference.release import RELEASE_TOKENS, load_release_pipeline
from echox.inference.tts import TTSPipeline
from echox.models.denoising import T2CModel
from echox.models.echo import EchoBase
from echox.models.release.folder import is_release
from echox.models.speech_llm import SpeechLLM
from echox.tasks.base import TASKS, Task, Use
from echox.tasks.recorded import recorded_part, recorded_task
from echox.tasks.restored import recorded_backbone

log = logging.getLogger(__name__)

ANSWERS = (Use.answer_aloud, Use.answer)  # the ways to answer, the fuller one first
USES = {
    Use.answer_aloud: "answers aloud",
    Use.answer: "answers in text",
    Use.synthesize: "synthesizes text",
}


def load_answering(
    checkpoint: str | Path,
    *,
    device: str = "auto",
    codec_folder: str | None = None,
    encoder_folder: str | None = None,
    backbone_folder: str | None = None,
    max_tokens: int | None = None,
    answer_silence: bool = False,
) -> SpeechToSpeechPipeline:
    """Load whatever answers spoken questions: a run, a stage, a checkpoint, or a released folder.

    Args:
        checkpoint: a run's folder, of which the last stage that answers is taken, aloud before in
            text alone; a stage's folder or its `final`; or a published EchoX or Soundwave folder.
        device: auto, cpu, cuda or cuda:N.
        codec_folder: where the codec lies now, if not where it was in training.
        encoder_folder: where the encoder lies now, if not where it was in training, or where
            Whisper lies, for a published folder that does not say it.
        backbone_folder: where the language model lies now, if not where it was in training.
        max_tokens: text tokens of an answer at most; None takes 512 for a published folder and 64
            for others.
        answer_silence: answer where nothing was heard too.

    Raises:
        CheckpointError: nothing there answers, or it is damaged.
        ConfigError, PluginError, AssetError: a part of it cannot be had.
    """
    folder = Path(checkpoint)
    if is_release(folder):
        if backbone_folder is not None:
            raise ConfigError(
                f"backbone_folder is {backbone_folder!r}, but {folder} is a published folder, "
                "which holds its language model; leave it out"
            )
        limit = RELEASE_TOKENS if max_tokens is None else max_tokens
        pipeline = load_release_pipeline(
            folder, device=device, encoder_folder=encoder_folder, max_tokens=limit
        )
    else:
        limit = MAX_TOKENS if max_tokens is None else max_tokens
        final = answering_checkpoint(folder)
        pipeline = load_pipeline(
            final,
            device=device,
            codec_folder=codec_folder,
            encoder_folder=encoder_folder,
            backbone_folder=backbone_folder,
            max_tokens=limit,
        )
    pipeline.answer_silence = answer_silence
    return pipeline


def answering_checkpoint(folder: Path) -> Path:
    """Find the finished checkpoint in a run's folder, a stage's folder, or the folder itself.

    Raises:
        CheckpointError: there is no such folder, of which the error offers the newest run beside
            it; or a run has no finished stage that answers.
    """
    if not folder.exists():
        raise CheckpointError(f"{folder} is not a checkpoint: it does not exist{_offer(folder)}")
    if (folder / META).is_file() or not folder.is_dir():
        return folder
    if (folder / "final").is_dir():
        return folder / "final"
    _warn_of_left_out(folder)
    if final := finished_stage(folder, *ANSWERS):
        return final
    raise CheckpointError(
        f"{folder} holds no finished stage that answers spoken questions; "
        "train one, or name a checkpoint (runs/NAME/echo/final) or a published folder"
    )


def _warn_of_left_out(run: Path) -> None:
    """Name the finished stages of a run whose use cannot be told, and why."""
    for final in finished_stages(run):
        try:
            _recorded_use(final)
        except EchoxError as error:
            log.warning("%s; this stage is left out", error)


def _offer(folder: Path) -> str:
    """Return the newest run beside a checkpoint that does not exist, as the end of an error."""
    # The folder of runs is the first of its parents that exists: runs/NAME/echo/final.
    runs = next(parent for parent in folder.absolute().parents if parent.is_dir())
    finals = {run: finished_stage(run, *ANSWERS) for run in (runs, *runs.iterdir())}
    ages = {run: (final / META).stat().st_mtime_ns for run, final in finals.items() if final}
    if not ages:
        return "; train one with echox-train, or name a published folder"
    newest = max(ages, key=lambda run: ages[run])
    if newest.is_relative_to(Path.cwd()):
        newest = newest.relative_to(Path.cwd())
    return f"; the newest run that answers is there with checkpoint={newest}"


def finished_stages(run: Path) -> list[Path]:
    """List the finished checkpoints of a run's stages, `run`/STAGE/final, the oldest first."""
    return sorted(
        (final for final in run.glob("*/final") if (final / META).is_file()),
        key=lambda final: (final / META).stat().st_mtime_ns,
    )


def finished_stage(run: Path, *uses: Use) -> Path | None:
    """Find a run's finished checkpoint that can be used in one of some ways.

    Args:
        run: the run's folder.
        uses: in the order of preference.

    Returns:
        of several with the same use the one that was finished last, since it was trained on the
        others; None where there is none.
    """
    finals = [(final, _use_of(final)) for final in reversed(finished_stages(run))]
    return next((final for use in uses for final, own in finals if own is use), None)


def _use_of(final: Path) -> Use | None:
    try:
        return _recorded_use(final)
    except EchoxError:  # damaged, or of a plugin that is not here: another stage may be neither
        return None


def _recorded_use(final: Path) -> Use | None:
    task = recorded_task(Checkpoint(final, described(final), {}, None))
    return TASKS.entry_of(task).implementation.use


def load_pipeline(
    folder: str | Path,
    *,
    device: str = "auto",
    codec_folder: str | None = None,
    encoder_folder: str | None = None,
    backbone_folder: str | None = None,
    max_tokens: int = MAX_TOKENS,
    bf16: bool | None = None,
) -> SpeechToSpeechPipeline:
    """Load an echo or s2t checkpoint as a pipeline; s2t answers in text alone.

    Args:
        folder: a finished checkpoint, `runs/NAME/echo/final`.
        device: auto, cpu, cuda or cuda:N.
        codec_folder: where the codec lies now, if not where it was in training.
        encoder_folder: the same of the encoder.
        backbone_folder: the same of the language model.
        max_tokens: text tokens of an answer at most.
        bf16: run the models under bfloat16 autocast; None does on a CPU as its training on one did,
            and elsewhere where it is faster.

    Raises:
        CheckpointError: it is missing, damaged, of another stage, or its codec is not the one it
            was trained with.
        ConfigError: its codec cannot decode.
        PluginError, AssetError: a part it was trained with is not there.
    """
    checkpoint, task = load_checkpoint(folder, *ANSWERS)
    checkpoint = moved(checkpoint, encoder=encoder_folder, backbone=backbone_folder)
    target = device_named(device)
    bf16 = _trained_in_bf16(checkpoint, target) if bf16 is None else bf16
    codec = codec_of(checkpoint, codec_folder) if task.use is Use.answer_aloud else None
    model = task.restore(checkpoint, codec=codec)
    if not isinstance(model, (EchoBase, SpeechLLM)):
        raise _unusable(checkpoint, model, "EchoBase or SpeechLLM")
    codec = None if codec is None else codec.to(target)
    return SpeechToSpeechPipeline(model.to(target), codec, max_tokens=max_tokens, bf16=bf16)


def moved(checkpoint: Checkpoint, **folders: str | None) -> Checkpoint:
    """Return a checkpoint whose recipe names other folders of the weights of its parts.

    Args:
        checkpoint: with the metadata of its recipe.
        folders: kind of part -> its folder; None leaves the one that the recipe names.

    Raises:
        ConfigError: a folder does not exist, or the part has no weights.
    """
    recipe = dict(checkpoint.meta.get("recipe") or {})
    for kind, folder in folders.items():
        if folder is None:
            continue
        part = recipe.get(kind)
        if not isinstance(part, dict) or "weights" not in part:
            raise ConfigError(
                f"{kind}_folder is {folder!r}, but the {kind} of {checkpoint.folder} has no "
                "weights of its own; leave it out"
            )
        if not Path(folder).is_dir():
            raise ConfigError(f"{kind}_folder is {folder!r}, which is no folder")
        recipe[kind] = {**part, "weights": str(Path(folder).absolute())}
    return dataclasses.replace(checkpoint, meta={**checkpoint.meta, "recipe": recipe})


def load_tts_pipeline(
    folder: str | Path,
    *,
    device: str = "auto",
    codec_folder: str | None = None,
    backbone_folder: str | None = None,
    beside: SpeechToSpeechPipeline | None = None,
    bf16: bool | None = None,
) -> TTSPipeline:
    """Load a T2C checkpoint as a pipeline that synthesizes typed text.

    Args:
        folder: a finished checkpoint, `runs/NAME/t2c/final`.
        device: auto, cpu, cuda or cuda:N; that of `beside` where it is given.
        codec_folder: where the codec lies now, if not where it was in training.
        backbone_folder: the same of the language model.
        beside: a pipeline of the same run, whose language model and codec are shared.
        bf16: as in `load_pipeline`.

    Raises:
        CheckpointError: as `load_pipeline`; or `beside` has another codec.
        ConfigError: as `load_pipeline`.
    """
    checkpoint, task = load_checkpoint(folder, Use.synthesize)
    checkpoint = moved(checkpoint, backbone=backbone_folder)
    if beside is None:
        target, codec = device_named(device), None
        backbone = recorded_backbone(checkpoint).to(target)
    else:
        target, backbone, codec = beside.device, beside.backbone, beside.codec
    if codec is None:  # an S2T pipeline has none either
        codec = codec_of(checkpoint, codec_folder).to(target)
    check_codec(checkpoint, codec)
    bf16 = _trained_in_bf16(checkpoint, target) if bf16 is None else bf16
    restored = task.restore(checkpoint, backbone=backbone, codec=codec)
    if not isinstance(restored, T2CModel):
        raise _unusable(checkpoint, restored, "T2CModel")
    return TTSPipeline(restored.to(target), backbone, codec, bf16=bf16)


def _unusable(checkpoint: Checkpoint, model: nn.Module, kinds: str) -> CheckpointError:
    return CheckpointError(
        f"{checkpoint.folder} restores a {type(model).__name__}, but a pipeline answers with "
        f"{kinds}; the task's `restore` must return one"
    )


def _trained_in_bf16(checkpoint: Checkpoint, device: torch.device) -> bool:
    if device.type != "cpu":
        return multiplies_bf16_fast(device)
    # The format that training recorded: another one would change some answers.
    return recorded(checkpoint.meta.get("lineage", {}).get("number_format")).bf16


def load_checkpoint(folder: str | Path, *uses: Use) -> tuple[Checkpoint, type[Task]]:
    """Load a finished checkpoint that can be used in one of some ways.

    Returns:
        the checkpoint, and the class of its task, which restores the model.

    Raises:
        CheckpointError: it is missing, damaged, or cannot be used so.
    """
    checkpoint = load(Path(folder))
    return checkpoint, _task_for(checkpoint, uses)


def _task_for(checkpoint: Checkpoint, uses: Sequence[Use]) -> type[Task]:
    task = TASKS.entry_of(recorded_task(checkpoint)).implementation
    if task.use is None:
        task.restore(checkpoint)  # which says why it cannot be used
    if task.use not in uses:
        raise CheckpointError(
            f"{checkpoint.folder} is a checkpoint of stage {checkpoint.meta['stage']!r}; "
            f"this needs one that {' or '.join(USES[use] for use in uses)}"
        )
    return task


def codec_of(checkpoint: Checkpoint, folder: str | None = None) -> Codec:
    """Build the codec that a checkpoint was trained with.

    Args:
        checkpoint: of stage echo or t2c.
        folder: where the codec lies now; None takes the folder that the recipe names.

    Raises:
        CheckpointError: it is not the codec of the checkpoint's lineage.
        ConfigError: a folder is given, and this codec has none; or it cannot decode.
    """
    codec = CODECS.build(_codec_config(checkpoint, folder)).eval()
    check_codec(checkpoint, codec)
    return codec


def refuse_undecodable(folder: Path, codec_folder: str | None = None) -> None:
    """Check that the codec of an echo or t2c checkpoint can decode, before anything is loaded.

    Args:
        folder: a finished checkpoint.
        codec_folder: as in `codec_of`.

    Raises:
        CheckpointError: as `load_checkpoint`.
        ConfigError: as `codec_of`.
    """
    # The meta file alone: reading the tensors would take longer than the check.
    checkpoint = Checkpoint(folder, verify(folder), {}, None)
    _task_for(checkpoint, (Use.answer_aloud, Use.synthesize))
    _codec_config(checkpoint, codec_folder)


def _codec_config(checkpoint: Checkpoint, folder: str | None) -> CodecConfig:
    """The config of a checkpoint's codec, with the folder where it lies now."""
    config = recorded_part(checkpoint, "codec", CODECS)
    if folder is not None:
        config = dataclasses.replace(config, **{_folder_field(config, checkpoint, folder): folder})
    if reason := CODECS.entry_of(config).implementation.cannot_decode_reason(config):
        raise ConfigError(f"{checkpoint.folder} cannot be heard: {reason}")
    return config


def _folder_field(config: CodecConfig, checkpoint: Checkpoint, folder: str) -> str:
    """The name of the field that says where a codec lies."""
    for field in dataclasses.fields(config):
        # Codecs of this package name their place by one of these two.
        if field.name in ("folder", "weights"):
            return field.name
    raise ConfigError(
        f"codec_folder is {folder!r}, but the {CODECS.name_of(config)} codec of "
        f"{checkpoint.folder} is not kept in a folder; leave it out"
    )


def check_codec(checkpoint: Checkpoint, codec: Codec) -> None:
    """Check that a checkpoint was trained with this codec.

    Raises:
        CheckpointError: it was trained with another one.
    """
    trained_with = checkpoint.meta.get("lineage", {}).get("data", {}).get("codec")
    # Units of another codec would be decoded without an error, to noise.
    if trained_with != codec.fingerprint():
        raise CheckpointError(
            f"{checkpoint.folder} was trained with codec {trained_with}, but the codec at hand is "
            f"{codec.fingerprint()}; set codec_folder to the former"
        )
