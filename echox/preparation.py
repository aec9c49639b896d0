"""What `echox-prepare` does to audio, codecs and published checkpoints: one config and one function a command."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from echox import checkpoint
from echox.assets import asset_folder
from echox.assets.shapes import shape_of
from echox.backbones.base import LoraConfig
from echox.chain import SpeechClips, stage_task
from echox.codecs.base import CODECS, CodecConfig
from echox.corpora.demo import build_demo_corpus
from echox.corpora.demo_config import DemoCorpusConfig
from echox.device import device_named
from echox.errors import AssetError, CheckpointError, ConfigError
from echox.generation.published import whisper_of
from echox.models.published.beginning import write_beginning
from echox.models.published.folder import CONFIG, files_beside, is_release, outline, read_release, release_files, weights_fingerprint
from echox.models.published.student import Merged, exported_config, is_untrained
from echox.models.published.writing import write_release
from echox.number_format import kept_in
from echox.recipe import Recipe
from echox.tasks.base import TASKS


@dataclass(kw_only=True, slots=True)
class FitCodecConfig:
    """Fit a codec to recordings of the voice it shall speak with."""

    manifests: list[str] = field(default_factory=list)
    """Manifests whose assistant audio is the voice."""
    codec: CodecConfig = MISSING
    """The codec to fit."""
    device: str = "auto"
    """Device to fit on: auto, cpu, cuda or cuda:N."""


@dataclass(kw_only=True, slots=True)
class ImportConfig:
    """Check a published EchoX or Soundwave folder in every tensor and file, and keep it as a checkpoint of echox."""

    folder: str = MISSING
    """The published folder, with config.json, weights, tokenizer and vocoder."""
    output: str = MISSING
    """Folder of the checkpoint; `echox-generate checkpoint=` takes it, and takes the published folder too."""
    encoder_folder: str | None = None
    """Where Whisper lies; without it, the folder's config.json is followed."""


@dataclass(kw_only=True, slots=True)
class BeginConfig:
    """Write a folder in EchoX's published layout to train from the start: a Llama 3 as it came, adapters and unit translator untrained."""

    language: str = MISSING
    """Folder or hub id of the language model, such as meta-llama/Llama-3.2-3B-Instruct."""
    words: str = MISSING
    """Text file of the unit words, one a line: 12, or 12_4 for a word of two units; every unit should stand there by itself too."""
    vocoder: str = MISSING
    """Folder with the vocoder of those units, g_00500000 and vocoder_config.json."""
    output: str = MISSING
    """Folder to write; recipe=release_finetune takes it as checkpoint."""
    encoder: str = "openai/whisper-large-v3"
    """The Whisper that is heard with: a hub id, or a folder."""
    unit_model: str | None = None
    """Size of the unit translator: null is 6 layers of 512 (EchoX-3B), small 4 of 512, medium 8 of 768 (EchoX-8B), large 2 of the language
    model's width."""
    seed: int = 1
    """Seed of the untrained weights."""


@dataclass(kw_only=True, slots=True)
class ExportConfig:
    """Write a published EchoX folder, of a checkpoint that was imported or of a stage that was trained in the published form; LoRA is
    merged, and tensors that nothing was learned for are unchanged to the bit."""

    checkpoint: str = MISSING
    """What import wrote, or a finished stage (runs/NAME/echo/final)."""
    output: str = MISSING
    """The published folder to write."""
    shard_gigabytes: float = 5.0
    """Size of a file of weights at most; 5 in the release."""

    def __post_init__(self) -> None:
        if self.shard_gigabytes <= 0:
            raise ConfigError(f"shard_gigabytes is {self.shard_gigabytes}; use more than 0")


def make_corpus(config: DemoCorpusConfig) -> None:
    """Synthesise the demo corpus; free questions stay without answers, which a recipe's language model gives them."""
    print(build_demo_corpus(config))


def fit_codec(config: FitCodecConfig) -> None:
    """Fit a codec, unless it is fitted already, and print the fields that use it.

    Raises:
        ConfigError: no manifest is named, or the codec is not one that is fitted. ManifestError: one is broken.
    """
    codec_type = CODECS.entry_of(config.codec).implementation
    if codec_type.is_ready(config.codec):
        print("the codec is fitted already; nothing was done")
        return
    codec_type.fit(config.codec, SpeechClips(config.manifests), device_named(config.device))
    folder = getattr(config.codec, "folder", "")
    print(f"{folder}: in a recipe, it is used with codec={CODECS.name_of(config.codec)} codec.folder={folder}")


def write_labels(recipe: Recipe) -> None:
    """Make the pseudo-labels that a recipe's Echo stage learns from, where they are not made yet, and print their folder.

    Raises:
        CheckpointError: the stages before are not finished. ConfigError: the stage makes its labels online.
    """
    device = device_named(recipe.device)
    with kept_in(recipe.run_dir, device):
        task = stage_task(recipe, recipe.stage or "echo", device)
        folder = task.write_labels(task.build().to(device))
    print(f"{folder}: read with echo.task.labels={folder}")


def import_release(config: ImportConfig) -> None:
    """Check a published folder, weights by their names and shapes, and its vocoder, and copy its files as a checkpoint.

    Raises:
        CheckpointError: a file or a tensor is missing, damaged or misshapen, or output exists.
    """
    source, output = Path(config.folder), Path(config.output)
    if output.exists():
        raise CheckpointError(f"{output} exists already; name another output, or take it away first")
    release = read_release(source)
    if release.speaks:
        CODECS.build(CODECS.parse({"name": "unit_hifigan", "folder": str(source)}))
    model = outline(release)
    try:
        whisper = config.encoder_folder or whisper_of(release)
        # Inside the folder itself it moves along.
        whisper = None if Path(whisper) == source else str(Path(whisper).resolve())
    except AssetError as error:
        print(f"note: {error}")
        whisper = None
    lineage = {"parents": {}, "data": {}, "source": weights_fingerprint(source)}
    checkpoint.keep(output, release_files(source), {"stage": "published", "whisper": whisper, "lineage": lineage})
    print(f"{output}: {sum(weight.numel() for weight in model.parameters()):,} parameters in {len(release.tensors)} tensors")


def begin_release(config: BeginConfig) -> None:
    """Write a folder to train from the start.

    Raises:
        ConfigError, CheckpointError, AssetError: a part is missing or does not fit; output exists.
    """
    codec = CODECS.build(CODECS.parse({"name": "unit_hifigan", "folder": config.vocoder}))
    try:
        words = Path(config.words).read_text("utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the unit words {config.words} cannot be read ({error}); name a text file with one a line") from error
    beyond = [word for word in words if any(unit.isdigit() and int(unit) >= codec.vocab_size for unit in word.split("_"))]
    if beyond:
        raise ConfigError(f"unit word {beyond[0]!r} is beyond the {codec.vocab_size} units of the vocoder in {config.vocoder}; the words are of other units")
    write_beginning(
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


def export_release(config: ExportConfig) -> None:
    """Write a published folder: of what was imported the files' own tensors, of a trained stage those with what it learned in their place.

    Raises:
        CheckpointError: the checkpoint is neither, or is damaged, or the folder it was trained from has changed; output exists.
    """
    source, output = Path(config.checkpoint), Path(config.output)
    shard_bytes = int(config.shard_gigabytes * 1e9)
    if is_release(source):
        if (source / checkpoint.META).is_file():
            checkpoint.verify(source)
        write_release(output, read_release(source).tensors, files_beside(source), shard_bytes=shard_bytes)
    else:
        _export_trained(source, output, shard_bytes)
    print(output)


def _export_trained(source: Path, output: Path, shard_bytes: int) -> None:
    found = checkpoint.load(source)
    task = _published_task(found)
    if is_untrained(task.checkpoint):
        raise CheckpointError(f"{source} was trained from {task.checkpoint!r}, made-up weights for tests and speed work, which are not exported")
    base = read_release(task.checkpoint)
    began_from = found.meta["lineage"]["data"].get("checkpoint")
    if weights_fingerprint(base.folder) != began_from:
        raise CheckpointError(f"{source} was trained from other weights than {base.folder} holds now; put those it was trained from there")
    learned = {name.removeprefix("release."): tensor for name, tensor in found.tensors.items()}
    tensors = Merged(base.tensors, learned, task.lora if any("lora_" in name for name in learned) else LoraConfig())
    beside = [path for path in files_beside(base.folder) if path.name != CONFIG]
    write_release(output, tensors, beside, exported_config(base.config, task.form(), tensors), shard_bytes=shard_bytes)


def _published_task(found: checkpoint.Checkpoint) -> Any:
    """The task of a stage trained in the published form, which knows the folder it began from."""
    stage, recipe = found.meta.get("stage"), found.meta.get("recipe")
    described = recipe.get(stage) if isinstance(recipe, dict) else None
    if not described or "checkpoint" not in described["task"]:
        raise CheckpointError(
            f"{found.folder} is neither what `echox-prepare import` wrote nor a stage trained in the published form; export takes these"
        )
    return TASKS.parse(described["task"])
