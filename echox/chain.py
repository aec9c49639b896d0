"""A recipe from its first step to its last: corpus, codec, units, the stages one after the other, the report."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import starmap
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from echox import checkpoint
from echox.backbones.base import BACKBONES, Backbone
from echox.codecs.base import CODECS
from echox.corpora.demo import build_demo_corpus
from echox.corpora.own_answers import OwnAnswer
from echox.corpora.units import UnitsConfig, write_units
from echox.criteria.base import CRITERIA
from echox.data.audio import audio_header, duration_s, load_audio, save_audio
from echox.data.manifest import OnBroken, Role, read_manifests
from echox.device import device_named
from echox.dry_run import dry_run, needed_packages
from echox.engine.config import Precision
from echox.engine.distribution import World, join
from echox.engine.own_process import in_own_process
from echox.engine.precision import uses_bf16
from echox.engine.setup import build
from echox.engine.trainer import audit_first, train
from echox.errors import CheckpointError, ConfigError, ManifestError
from echox.models.decoding import answers_and_ends
from echox.models.frozen import halve_frozen
from echox.models.text_loop import text_loop
from echox.models.unit_loop import UnitLoop
from echox.next_steps import closing_lines
from echox.number_format import kept_in
from echox.packages import require
from echox.plugins import discover
from echox.progress import say, skip, step_of
from echox.recipe import STAGES, Recipe, freeze, restore
from echox.refit import refitted
from echox.rerun import note_fit, prepare_rerun, refuse_stale
from echox.run_steps import CODEC, CORPUS, DATA, EXAMPLE, REPORT, costs_file, example_files, planned_steps, steps_of
from echox.step_costs import StepClock, clock_of
from echox.tasks.base import TASKS, Parts, StageContext, Task
from echox.threads import on_threads

ANSWER_TOKENS = 48  # as many as the report lets it say


def run_recipe(recipe: Recipe) -> None:
    """Do whatever of the recipe is not done yet; safe to stop in any way and to call again. A dry run only says what that would take.

    Raises:
        EchoxError: something the recipe asks for does not fit or cannot be had.
    """
    recipe.check()
    if recipe.dry_run:
        return dry_run(recipe)
    require(needed_packages(recipe))
    device = device_named(recipe.device)
    with on_threads(recipe.cpu_threads), kept_in(recipe.run_dir, device):
        if recipe.refit is not None:
            refit(recipe)
        else:
            _run_steps(recipe, on_cpu=device.type == "cpu")


def _run_steps(recipe: Recipe, *, on_cpu: bool) -> None:
    world = join()
    began_s = time.monotonic()
    with world.main_first():
        prepare_rerun(recipe, makes_room=world.is_main)
    apart = recipe.own_processes and world.size == 1
    steps = steps_of(recipe, apart)
    planned, costs = planned_steps(recipe, steps), costs_file(recipe)
    for number, step in enumerate(steps, 1):
        clock = clock_of(costs, planned, number, done=steps[: number - 1])
        if world.is_main:
            say(clock.title())
        if apart:
            ranks = recipe.plan(step).cpu_processes if on_cpu and step in recipe.planned else 1
            in_own_process(_take_restored, freeze(recipe), clock, step, ranks=ranks)
        else:
            with step_of(clock):
                _take(recipe, step)
    if world.is_main:
        say("\n".join(closing_lines(recipe, time.monotonic() - began_s)))


def _take(recipe: Recipe, step: str, *, split_batches: bool = False) -> None:
    """Do one step, unless it is done."""
    world, device = join(), device_named(recipe.device)
    if step == CORPUS:
        with world.main_first():
            _make_corpus(recipe, device)
    elif step == CODEC:
        with world.main_first():
            _make_units(recipe, device, world)
    elif step == EXAMPLE:
        if world.is_main:
            _answer_example(recipe)
    elif step == REPORT:
        if world.is_main:
            _report(recipe, device)
    elif step.endswith(DATA):
        _make_data(recipe, step.removesuffix(DATA), device, world)
    else:
        train_stage(recipe, step, device, split_batches=split_batches)


def _take_restored(frozen: Mapping[str, Any], clock: StepClock, step: str) -> None:
    """The same in another process, which has loaded no plugin yet, or in several, which share the work of one."""
    discover(frozen["plugin_dirs"])
    is_shared = join().size > 1
    with step_of(clock):
        _take(restore(frozen), step, split_batches=is_shared)


def _make_corpus(recipe: Recipe, device: torch.device) -> None:
    """The corpus: made by the first rank, found ready by the others."""
    language_model = _LanguageModel(recipe, device, uses_bf16(Precision.auto, device))
    build_demo_corpus(recipe.corpus, language_model.answers, language_model.token_texts, overwrite=recipe.overwrite)


def _make_units(recipe: Recipe, device: torch.device, world: World) -> None:
    """The codec, fitted where it is not, and the units of what is to be spoken: made by the first rank."""
    if not world.is_main:
        return
    codec_type = CODECS.entry_of(recipe.codec).implementation
    if not codec_type.is_ready(recipe.codec):
        codec_type.fit(recipe.codec, SpeechClips(recipe.codec_speech, hours=recipe.codec_hours), device)
        note_fit(recipe)
    else:
        skip()
    if recipe.units and "t2c" in recipe.planned:
        codec = CODECS.build(recipe.codec).to(device)
        bf16 = uses_bf16(Precision.auto, device)
        write_units(UnitsConfig(manifests=recipe.units, cache_dir=recipe.cache_dir), codec, device=device, bf16=bf16)


def _make_data(recipe: Recipe, stage: str, device: torch.device, world: World) -> None:
    """What a stage reads, features and labels among it, into the cache where the stage will find it."""
    build(stage_task(recipe, stage, device), seed=recipe.seed, device=device, world=world)


class _LanguageModel:
    """What the corpus takes from the recipe's backbone, which is loaded when first asked."""

    def __init__(self, recipe: Recipe, device: torch.device, bf16: bool) -> None:
        self.recipe, self.device, self.bf16 = recipe, device, bf16

    @cached_property
    def backbone(self) -> Backbone:
        backbone = BACKBONES.build(self.recipe.backbone).to(self.device).eval()
        if self.bf16:
            halve_frozen(backbone)
        return backbone

    @cached_property
    def loop(self) -> UnitLoop | None:
        """Where it answers, if it may be in a loop."""
        return text_loop(self.backbone)

    def answers(self, questions: list[str], seed: int | None) -> list[OwnAnswer]:
        """Its answers to typed questions: greedy, or drawn where a seed is given."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            temperature = 0.0 if seed is None else 1.0
            found = answers_and_ends(self.backbone, questions, ANSWER_TOKENS, temperature=temperature, seed=seed, loop=self.loop)
        return list(starmap(OwnAnswer, found))

    def token_texts(self) -> list[str]:
        """Its vocabulary in the order of the ids."""
        return self.backbone.token_texts()


class SpeechClips(Sequence[Tensor]):
    """The assistant's recordings of manifests, read when asked for."""

    def __init__(self, manifests: Sequence[str], rate_hz: int = 16_000, hours: float | None = None) -> None:
        """Args: hours: recordings are left out evenly until about so much remains; None keeps all."""
        if not manifests:
            raise ConfigError(
                "the codec is not fitted yet, and no manifest names recordings to fit it to; "
                "set codec_speech=[...] (manifests=[...] in echox-prepare), or codec.folder to a fitted one"
            )
        rows = read_manifests(manifests, on_broken=OnBroken.skip)
        self.rate_hz = rate_hz
        paths = [row.answer.audio for row in rows if row.answer is not None and row.answer.audio is not None]
        found_h = sum(map(duration_s, paths)) / 3600
        kept = len(paths) if hours is None or found_h <= hours else max(2, round(len(paths) * hours / found_h))
        self.paths = [paths[index * len(paths) // kept] for index in range(kept)]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        return load_audio(self.paths[index], self.rate_hz)


def train_stage(
    recipe: Recipe,
    stage: str,
    device: torch.device,
    *,
    parents: Path | None = None,
    lineage: Mapping[str, Any] | None = None,
    split_batches: bool = False,
) -> Path:
    """Train one stage of a recipe, and return the folder of its final checkpoint.

    Args:
        parents: the run whose finished stages it builds on; None is the recipe's own.
        lineage: what to record beside parents, data and versions.
        split_batches: ranks share each micro-batch, whatever the stage's own setting.
    """
    refuse_stale(recipe, stage)
    plan = recipe.plan(stage)
    settings = dataclasses.replace(plan.train, split_batches=True) if split_batches else plan.train
    task = stage_task(recipe, stage, device, parents=parents)
    criterion = CRITERIA.build(plan.criterion)
    return train(
        task,
        criterion,
        settings,
        run_dir=Path(recipe.run_dir) / stage,
        stage=stage,
        seed=recipe.seed,
        device=device,
        lineage=lineage,
        recipe_dict=freeze(recipe),
    )


def audit_stages(recipe: Recipe) -> None:
    """Show the first batch of a stage as its loss sees it and check its labels; where no stage is named, of all in turn."""
    device = device_named(recipe.device)
    with kept_in(recipe.run_dir, device):
        for stage in recipe.planned:
            audit_stage(recipe, stage, device)


def audit_stage(recipe: Recipe, stage: str, device: torch.device) -> None:
    """Show and check one stage's first batch, and keep what was shown in the stage's folder.

    Raises:
        CheckpointError: a stage before is not finished. TrainingError: a label is not what it must be.
    """
    plan = recipe.plan(stage)
    found = audit_first(stage_task(recipe, stage, device), CRITERIA.build(plan.criterion), plan.train, stage=stage, seed=recipe.seed, device=device)
    print(found.page)
    found.write(Path(recipe.run_dir) / stage)
    found.refuse()


def stage_task(recipe: Recipe, stage: str, device: torch.device, *, parents: Path | None = None) -> Task:
    """The task of one stage, behind the finished stages it builds on.

    Raises:
        CheckpointError: a stage that comes before is not finished.
    """
    plan = recipe.plan(stage)
    before = Path(recipe.run_dir) if parents is None else parents
    context = StageContext(
        parts=Parts(recipe.encoder, recipe.backbone, recipe.codec),
        seed=recipe.seed,
        cache_dir=Path(recipe.cache_dir),
        parents={parent: _finished(before, parent) for parent in recipe.parents(stage)},
        device=device,
        bf16=uses_bf16(plan.train.precision, device),
        run_dir=Path(recipe.run_dir) / stage,
    )
    return TASKS.build(plan.task, context)


def refit(recipe: Recipe) -> Path:
    """Fit the speech side of the finished run `recipe.refit` to the recipe's language model: Echo alone is trained.

    Raises:
        CheckpointError: that run's S2T or T2C is missing, or the language model is of another width or vocabulary.
    """
    world, device = join(), device_named(recipe.device)
    finished = Path(recipe.refit)
    with world.main_first():
        fitted, lineage = refitted(recipe, {stage: _finished(finished, stage) for stage in ("s2t", "t2c")})
        prepare_rerun(fitted, makes_room=world.is_main)
    return train_stage(fitted, "echo", device, parents=finished, lineage=lineage)


def _finished(run_dir: Path, stage: str) -> Path:
    folder = run_dir / stage / "final"
    if not folder.exists():
        before = ", ".join(STAGES[: STAGES.index(stage) + 1])
        raise CheckpointError(
            f"{folder} does not exist: train the stage {stage!r} first (stages come in the order {before}), "
            "or set run_dir to a run that has it"
        )
    checkpoint.verify(folder)
    return folder


def _answer_example(recipe: Recipe) -> None:
    """Ask the finished run one question, and keep it with its answer.

    Raises:
        ManifestError: the manifest asks nothing aloud. SignalError: the model has nothing to say.
    """
    # Imported here because most runs have no example.
    from echox.generation.manifest_run import GenerateConfig, generate

    rows = read_manifests([recipe.example], on_broken=OnBroken.skip)
    asked = next((item.audio for row in rows for item in row.turns if item.role is Role.USER and item.audio is not None), None)
    if asked is None:
        raise ManifestError(f"no row of {recipe.example} asks anything aloud; set example to a manifest of spoken questions, or to null")
    question, answer = example_files(recipe)
    rate_hz = audio_header(asked).rate_hz
    save_audio(question, load_audio(asked, rate_hz), rate_hz)
    say(f"asked:    {question}")
    final = Path(recipe.run_dir) / "echo" / "final"
    generate(GenerateConfig(checkpoint=str(final), input=str(question), output=str(answer), device=recipe.device))


def _report(recipe: Recipe, device: torch.device) -> None:
    # Imported here because a run without a report needs no recogniser.
    from echox.evaluation.report import evaluate

    evaluate(
        dataclasses.replace(
            recipe.report, run=recipe.run_dir, corpus=recipe.corpus.folder if recipe.corpus else recipe.report.corpus, device=str(device)
        )
    )
