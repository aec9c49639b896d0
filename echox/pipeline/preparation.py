"""Commands of `echox-prepare` for audio, codecs and releases: a config and a function for each."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from echox.assets import asset_folder
from echox.assets.shapes import shape_of
from echox.assets.sources import taking_from
from echox.backbones.base import LoraConfig
from echox.codecs.base import CODECS, CodecConfig
from echox.core import checkpoint
from echox.core.device import device_named
from echox.core.errors import AssetError, CheckpointError, ConfigError
from echox.core.number_format import kept_in
from echox.corpora.demo import build_demo_corpus
from echox.corpora.demo_config import DemoCorpusConfig
from echox.inference.release import whisper_of
from echox.models.release.export import write_release
from echox.models.release.folder import (
    CONFIG,
    files_beside,
    is_release,
    outline,
    read_release,
    release_files,
    weights_fingerprint,
)
from echox.models.release.init import write_initial_release
from echox.models.release.trainable import Merged, exported_config, is_untrained
from echox.pipeline.recipe import Recipe
from echox.pipeline.rerun import note_fit
from echox.pipeline.run import SpeechClips
from echox.pipeline.tasks import stage_task
from echox.tasks.base import Use
from echox.tasks.recorded import recorded_task


@dataclass(kw_only=True, slots=True)
class FitCodecConfig:
    """Fit a codec to recordings of the speaker it is to sound like."""

    manifests: list[str] = field(default_factory=list)
    """Manifests whose assistant audio is that speaker's."""
    codec: CodecConfig = MISSING
    """Codec to fit."""
    device: str = "auto"
    """Device to fit on: auto, cpu, cuda or cuda:N."""


@dataclass(kw_only=True, slots=True)
class ImportConfig:
    """Check a published EchoX or Soundwave folder, and copy it as a checkpoint of echox.

    Every tensor and file is checked.
    """

    folder: str = MISSING
    """Published folder, with config.json, weights, tokenizer and vocoder."""
    output: str = MISSING
    """Folder of the checkpoint; `echox-generate checkpoint=` takes it, and takes the published
    folder too."""
    encoder_folder: str | None = None
    """Folder of Whisper; without it, the folder's config.json is followed."""


@dataclass(kw_only=True, slots=True)
class BeginConfig:
    """Write a folder in EchoX's published layout to train from the start.

    It holds a pretrained Llama 3, and untrained adapters and unit translator.
    """

    language: str = MISSING
    """Folder or hub id of the language model, such as meta-llama/Llama-3.2-3B-Instruct."""
    words: str = MISSING
    """Text file of the unit words, one a line: 12, or 12_4 for a word of two units; every unit
    should be a word by itself too."""
    vocoder: str = MISSING
    """Folder with the vocoder of those units, g_00500000 and vocoder_config.json."""
    output: str = MISSING
    """Folder to write; recipe=release_finetune takes it as checkpoint."""
    encoder: str = "openai/whisper-large-v3"
    """Whisper encoder of the model: a hub id, or a folder."""
    unit_model: str | None = None
    """Size of the unit translator: null is 6 layers of 512 (EchoX-3B), small 4 of 512, medium 8 of
    768 (EchoX-8B), large 2 of the language model's width."""
    seed: int = 1
    """Seed of the untrained weights."""


@dataclass(kw_only=True, slots=True)
class ExportConfig:
    """Write a published EchoX folder of an imported checkpoint, or of a stage trained in its form.

    LoRA is merged, and tensors that were not trained are unchanged to the bit.
    """

    checkpoint: str = MISSING
    """Folder that import wrote, or a finished stage (runs/NAME/echo/final)."""
    output: str = MISSING
    """Published folder to write."""
    shard_gigabytes: float = 5.0
    """Gigabytes (10^9 bytes) of a file of weights at most; 5 in the release."""

    def __post_init__(self) -> None:
        if self.shard_gigabytes <= 0:
            raise ConfigError(f"shard_gigabytes is {self.shard_gigabytes}; use more than 0")


def make_corpus(config: DemoCorpusConfig) -> None:
    """Synthesise the demo corpus, without the answers that a recipe's language model generates.

    Raises:
        PackageError: a package of its speech synthesis is not installed.
        AssetError: a file of it is missing.
    """
    print(build_demo_corpus(config))


def fit_codec(config: FitCodecConfig) -> None:
    """Fit a codec, unless it is fitted already, and print the fields that use it.

    Raises:
        ConfigError: no manifest is named, or the codec is not one that is fitted.
        ManifestError: a manifest is broken.
    """
    codec_type = CODECS.entry_of(config.codec).implementation
    # Fitting again would give other units than those that runs were trained on.
    if codec_type.is_ready(config.codec):
        print("the codec is fitted already; nothing was done")
        return
    clips = SpeechClips(config.manifests, codec_type.fit_rate_hz(config.codec))
    codec_type.fit(config.codec, clips, device_named(config.device))
    note_fit(config.codec)
    name, folder = CODECS.name_of(config.codec), getattr(config.codec, "folder", "")
    print(f"{folder}: in a recipe, it is used with codec={name} codec.folder={folder}")


def write_labels(recipe: Recipe) -> None:
    """Generate the pseudo-labels of a recipe's Echo stage, where they are missing.

    Their folder is printed.

    Raises:
        CheckpointError: the stages before are not finished.
        ConfigError: the stage generates its labels online.
    """
    device = device_named(recipe.device)
    with kept_in(recipe.run_dir, device), taking_from(recipe.assets.allowed):
        # The stage that is named, or the one that usually has labels, or the last.
        stage = recipe.stage or recipe.last(Use.answer_aloud) or recipe.members[-1]
        task = stage_task(recipe, stage, device)
        folder = task.write_labels(task.build().to(device))
    print(f"{folder}: read with {stage}.task.labels={folder}")


def import_release(config: ImportConfig) -> None:
    """Check a published folder, and copy its files as a checkpoint.

    Weights are checked by their names and shapes, and the vocoder by building it.

    Raises:
        CheckpointError: a file or a tensor is missing, damaged or misshapen, or `output` exists.
    """
    source, output = Path(config.folder), Path(config.output)
    # Before reading gigabytes of weights.
    if output.exists():
        raise CheckpointError(
            f"{output} exists already; name another output, or take it away first"
        )
    release = read_release(source)
    if release.speaks:
        CODECS.build(CODECS.parse({"name": "unit_hifigan", "folder": str(source)}))
    # On the meta device, which needs no memory for the weights.
    model = outline(release)
    whisper = _whisper_beside(source, config.encoder_folder, release)
    lineage = {"parents": {}, "data": {}, "source": weights_fingerprint(source)}
    meta = {"stage": "published", "whisper": whisper, "lineage": lineage}
    checkpoint.keep(output, release_files(source), meta)
    count = sum(weight.numel() for weight in model.parameters())
    print(f"{output}: {count:,} parameters in {len(release.tensors)} tensors")


def _whisper_beside(source: Path, encoder_folder: str | None, release: Any) -> str | None:
    """Return the folder of Whisper for the checkpoint; None if it is in `source` or unknown."""
    try:
        whisper = encoder_folder or whisper_of(release)
        # Inside the published folder it is copied with the other files.
        return None if Path(whisper) == source else str(Path(whisper).resolve())
    except AssetError as error:
        # The checkpoint is complete without it: `encoder_folder` can name it later.
        print(f"note: {error}")
        return None


def begin_release(config: BeginConfig) -> None:
    """Write a folder to train from the start, and print it.

    Raises:
        ConfigError: the unit words cannot be read, or do not fit the vocoder.
        CheckpointError, AssetError: a part is missing or does not fit, or `output` exists.
    """
    # Built, not only read, so that a vocoder that does not fit is refused now.
    codec = CODECS.build(CODECS.parse({"name": "unit_hifigan", "folder": config.vocoder}))
    words = _unit_words(config, codec.vocab_size)
    write_initial_release(
        Path(config.output),
        asset_folder(config.language),
        words,
        codec.files(),
        tower=config.encoder,
        adapter_size=shape_of(config.encoder).d_model,
        unit_model=config.unit_model,
        seed=config.seed,
    )
    print(config.output)


def _unit_words(config: BeginConfig, unit_count: int) -> list[str]:
    try:
        words = Path(config.words).read_text("utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the unit words {config.words} cannot be read ({error}); "
            "name a text file with one a line"
        ) from error
    for word in words:
        # Special words such as <eos> are no units.
        units = [int(unit) for unit in word.split("_") if unit.isdigit()]
        if any(unit >= unit_count for unit in units):
            raise ConfigError(
                f"unit word {word!r} is beyond the {unit_count} units of the vocoder in "
                f"{config.vocoder}; the words are of other units"
            )
    return words


def export_release(config: ExportConfig) -> None:
    """Write a published folder, and print it.

    An imported checkpoint is written with its own tensors, a trained stage with the trained ones
    in the place of those that it started from.

    Raises:
        CheckpointError: the checkpoint is neither, or is damaged, the folder it was trained from
            has changed, or `output` exists.
    """
    source, output = Path(config.checkpoint), Path(config.output)
    shard_bytes = int(config.shard_gigabytes * 1e9)  # 10^9 bytes each
    if is_release(source):
        # A published folder that was not imported has no hashes to verify.
        if (source / checkpoint.META).is_file():
            checkpoint.verify(source)
        tensors = read_release(source).tensors
        write_release(output, tensors, files_beside(source), shard_bytes=shard_bytes)
    else:
        _export_trained(source, output, shard_bytes)
    print(output)


def _export_trained(source: Path, output: Path, shard_bytes: int) -> None:
    trained = checkpoint.load(source)
    task = _published_task(trained)
    if is_untrained(task.checkpoint):
        raise CheckpointError(
            f"{source} was trained from {task.checkpoint!r}, made-up weights for tests and speed "
            "work, which are not exported"
        )
    base = read_release(task.checkpoint)
    # Merging with other weights would give a model that nobody trained.
    if weights_fingerprint(base.folder) != trained.meta["lineage"]["data"].get("checkpoint"):
        raise CheckpointError(
            f"{source} was trained from other weights than {base.folder} holds now; "
            "put those it was trained from there"
        )
    # In training, the published model is the attribute `release`.
    tensors = {name.removeprefix("release."): value for name, value in trained.tensors.items()}
    has_lora = any("lora_" in name for name in tensors)
    merged = Merged(base.tensors, tensors, task.lora if has_lora else LoraConfig())
    # All but config.json, which is written anew.
    beside = [path for path in files_beside(base.folder) if path.name != CONFIG]
    config = exported_config(base.config, task.form(), merged)
    write_release(output, merged, beside, config, shard_bytes=shard_bytes)


def _published_task(trained: checkpoint.Checkpoint) -> Any:
    """Return the task of a stage trained in the published form, which names its base folder."""
    try:
        task = recorded_task(trained)
    except CheckpointError:
        task = None  # not a stage of a recipe at all, which gets the same advice
    if not hasattr(task, "checkpoint"):
        raise CheckpointError(
            f"{trained.folder} is neither what `echox-prepare import` wrote nor a stage trained "
            "in the published form; export takes these"
        )
    return task
