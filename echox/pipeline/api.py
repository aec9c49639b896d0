"""Training, evaluation and answers from Python, as the commands do them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from echox.core.config import near
from echox.core.errors import ConfigError
from echox.inference.base import Pipeline
from echox.inference.codec import CodecPipeline
from echox.inference.codec import load_codec as load_codec_pipeline
from echox.inference.load import answering_checkpoint, load_answering
from echox.inference.records import ANSWERS
from echox.models.release.folder import is_release
from echox.pipeline.plugins import discover
from echox.pipeline.recipe import DEFAULT_RECIPE, load_recipe
from echox.pipeline.recipe_files import plugin_dirs_of
from echox.pipeline.run import run_recipe


def load(
    checkpoint: str | Path = f"runs/{DEFAULT_RECIPE}",
    *,
    device: str = "auto",
    codec_folder: str | None = None,
    encoder_folder: str | None = None,
    backbone_folder: str | None = None,
    max_tokens: int | None = None,
    answer_silence: bool = False,
    plugin_dirs: Sequence[str | Path] = (),
) -> Pipeline:
    """Load a finished run, stage or published folder, and answer spoken questions with it.

        pipeline = echox.load("runs/echo_mini")
        answer = pipeline("question.wav")
        print(answer.heard, answer.text)
        answer.save("answer.wav")

    Args:
        checkpoint: a run's folder, of which the last stage that answers is taken; a stage's folder
            or its `final`; or a published EchoX or Soundwave folder.
        device: auto, cpu, cuda or cuda:N.
        codec_folder: where the codec lies now, if not where it was in training.
        encoder_folder: where the encoder lies now, if not where it was in training, or where
            Whisper lies, for a published folder that does not say it.
        backbone_folder: where the language model lies now, if not where it was in training.
        max_tokens: text tokens of an answer at most; None takes 512 for a published folder and 64
            for others.
        answer_silence: answer where nothing was heard too; otherwise such an answer is empty and
            has its reason in `unheard`.
        plugin_dirs: folders of plugins beside ./plugins and ECHOX_PLUGINS; their code is run.

    Raises:
        CheckpointError: nothing there answers, or it is damaged.
        ConfigError, PluginError, AssetError: a part of it cannot be had.
    """
    # A checkpoint may be of a plugin's task.
    discover(plugin_dirs)
    return load_answering(
        checkpoint,
        device=device,
        codec_folder=codec_folder,
        encoder_folder=encoder_folder,
        backbone_folder=backbone_folder,
        max_tokens=max_tokens,
        answer_silence=answer_silence,
    )


def load_codec(codec: str | Path, *, device: str = "auto", **settings: Any) -> CodecPipeline:
    """Load a codec by the folder it was fitted to, or by its registered name.

        codec = echox.load_codec("runs/echo_mini/codec")
        units = codec.encode("clip.wav")
        codec.decode(units).save("copy.wav")

    Args:
        codec: a folder that `echox-prepare codec` or a run wrote, or a name such as "mimi".
        device: auto, cpu, cuda or cuda:N.
        settings: fields of the codec's config.

    Raises:
        ConfigError: there is no such codec, or a setting is not one of its fields.
        AssetError, CheckpointError: its weights cannot be had.
    """
    discover()
    return load_codec_pipeline(codec, device=device, **settings)


def train(
    recipe: str = DEFAULT_RECIPE,
    settings: Mapping[str, Any] | Sequence[str] = (),
    *,
    recipe_dirs: Sequence[str | Path] = (),
) -> Path:
    """Run a recipe, as `echox-train` does; what is finished is left alone, what was begun goes on.

        echox.train("echo_tiny", {"run_dir": "runs/first", "s2t.train.steps": 60})

    Args:
        recipe: name of a recipe, or the path of a YAML file.
        settings: fields by their dotted names, or overrides as they are typed (`a.b=value`).
        recipe_dirs: folders of recipes that are searched before all others.

    Returns:
        the run's folder.

    Raises:
        EchoxError: the recipe, a setting, a part or the data cannot be used.
    """
    overrides = overrides_of(settings)
    # Before the recipe is composed, whose parts may be of these plugins.
    discover(plugin_dirs_of(recipe, overrides, recipe_dirs))
    composed = load_recipe(recipe, overrides, recipe_dirs)
    run_recipe(composed)
    return Path(composed.run_dir)


def overrides_of(settings: Mapping[str, Any] | Sequence[str]) -> list[str]:
    """Turn settings into overrides as they are typed.

    Args:
        settings: values by dotted names, or overrides already.
    """
    if isinstance(settings, Mapping):
        return [f"{key}={_typed(value)}" for key, value in settings.items()]
    return list(settings)


def _typed(value: Any) -> str:
    """Write a value in the grammar of overrides."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(_typed, value))}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}: {_typed(item)}" for key, item in value.items()) + "}"
    return str(value)


def evaluate(run: str | Path, **settings: Any) -> dict[str, Any]:
    """Score a finished run and write its report, as `echox-evaluate` does.

    Args:
        run: folder of the run.
        settings: further fields of `EvaluateConfig`, such as `spoken_rows=60`.

    Returns:
        the content of `report.json`.

    Raises:
        EchoxError: nothing in the run can be scored, or a setting is not one of the fields.
    """
    # Imported here because a report needs a recogniser, which nothing else does.
    from echox.evaluation.config import EvaluateConfig
    from echox.evaluation.report import evaluate as write_report

    _refuse_unknown(settings, EvaluateConfig, "a report")
    discover(settings.get("plugin_dirs", ()))
    return write_report(EvaluateConfig(run=str(run), **settings))


def generate(
    checkpoint: str | Path,
    manifest: str | Path,
    *,
    out_dir: str | Path = "answers",
    **settings: Any,
) -> Path:
    """Answer the questions of a manifest aloud, as `echox-generate` does, and resume.

        echox.generate("runs/echo_mini", "questions.jsonl", out_dir="answers")

    Args:
        checkpoint: as `load` takes it.
        manifest: file of the questions.
        out_dir: folder of the answers: answers.jsonl and wavs/.
        settings: further fields of `GenerateConfig`, such as `batch_size=8`.

    Returns:
        the path of answers.jsonl, a line for each question; a row that could not be answered has
        its reason there.

    Raises:
        EchoxError: the checkpoint or the manifest cannot be used, a setting is not one of the
            fields, or memory ran out.
    """
    # Imported here because a program that loads a pipeline needs neither of the two.
    from echox.inference.batch_run import generate as answer_manifest
    from echox.inference.config import GenerateConfig

    _refuse_unknown(settings, GenerateConfig, "a generation")
    discover(settings.get("plugin_dirs", ()))
    folder = Path(checkpoint)
    place = folder if is_release(folder) else answering_checkpoint(folder)
    answer_manifest(
        GenerateConfig(
            checkpoint=str(place), manifest=str(manifest), out_dir=str(out_dir), **settings
        )
    )
    return Path(out_dir) / ANSWERS


def _refuse_unknown(settings: Mapping[str, Any], config_type: type, whose: str) -> None:
    """Refuse settings that are no fields; Python's own error would not name the near match."""
    names = [field.name for field in dataclasses.fields(config_type)]
    for name in settings:
        if name not in names:
            raise ConfigError(f"no setting {name!r} of {whose}{near(name, names)}")
