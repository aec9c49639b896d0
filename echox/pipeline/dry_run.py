"""Dry run of a recipe: sizes of its parts, memory, tokens per step, and every file that is missing.

Models are built with their true shapes on the meta device; no weights, audio or checkpoints are
read, and nothing is downloaded.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from echox.backbones.base import BACKBONES
from echox.codecs.base import CODECS
from echox.core import checkpoint
from echox.core.errors import AssetError, ConfigError, EchoxError
from echox.core.packages import TENSORBOARD, OptionalPackage, require
from echox.corpora.demo import corpus_fingerprint, corpus_packages, is_built
from echox.corpora.units import units_path
from echox.encoders.base import ENCODERS
from echox.engine.config import Precision, TrainConfig
from echox.pipeline.recipe import Recipe, from_dict, is_folder
from echox.pipeline.refit import check_family, joined
from echox.pipeline.rerun import CODEC, made_again
from echox.pipeline.steps import read_units, uses_codec
from echox.pipeline.tasks import (
    outlined_task,
    parent_folder,
    refuse_missing_parents,
    run_of_parents,
)
from echox.tasks.base import Outline

GPUS = (1, 8)
SHOWN = 6  # missing files that an error lists
GB = 1e9
STATE_BYTES = 8  # per trained weight: AdamW's two moments, float32
ROUNDED_BYTES = 2  # per trained weight: its bfloat16 copy


@dataclass(frozen=True, slots=True)
class PartSize:
    """Size of one part of a stage's model."""

    name: str
    trained: int  # weights
    frozen: int  # weights
    weight_bytes: int  # of both
    table_bytes: int  # of buffers: frozen copies of the language model's rows, filters
    gradient_bytes: int
    state_bytes: int  # of the optimiser


@dataclass(frozen=True, slots=True)
class StageSize:
    """Size of one stage, and the memory of its training."""

    stage: str
    parts: Sequence[PartSize]
    step: str  # what it reads in a step, as a phrase
    cost: int | None  # of a micro-batch at most, in the stage's cost unit; None: not known
    activation_bytes: Mapping[str, int]  # estimate, by part
    outline: Outline

    def part(self, name: str) -> PartSize:
        """Return the part of a name."""
        return next(part for part in self.parts if part.name == name)

    def memory(self, gpus: int) -> dict[str, int]:
        """Return the bytes on each of several GPUs by their purpose.

        Args:
            gpus: number of GPUs, each of which holds a replica of the model.
        """
        gradients = sum(part.gradient_bytes for part in self.parts)
        return {
            "weights": sum(part.weight_bytes for part in self.parts),
            "tables": sum(part.table_bytes for part in self.parts),
            "gradients": gradients,
            "optimiser": sum(part.state_bytes for part in self.parts),
            # Data parallelism sends gradients from buffers of their own.
            "gradient buckets": gradients if gpus > 1 else 0,
            "activations (estimate)": sum(self.activation_bytes.values()),
        }


def dry_run(recipe: Recipe) -> None:
    """Print what running the recipe would take.

    Raises:
        PackageError: packages are missing.
        AssetError: files are missing; all of them are printed before.
        EchoxError: nothing is missing, but parts do not fit each other.
    """
    recipe = _with_refit(recipe)
    print(
        f"{recipe.name}, dry run: true shapes on the meta device, no weights read; "
        "memory for GPUs that multiply bfloat16, GB = 10^9 bytes"
    )
    # Raised at the end, so that missing files are printed nevertheless.
    fault = _print_sizes(recipe)
    missing, made = missing_files(recipe), made_by_the_run(recipe)
    if made:
        print("\nmade by the run: " + ", ".join(made))
    if missing:
        # Flushed, so that it precedes the error, which goes to stderr.
        print("\n".join(["", "missing:", *(f"  {item}" for item in missing)]), flush=True)
    require(needed_packages(recipe))
    if missing:
        count = "1 file is" if len(missing) == 1 else f"{len(missing)} files are"
        raise AssetError(
            f"{count} missing for {recipe.name}, listed above; "
            "put them there, or set the fields that name them"
        )
    if fault is not None:
        raise fault
    print("\nnothing is missing")


def _with_refit(recipe: Recipe) -> Recipe:
    """Return a recipe as its run trains it: a refit's is joined with the finished run.

    Raises:
        ConfigError: a refit has no stage that answers aloud.
        CheckpointError: the finished run lacks a stage, or had a language model of another family.
    """
    if recipe.refit is None:
        return recipe
    fit = joined(recipe)
    # The tokenizer of weights that are still to be fetched cannot be compared yet.
    with contextlib.suppress(AssetError):
        check_family(fit)
    # It fits no codec and writes no units.
    return dataclasses.replace(fit.recipe, codec_speech=[], units=[])


def _print_sizes(recipe: Recipe) -> EchoxError | None:
    """Print the sizes of the stages, and return the error that ended this, or None."""
    try:
        check_codec(recipe)
        for size in stage_sizes(recipe):
            print("\n".join(["", *_stage_lines(size)]))
    except EchoxError as error:
        print(f"\nsizes cannot be told: {error}")
        return error
    return None


def stage_sizes(recipe: Recipe) -> Iterator[StageSize]:
    """Yield the sizes of the stages that the recipe runs, in order.

    Raises:
        ConfigError: the recipe has no plan of a parent.
        EchoxError: parts do not fit each other.
    """
    outlines: dict[str, Outline] = {}
    for stage in recipe.with_ancestors(recipe.planned):
        outlines[stage] = _outline(recipe, stage, outlines)
        # At once, because a later stage may freeze what this one trains.
        size = _size(stage, outlines[stage], recipe.plan(stage).train)
        if stage in recipe.planned:
            yield size


def _outline(recipe: Recipe, stage: str, before: Mapping[str, Outline]) -> Outline:
    parents = recipe.parents(stage)
    stages = [parent for parent in parents.values() if not is_folder(parent)]
    if absent := [parent for parent in stages if parent not in before]:
        raise ConfigError(
            f"stage {stage!r} builds on {', '.join(absent)}, of which the recipe has no plan; "
            "add '- _stages' to its defaults list"
        )
    run = Path(recipe.run_dir)
    outlines = {
        role: _recorded_outline(parent_folder(run, name)) if is_folder(name) else before[name]
        for role, name in parents.items()
    }
    task = outlined_task(recipe, stage)
    for role, outline in outlines.items():
        if outline.is_estimate:
            name = parents[role]
            return task.outline_of_parts(f"only an estimate is known of stage {name!r} before it")
    return task.outline(outlines)


def _recorded_outline(folder: Path) -> Outline:
    """Return the outline of a finished stage of another run, by the recipe that it records."""
    meta = checkpoint.described(folder)
    recipe, stage = from_dict(meta.get("recipe") or {}), meta["stage"]
    outlines: dict[str, Outline] = {}
    for each in recipe.with_ancestors([stage]):
        outlines[each] = _outline(recipe, each, outlines)
    return outlines[stage]


def _size(stage: str, outline: Outline, train: TrainConfig) -> StageSize:
    # A micro-batch may be limited by cost, by number of examples, or by both.
    limits = [train.batch_cost] if train.batch_cost is not None else []
    if train.batch_size is not None and outline.longest_cost is not None:
        limits.append(train.batch_size * outline.longest_cost)
    cost = min(limits, default=None)
    parts = part_sizes(outline)
    activations = {name: round((cost or 0) * size) for name, size in outline.activations.items()}
    if train.precision is not Precision.fp32 and not outline.is_estimate:
        # Autocast keeps a rounded copy of trained weights until the step ends.
        activations["weights in bfloat16"] = ROUNDED_BYTES * sum(part.trained for part in parts)
    return StageSize(stage, parts, _step(outline, train, cost), cost, activations, outline)


def _step(outline: Outline, train: TrainConfig, cost: int | None) -> str:
    limits = [f"{train.batch_size} examples"] if train.batch_size is not None else []
    if cost is None:
        return f"{train.steps:,} steps; a micro-batch: {limits[0]} at most"
    limits += [f"{cost:,} {outline.cost_unit}"]
    per_step = ", ".join(
        f"{cost * train.accumulation * gpus:,} on {gpus} GPU{'s' if gpus > 1 else ''}"
        for gpus in GPUS
    )
    return (
        f"{train.steps:,} steps; a micro-batch: {' and '.join(limits)} at most; "
        f"{outline.cost_unit} per step at most: {per_step}"
    )


def part_sizes(outline: Outline) -> list[PartSize]:
    """Return the sizes of an outline's parts.

    A weight belongs to the first part that has a prefix of its name, or else to "other".
    """
    parameters = _by_part(outline.model.named_parameters(), outline.parts)
    buffers = _by_part(outline.model.named_buffers(), outline.parts)
    # In the order of the outline, "other" last.
    return [
        _part_size(part, parameters.get(part, []), buffers.get(part, []))
        for part in {**outline.parts, **parameters, **buffers}
    ]


def _by_part(
    named: Iterable[tuple[str, Tensor]], parts: Mapping[str, Sequence[str]]
) -> dict[str, list[Tensor]]:
    tensors: dict[str, list[Tensor]] = {}
    for name, tensor in named:
        tensors.setdefault(_part_of(name, parts), []).append(tensor)
    return tensors


def _part_of(name: str, parts: Mapping[str, Sequence[str]]) -> str:
    for part, prefixes in parts.items():
        # With the dot, since `layers.1` is no prefix of `layers.10`.
        if any(f"{name}.".startswith(f"{prefix}.") for prefix in prefixes):
            return part
    return "other"


def _part_size(name: str, parameters: Sequence[Tensor], buffers: Sequence[Tensor]) -> PartSize:
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    frozen = [parameter for parameter in parameters if not parameter.requires_grad]
    return PartSize(
        name=name,
        trained=_count(trained),
        frozen=_count(frozen),
        weight_bytes=_bytes(parameters),
        table_bytes=_bytes(buffers),
        gradient_bytes=_bytes(trained),
        state_bytes=STATE_BYTES * _count(trained),
    )


def _count(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _stage_lines(size: StageSize) -> Iterator[str]:
    yield f"{size.stage}: {size.step}"
    yield (
        f"  {'part':<32}{'trained':>16}{'frozen':>16}"
        f"{'weights':>10}{'tables':>10}{'gradients':>11}{'optimiser':>11}"
    )
    numbers = PartSize.__slots__[1:]  # all fields but the name
    total = PartSize("all", *(sum(getattr(part, name) for part in size.parts) for name in numbers))
    for part in [*size.parts, total]:
        yield _part_line(part)
    for gpus in GPUS:
        memory = size.memory(gpus)
        amounts = ", ".join(f"{name} {_gb(amount)}" for name, amount in memory.items() if amount)
        total_gb = _gb(sum(memory.values()))
        yield f"  per GPU, {gpus} GPU{'s' if gpus > 1 else ''}: {total_gb} = {amounts}"
    if size.activation_bytes:
        activations = [f"{name} {_gb(amount)}" for name, amount in size.activation_bytes.items()]
        yield f"  activations (estimate): {', '.join(activations)}"
    yield from (f"  {note}" for note in size.outline.notes)


def _part_line(part: PartSize) -> str:
    # The widths are those of the heading.
    return (
        f"  {part.name:<32}{part.trained:>16,}{part.frozen:>16,}"
        f"{_gb(part.weight_bytes):>10}{_gb(part.table_bytes):>10}"
        f"{_gb(part.gradient_bytes):>11}{_gb(part.state_bytes):>11}"
    )


def _gb(amount: int) -> str:
    return f"{amount / GB:.2f} GB"


def needed_packages(recipe: Recipe) -> Iterator[OptionalPackage]:
    """Yield the optional packages that the run needs, as far as the recipe tells by itself."""
    parts = (ENCODERS, recipe.encoder), (BACKBONES, recipe.backbone), (CODECS, recipe.codec)
    for registry, config in parts:
        if config is not None:
            yield from registry.entry_of(config).implementation.packages(config)
    if any(recipe.plan(stage).train.tensorboard for stage in recipe.planned):
        yield TENSORBOARD
    # A refit makes neither a corpus nor a report.
    if recipe.refit is not None:
        return
    if recipe.corpus is not None:
        fingerprint = corpus_fingerprint(recipe.corpus, with_own_answers=True, with_words=True)
        if not is_built(Path(recipe.corpus.folder), fingerprint):
            yield from corpus_packages(recipe.corpus)
    if recipe.report is not None and not recipe.stage:
        yield from recipe.report.packages()


def check_needs(recipe: Recipe) -> None:
    """Refuse a run that lacks a package, a checkpoint or a file, before its first step.

    What only finished stages needed may be gone.

    Raises:
        PackageError: a package that the recipe needs is not installed.
        CheckpointError: a stage that comes before is not finished.
        ConfigError: parts do not fit each other.
        AssetError: files are missing, as a dry run lists them.
    """
    is_refit, recipe = recipe.refit is not None, _with_refit(recipe)
    require(needed_packages(recipe))
    run, again = Path(recipe.run_dir), made_again(recipe)
    stages = [
        stage for stage in recipe.planned if stage in again or not (run / stage / "final").exists()
    ]
    if not stages:
        return
    refuse_missing_parents(recipe, stages)
    _check_shapes(recipe)
    # Of other runs it is checked when a codec of other settings has been moved aside.
    if is_refit:
        check_codec(recipe)
    missing = missing_files(recipe, stages)
    if CODEC in again:
        missing += _missing_manifests(recipe, recipe.codec_speech)
    if missing:
        shown = ", ".join(missing[:SHOWN])
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        raise AssetError(
            f"{recipe.name} cannot begin, because of missing files: {shown}{more}; "
            "put them there, or set the fields that name them"
        )


def _check_shapes(recipe: Recipe) -> None:
    """Refuse parts and stages whose shapes do not fit each other.

    Raises:
        ConfigError: they do not.
    """
    try:
        for _ in stage_sizes(recipe):
            pass
    except AssetError:
        return  # the shapes of weights that are still to be fetched


def missing_files(recipe: Recipe, stages: Sequence[str] | None = None) -> list[str]:
    """List the files that the run needs and can neither find, make nor download.

    Args:
        recipe: the recipe of the run.
        stages: of `recipe.planned`, those that are not finished; None counts all.
    """
    stages = recipe.planned if stages is None else stages
    missing = [path for stage in stages for path in outlined_task(recipe, stage).missing()]
    missing += _missing_of_parts(recipe)
    missing += _missing_manifests(recipe, _read_manifests(recipe, stages))
    missing += [
        f"{path} (checkpoint of an earlier stage)"
        for path in _parent_folders(recipe, stages)
        if not path.exists()
    ]
    # Two stages may miss one file.
    return list(dict.fromkeys(missing))


def _missing_of_parts(recipe: Recipe) -> list[str]:
    encoder, backbone = recipe.encoder, recipe.backbone
    missing: list[str] = []
    if backbone is not None:
        # Also for stages without an encoder, which read the language model's embeddings.
        missing += BACKBONES.entry_of(backbone).implementation.missing(backbone)
    if encoder is not None and any("encoder" in recipe.kinds(stage) for stage in recipe.planned):
        missing += ENCODERS.entry_of(encoder).implementation.missing(encoder)
    if uses_codec(recipe):
        missing += CODECS.entry_of(recipe.codec).implementation.missing(recipe.codec)
        if not _is_codec_ready(recipe) and not recipe.codec_speech:
            missing.append(
                f"{_codec_place(recipe)} "
                "(the codec, and codec_speech names no recordings to fit it to)"
            )
    return missing


def check_codec(recipe: Recipe) -> None:
    """Check that a codec which is fitted already agrees with the recipe.

    Raises:
        ConfigError: the folder was fitted with other sizes than the recipe says.
        CheckpointError: the folder is incomplete or changed.
    """
    if uses_codec(recipe) and _is_codec_ready(recipe):
        CODECS.entry_of(recipe.codec).implementation.check_folder(recipe.codec)


def _is_codec_ready(recipe: Recipe) -> bool:
    return CODECS.entry_of(recipe.codec).implementation.is_ready(recipe.codec)


def _codec_place(recipe: Recipe) -> str:
    return getattr(recipe.codec, "folder", "") or type(recipe.codec).__name__


def _read_manifests(recipe: Recipe, stages: Sequence[str]) -> list[str]:
    """List the manifests of the stages, of units, of codec fitting, and of the example."""
    paths = [path for stage in stages for path in outlined_task(recipe, stage).manifests()]
    paths += read_units(recipe)
    if uses_codec(recipe) and not _is_codec_ready(recipe):
        paths += recipe.codec_speech
    if recipe.answers_example and recipe.example is not None:
        paths.append(recipe.example)
    return paths


def _missing_manifests(recipe: Recipe, paths: Iterable[str]) -> list[str]:
    return [
        f"{path} (manifest)"
        for path in paths
        if not _is_made(recipe, path) and not Path(path).is_file()
    ]


def _is_made(recipe: Recipe, path: str) -> bool:
    """Whether a step of the run writes a manifest before it is read."""
    in_corpus = recipe.corpus is not None and Path(path).is_relative_to(recipe.corpus.folder)
    return in_corpus or Path(path) in [units_path(manifest) for manifest in recipe.units]


def _parent_folders(recipe: Recipe, stages: Sequence[str]) -> list[Path]:
    """List the checkpoints of parents that this run does not train."""
    return [
        parent_folder(run_of_parents(recipe), parent)
        for stage in stages
        for parent in recipe.parents(stage).values()
        if parent not in recipe.planned
    ]


def made_by_the_run(recipe: Recipe) -> list[str]:
    """List what does not exist yet and is made by a step of the run."""
    made = []
    if recipe.corpus is not None and not Path(recipe.corpus.folder).is_dir():
        made.append(f"the corpus {recipe.corpus.folder}")
    if uses_codec(recipe) and recipe.codec_speech and not _is_codec_ready(recipe):
        made.append(f"the codec {_codec_place(recipe)}")
    units = [str(units_path(manifest)) for manifest in read_units(recipe)]
    return made + [path for path in units if not Path(path).is_file()]
