"""A recipe looked at before it is run: sizes of its parts, memory, tokens per step, and every file that is missing.

Models are built with their true shapes on the meta device; no weights, audio or checkpoints are read and the network is not asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from echox.backbones.base import BACKBONES
from echox.codecs.base import CODECS
from echox.corpora.demo import corpus_fingerprint, corpus_packages, is_built
from echox.corpora.units import units_path
from echox.encoders.base import ENCODERS
from echox.engine.config import Precision, TrainConfig
from echox.errors import AssetError, ConfigError, EchoxError
from echox.packages import TENSORBOARD, OptionalPackage, require
from echox.recipe import ALL_STAGES, Recipe
from echox.tasks.base import TASKS, Outline, Parts, StageContext, Task

GPUS = (1, 8)
GB = 1e9
STATE_BYTES = 8  # AdamW's two means of a weight, float32
ROUNDED_BYTES = 2  # a bfloat16


@dataclass(frozen=True, slots=True)
class PartSize:
    """How large a part is."""

    name: str
    trained: int  # weights
    frozen: int  # weights
    weight_bytes: int  # of both
    table_bytes: int  # of buffers: frozen copies of the language model's rows, filters
    gradient_bytes: int
    state_bytes: int  # of the optimiser


@dataclass(frozen=True, slots=True)
class StageSize:
    """How large a stage is."""

    stage: str
    parts: Sequence[PartSize]
    step: str  # what it reads, in words
    cost: int  # of a micro-batch at most
    activation_bytes: Mapping[str, int]  # estimate, by part
    outline: Outline

    def part(self, name: str) -> PartSize:
        """The part of a name."""
        return next(part for part in self.parts if part.name == name)

    def memory(self, gpus: int) -> dict[str, int]:
        """Bytes on each GPU by what they are for; each GPU holds a whole replica."""
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
        PackageError: packages are missing. AssetError: files are missing; they are all printed before.
        EchoxError: nothing is missing, but parts do not fit each other, or a task has no outline.
    """
    print(f"{recipe.name}, dry run: true shapes on the meta device, no weights read; memory for GPUs that multiply bfloat16, GB = 10^9 bytes")
    fault: EchoxError | None = None
    try:
        for size in stage_sizes(recipe):
            print("\n".join(["", *_stage_lines(size)]))
    except EchoxError as error:  # what is missing is told nevertheless
        fault = error
        print(f"\nsizes cannot be told: {error}")
    missing, made = missing_files(recipe), made_by_the_run(recipe)
    if made:
        print("\nmade by the run: " + ", ".join(made))
    if missing:
        print("\n".join(["", "missing:", *(f"  {item}" for item in missing)]), flush=True)
    require(needed_packages(recipe))
    if missing:
        count = "1 file is" if len(missing) == 1 else f"{len(missing)} files are"
        raise AssetError(f"{count} missing for {recipe.name}, listed above; put them there, or set the fields that name them")
    if fault is not None:
        raise fault
    print("\nnothing is missing")


def stage_sizes(recipe: Recipe) -> Iterator[StageSize]:
    """The sizes of the stages that the recipe runs, in order."""
    outlines: dict[str, Outline] = {}
    for stage in ALL_STAGES:
        if stage in _with_parents(recipe):
            outlines[stage] = _outline(recipe, stage, outlines)
            # At once, because a later stage may freeze what this one trains.
            size = _size(stage, outlines[stage], recipe.plan(stage).train)
            if stage in recipe.planned:
                yield size


def _with_parents(recipe: Recipe) -> set[str]:
    """The planned stages and all that come before them."""
    wanted, open_ = set(), list(recipe.planned)
    while open_:
        stage = open_.pop()
        if stage not in wanted and recipe.plan(stage) is not None:
            wanted.add(stage)
            open_ += recipe.parents(stage)
    return wanted


def _outline(recipe: Recipe, stage: str, before: Mapping[str, Outline]) -> Outline:
    task = _task(recipe, stage)
    if absent := [parent for parent in task.parents if parent not in before]:
        before_it = ", ".join(absent)
        raise ConfigError(f"stage {stage!r} builds on {before_it}, of which the recipe has no plan; add '- _stages' to its defaults list")
    return task.outline(before)


def _task(recipe: Recipe, stage: str) -> Task:
    plan = recipe.plan(stage)
    context = StageContext(
        parts=Parts(recipe.encoder, recipe.backbone, recipe.codec),
        seed=recipe.seed,
        cache_dir=Path(recipe.cache_dir),
        device=torch.device("meta"),
        bf16=plan.train.precision is not Precision.fp32,
    )
    return TASKS.build(plan.task, context)


def _size(stage: str, outline: Outline, train: TrainConfig) -> StageSize:
    limits = [train.batch_cost, train.batch_size and train.batch_size * outline.longest_cost]
    cost = min(limit for limit in limits if limit is not None)
    parts = part_sizes(outline)
    activations = {name: round(cost * size) for name, size in outline.activations.items()}
    if train.precision is not Precision.fp32:
        # Autocast keeps a rounded copy of trained weights until the step ends.
        activations["weights in bfloat16"] = ROUNDED_BYTES * sum(part.trained for part in parts)
    return StageSize(stage, parts, _step(outline, train, cost), cost, activations, outline)


def _step(outline: Outline, train: TrainConfig, cost: int) -> str:
    limits = [f"{train.batch_size} examples"] if train.batch_size is not None else []
    limits += [f"{cost:,} {outline.cost_unit}"]
    per_step = ", ".join(f"{cost * train.accumulation * gpus:,} on {gpus} GPU{'s' if gpus > 1 else ''}" for gpus in GPUS)
    return f"{train.steps:,} steps; a micro-batch: {' and '.join(limits)} at most; {outline.cost_unit} per step at most: {per_step}"


def part_sizes(outline: Outline) -> list[PartSize]:
    """The sizes of an outline's parts; a weight belongs to the first part whose prefix its name has."""
    parameters: dict[str, list[Tensor]] = {}
    buffers: dict[str, list[Tensor]] = {}
    for tensors, named in ((parameters, outline.model.named_parameters()), (buffers, outline.model.named_buffers())):
        for name, tensor in named:
            tensors.setdefault(_part_of(name, outline.parts), []).append(tensor)
    return [_part_size(part, parameters.get(part, []), buffers.get(part, [])) for part in {**outline.parts, **parameters, **buffers}]


def _part_of(name: str, parts: Mapping[str, Sequence[str]]) -> str:
    return next((part for part, prefixes in parts.items() if any(f"{name}.".startswith(f"{prefix}.") for prefix in prefixes)), "other")


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
    yield f"  {'part':<32}{'trained':>16}{'frozen':>16}{'weights':>10}{'tables':>10}{'gradients':>11}{'optimiser':>11}"
    total = PartSize("all", *(sum(getattr(part, field) for part in size.parts) for field in PartSize.__slots__[1:]))
    for part in [*size.parts, total]:
        amounts = [(part.weight_bytes, 10), (part.table_bytes, 10), (part.gradient_bytes, 11), (part.state_bytes, 11)]
        yield f"  {part.name:<32}{part.trained:>16,}{part.frozen:>16,}" + "".join(f"{_gb(amount):>{width}}" for amount, width in amounts)
    for gpus in GPUS:
        memory = size.memory(gpus)
        amounts = ", ".join(f"{name} {_gb(amount)}" for name, amount in memory.items() if amount)
        yield f"  per GPU, {gpus} GPU{'s' if gpus > 1 else ''}: {_gb(sum(memory.values()))} = {amounts}"
    yield "  activations (estimate): " + ", ".join(f"{name} {_gb(amount)}" for name, amount in size.activation_bytes.items())
    yield from (f"  {note}" for note in size.outline.notes)


def _gb(amount: int) -> str:
    return f"{amount / GB:.2f} GB"


def needed_packages(recipe: Recipe) -> Iterator[OptionalPackage]:
    """What the run needs beside echox, as far as the recipe tells before anything is loaded."""
    for registry, config in ((ENCODERS, recipe.encoder), (BACKBONES, recipe.backbone), (CODECS, recipe.codec)):
        if config is not None:
            yield from registry.entry_of(config).implementation.packages(config)
    if any(recipe.plan(stage).train.tensorboard for stage in recipe.planned):
        yield TENSORBOARD
    if recipe.refit is not None:  # trains Echo, and nothing else is made
        return
    if recipe.corpus is not None and not is_built(Path(recipe.corpus.folder), corpus_fingerprint(recipe.corpus, with_own_answers=True, with_words=True)):
        yield from corpus_packages(recipe.corpus)
    if recipe.report is not None and not recipe.stage:
        yield from recipe.report.packages()


def missing_files(recipe: Recipe) -> list[str]:
    """Every file that the run would ask for and neither finds, nor makes, nor fetches from a pinned package."""
    encoder, backbone, codec = recipe.encoder, recipe.backbone, recipe.codec
    found = [path for stage in recipe.planned for path in _task(recipe, stage).missing()]
    if backbone is not None:
        # Of stages without an encoder the language model's rows are still read.
        found += BACKBONES.entry_of(backbone).implementation.missing(backbone)
    if encoder is not None and set(recipe.planned) != {"t2c"}:
        found += ENCODERS.entry_of(encoder).implementation.missing(encoder)
    if _speaks(recipe):
        found += CODECS.entry_of(codec).implementation.missing(codec)
        if not CODECS.entry_of(codec).implementation.is_ready(codec) and not recipe.codec_speech:
            found.append(f"{_codec_place(recipe)} (the codec, and codec_speech names no recordings to fit it to)")
    found += [f"{path} (manifest)" for path in _read_manifests(recipe) if not _is_made(recipe, path) and not Path(path).is_file()]
    found += [f"{path} (checkpoint of an earlier stage)" for path in _parent_folders(recipe) if not path.exists()]
    return list(dict.fromkeys(found))


def _speaks(recipe: Recipe) -> bool:
    """Whether a codec is used."""
    return recipe.codec is not None and bool({"t2c", "echo"} & set(recipe.planned))


def _codec_place(recipe: Recipe) -> str:
    return getattr(recipe.codec, "folder", "") or type(recipe.codec).__name__


def _read_manifests(recipe: Recipe) -> list[str]:
    """Those of the stages, and those from which units and the codec are made."""
    paths = [path for stage in recipe.planned for path in _task(recipe, stage).manifests()]
    paths += recipe.units if "t2c" in recipe.planned else []
    if _speaks(recipe) and not CODECS.entry_of(recipe.codec).implementation.is_ready(recipe.codec):
        paths += recipe.codec_speech
    return paths


def _is_made(recipe: Recipe, path: str) -> bool:
    """Whether the run writes a manifest before it is read: the corpus, and units beside a manifest."""
    in_corpus = recipe.corpus is not None and Path(path).is_relative_to(recipe.corpus.folder)
    return in_corpus or Path(path) in [units_path(manifest) for manifest in recipe.units]


def _parent_folders(recipe: Recipe) -> list[Path]:
    """Final checkpoints that must be there because this run does not train their stages before it needs them."""
    folders = []
    for number, stage in enumerate(recipe.planned):
        folders += [Path(recipe.run_dir) / parent / "final" for parent in recipe.parents(stage) if parent not in recipe.planned[:number]]
    return folders


def made_by_the_run(recipe: Recipe) -> list[str]:
    """What is not there yet and the run makes by itself."""
    made = [f"the corpus {recipe.corpus.folder}"] if recipe.corpus is not None and not Path(recipe.corpus.folder).is_dir() else []
    if _speaks(recipe) and recipe.codec_speech and not CODECS.entry_of(recipe.codec).implementation.is_ready(recipe.codec):
        made.append(f"the codec {_codec_place(recipe)}")
    units = [str(units_path(manifest)) for manifest in recipe.units] if "t2c" in recipe.planned else []
    return made + [path for path in units if not Path(path).is_file()]
