"""Running a recipe: corpus, codec, units, the stages one after the other, and the report."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from itertools import starmap
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from echox.assets.sources import taking_from
from echox.backbones.base import BACKBONES, Backbone
from echox.codecs.base import CODECS
from echox.core.device import device_named
from echox.core.errors import ConfigError, ManifestError
from echox.core.indexable import Indexable
from echox.core.number_format import kept_in
from echox.core.progress import print_message, skip, step_of
from echox.core.step_costs import StepClock, clock_of
from echox.core.threads import on_threads
from echox.corpora.demo import build_demo_corpus
from echox.corpora.own_answers import OwnAnswer
from echox.corpora.units import UnitsConfig, write_units
from echox.criteria.base import CRITERIA
from echox.data.audio import audio_header, duration_s, load_audio, save_audio
from echox.data.audio_ref import Audio
from echox.data.manifest import OnBroken, Role, read_manifests
from echox.decoding import DecodeEngine
from echox.decoding.greedy_text import answers_and_ends
from echox.decoding.text import text_decode_engine
from echox.engine.config import Precision
from echox.engine.distribution import World, join
from echox.engine.own_process import in_own_process
from echox.engine.precision import uses_bf16
from echox.engine.setup import build
from echox.engine.trainer import audit_first, train
from echox.models.frozen import halve_frozen
from echox.pipeline.dry_run import check_codec, check_needs, dry_run
from echox.pipeline.next_steps import closing_lines
from echox.pipeline.plugins import discover, plugin_code, plugin_origins
from echox.pipeline.recipe import Recipe, Resume, from_dict, own_parts, parts_of, to_dict
from echox.pipeline.recipe_text import write_recipe
from echox.pipeline.refit import check_family, joined, lineage_of
from echox.pipeline.rerun import (
    PLUGIN_CODE,
    changed_settings,
    note_fit,
    prepare_rerun,
    refuse_stale,
)
from echox.pipeline.steps import (
    Step,
    StepKind,
    costs_file,
    example_files,
    planned_steps,
    read_units,
    steps_of,
)
from echox.pipeline.tasks import recorded_recipe, stage_task
from echox.tasks.base import Use

ANSWER_TOKENS = 48  # text tokens of an answer at most, as many as the report generates


def run_recipe(recipe: Recipe) -> None:
    """Run every step of a recipe that is not finished; a dry run only prints what they would take.

    The run may be stopped in any way; called again, it goes on where it was.

    Raises:
        ConfigError: the recipe lacks a part that a stage needs, or parts do not fit each other.
        PackageError: a package that the recipe needs is not installed.
        AssetError: a file is missing that the run neither makes nor fetches.
        CheckpointError: the folder holds stages that were trained with other settings or data, or
            a stage that comes before is not finished.
        EchoxError: data or a part cannot be used, or a stage fails.
    """
    recipe.check()
    with taking_from(recipe.assets.allowed):
        if recipe.dry_run:
            return dry_run(recipe)
        # Before the first step, since what is missed by the last would waste the run.
        check_needs(recipe)
        device = device_named(recipe.device)
        with on_threads(recipe.cpu_threads), kept_in(recipe.run_dir, device):
            if recipe.refit is not None:
                refit(recipe)
            else:
                _run_steps(recipe, on_cpu=device.type == "cpu")


def _run_steps(recipe: Recipe, *, on_cpu: bool) -> None:
    world = join()
    began_s = time.monotonic()
    # Ranks must not look at the folder while the first one moves stages aside.
    with world.main_first():
        prepare_rerun(recipe, makes_room=world.is_main)
    # Only now, because a codec of other settings may just have been moved aside.
    check_codec(recipe)
    if world.is_main:
        write_recipe(recipe)
    # Under torchrun every rank has a process already, which its collectives are bound to.
    apart = recipe.own_processes and world.size == 1
    steps = steps_of(recipe, apart)
    planned, costs = planned_steps(recipe, steps), costs_file(recipe)
    for number, step in enumerate(steps, 1):
        clock = clock_of(costs, planned, number, done=[each.name for each in steps[: number - 1]])
        if world.is_main:
            print_message(clock.title())
        if apart:
            # Ranks share micro-batches, which only a stage has; a GPU is not shared.
            is_trained_on_cpu = on_cpu and step.kind is StepKind.stage
            ranks = recipe.plan(step.stage).cpu_processes if is_trained_on_cpu else 1
            in_own_process(_run_step_elsewhere, to_dict(recipe), clock, step, ranks=ranks)
        else:
            with step_of(clock):
                run_step(recipe, step)
    if world.is_main:
        print_message("\n".join(closing_lines(recipe, time.monotonic() - began_s)))


def run_step(recipe: Recipe, step: Step, *, split_batches: bool = False) -> None:
    """Run one step, unless it is finished.

    Args:
        recipe: the recipe of the run.
        step: one of its steps.
        split_batches: ranks share each micro-batch of a stage, whatever the stage's own setting.

    Raises:
        EchoxError: data or a part cannot be used, or the stage fails.
    """
    world, device = join(), device_named(recipe.device)
    if step.kind is StepKind.corpus:
        # The first rank writes the corpus, and the others find it finished.
        with world.main_first():
            _make_corpus(recipe, device)
    elif step.kind is StepKind.codec:
        with world.main_first():
            _make_units(recipe, device, world)
    elif step.kind is StepKind.data:
        _make_data(recipe, step.stage, device, world)
    elif step.kind is StepKind.stage:
        train_stage(recipe, step.stage, device, split_batches=split_batches)
    # What follows training reads finished checkpoints, so one rank is enough.
    elif not world.is_main:
        return
    elif step.kind is StepKind.example:
        _answer_example(recipe)
    else:
        _report(recipe, device)


def _run_step_elsewhere(recipe: Mapping[str, Any], clock: StepClock, step: Step) -> None:
    """Run a step in a process that has loaded no plugin yet, or in several that share its work.

    Args:
        recipe: as `to_dict` returns it, since configs of plugins cannot be unpickled before their
            plugins are loaded.
        clock: times the step.
        step: the step to run.
    """
    discover(recipe["plugin_dirs"])
    is_shared, typed = join().size > 1, from_dict(recipe)
    with step_of(clock), taking_from(typed.assets.allowed):
        run_step(typed, step, split_batches=is_shared)


def _make_corpus(recipe: Recipe, device: torch.device) -> None:
    """Build the corpus, unless it is finished."""
    language_model = _LanguageModel(recipe, device, uses_bf16(Precision.auto, device))
    build_demo_corpus(
        recipe.require_corpus(),
        language_model.answers,
        language_model.token_texts,
        overwrite=recipe.overwrite,
    )


def _make_units(recipe: Recipe, device: torch.device, world: World) -> None:
    """Fit the codec, unless it is fitted, and encode the manifests of units, on the first rank."""
    if not world.is_main:
        return
    codec_type = CODECS.entry_of(recipe.codec).implementation
    if not codec_type.is_ready(recipe.codec):
        rate_hz = codec_type.fit_rate_hz(recipe.codec)
        clips = SpeechClips(recipe.codec_speech, rate_hz, recipe.codec_hours)
        codec_type.fit(recipe.codec, clips, device)
        note_fit(recipe.codec, recipe)
    else:
        # The cost that is recorded must not be that of the units alone.
        skip()
    if manifests := read_units(recipe):
        codec = CODECS.build(recipe.codec).to(device)
        config = UnitsConfig(manifests=manifests, cache_dir=recipe.cache_dir)
        write_units(config, codec, device=device, bf16=uses_bf16(Precision.auto, device))


def _make_data(recipe: Recipe, stage: str, device: torch.device, world: World) -> None:
    """Prepare what a stage reads, such as features and labels, in the cache."""
    build(stage_task(recipe, stage, device), seed=recipe.seed, device=device, world=world)


class _LanguageModel:
    """The recipe's backbone as the corpus uses it, loaded at its first use."""

    def __init__(self, recipe: Recipe, device: torch.device, bf16: bool) -> None:
        self.recipe, self.device, self.bf16 = recipe, device, bf16

    # Cached, and not built above: a corpus that is finished needs no language model.
    @cached_property
    def backbone(self) -> Backbone:
        backbone = BACKBONES.build(self.recipe.backbone).to(self.device).eval()
        # Half the memory; under autocast its products are bfloat16 anyway.
        if self.bf16:
            halve_frozen(backbone)
        return backbone

    @cached_property
    def engine(self) -> DecodeEngine | None:
        """Decode engine of the backbone, or None where it cannot have one."""
        return text_decode_engine(self.backbone)

    def answers(self, questions: list[str], seed: int | None) -> list[OwnAnswer]:
        """Generate answers to typed questions: greedy, or sampled where a seed is given."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            temperature = 0.0 if seed is None else 1.0  # 0 is greedy
            pairs = answers_and_ends(
                self.backbone,
                questions,
                ANSWER_TOKENS,
                temperature=temperature,
                seed=seed,
                engine=self.engine,
            )
        return list(starmap(OwnAnswer, pairs))

    def token_texts(self) -> list[str]:
        """Return the vocabulary in the order of the ids."""
        return self.backbone.token_texts()


class SpeechClips(Indexable[Tensor]):
    """The assistant's recordings in manifests, each read when it is indexed."""

    def __init__(
        self, manifests: Sequence[str], rate_hz: int = 16_000, hours: float | None = None
    ) -> None:
        """List the recordings of manifests.

        Args:
            manifests: files to read; broken rows are skipped.
            rate_hz: sampling rate of the clips, in Hz.
            hours: recordings are left out evenly until about so many hours remain; None keeps all.

        Raises:
            ConfigError: there is no manifest.
            ManifestError: a manifest is missing or empty.
        """
        if not manifests:
            raise ConfigError(
                "the codec is not fitted yet, and no manifest names recordings to fit it to; "
                "set codec_speech=[...] (manifests=[...] in echox-prepare), "
                "or codec.folder to a fitted one"
            )
        rows = read_manifests(manifests, on_broken=OnBroken.skip)
        self.rate_hz = rate_hz
        answers = [row.answer for row in rows if row.answer is not None]
        paths = [answer.audio for answer in answers if answer.audio is not None]
        count = _clip_count(paths, hours)
        # Evenly, since a prefix would hold the first manifests alone.
        self.paths = [paths[index * len(paths) // count] for index in range(count)]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        """Return the samples [T] of one recording, in [-1, 1] at `rate_hz`."""
        return load_audio(self.paths[index], self.rate_hz)


def _clip_count(paths: Sequence[Audio], hours: float | None) -> int:
    """Return how many of the recordings last about `hours`, judged by their mean duration."""
    total_hours = sum(map(duration_s, paths)) / 3600
    if hours is None or total_hours <= hours:
        return len(paths)
    # Rounding a small share must not leave the codec without recordings.
    return max(2, round(len(paths) * hours / total_hours))


def train_stage(
    recipe: Recipe,
    stage: str,
    device: torch.device,
    *,
    parents: Path | None = None,
    lineage: Mapping[str, Any] | None = None,
    split_batches: bool = False,
) -> Path:
    """Train one stage of a recipe.

    Args:
        recipe: the recipe of the run.
        stage: name of the stage.
        device: where to train; plain `cuda` is each rank's own.
        parents: the run whose finished stages it builds on; None is the recipe's own.
        lineage: what to record beside parents, data and versions.
        split_batches: ranks share each micro-batch, whatever the stage's own setting.

    Returns:
        the folder of the final checkpoint.

    Raises:
        CheckpointError: the stage was trained with other settings or data, or a stage that it
            builds on is not finished.
        TrainingError: there is nothing to train on, or the loss is not finite.
    """
    # Again, because a step before may have trained what this stage builds on.
    refuse_stale(recipe, stage)
    plan = recipe.plan(stage)
    settings = dataclasses.replace(plan.train, split_batches=True) if split_batches else plan.train
    task = stage_task(recipe, stage, device, parents=parents)
    criterion = CRITERIA.build(plan.criterion)
    # With the stages before it, whose tasks tell the shapes of its model.
    parts = parts_of(recipe, recipe.with_ancestors([stage]))
    return train(
        task,
        criterion,
        settings,
        run_dir=Path(recipe.run_dir) / stage,
        stage=stage,
        seed=recipe.seed,
        device=device,
        lineage={
            **(lineage or {}),
            "plugins": plugin_origins(parts),
            PLUGIN_CODE: plugin_code(own_parts(recipe, stage)),
        },
        recipe_dict=recorded_recipe(recipe),
        compare=partial(changed_settings, recipe, stage),
        takes_new_settings=recipe.resume is Resume.with_new_settings,
    )


def audit_stages(recipe: Recipe) -> None:
    """Print and check the first batch of each stage that the recipe trains, without training.

    Raises:
        CheckpointError: a stage that comes before is not finished.
        TrainingError: a label is wrong.
    """
    device = device_named(recipe.device)
    with kept_in(recipe.run_dir, device), taking_from(recipe.assets.allowed):
        for stage in recipe.planned:
            audit_stage(recipe, stage, device)


def audit_stage(recipe: Recipe, stage: str, device: torch.device) -> None:
    """Print and check one stage's first batch, and write the page into the stage's folder.

    Raises:
        CheckpointError: a stage that comes before is not finished.
        TrainingError: a label is wrong.
    """
    plan = recipe.plan(stage)
    report = audit_first(
        stage_task(recipe, stage, device),
        CRITERIA.build(plan.criterion),
        plan.train,
        stage=stage,
        seed=recipe.seed,
        device=device,
    )
    # Printed and written before the refusal, which names one label of many.
    print(report.page)
    report.write(Path(recipe.run_dir) / stage)
    report.refuse()


def refit(recipe: Recipe) -> Path:
    """Train Echo alone, on the recipe's language model and the finished run `recipe.refit`.

    Returns:
        the folder of the final checkpoint.

    Raises:
        ConfigError: the recipe has no stage that answers aloud.
        CheckpointError: that run's S2T or T2C is missing, or the language model is of another
            width or vocabulary.
    """
    world, device = join(), device_named(recipe.device)
    fit = joined(recipe)
    # Every rank looks at the folder, and the first one alone moves what is in it.
    with world.main_first():
        prepare_rerun(fit.recipe, makes_room=world.is_main)
        if world.is_main:
            write_recipe(recipe)
    check_family(fit)
    (stage,) = fit.recipe.planned
    return train_stage(
        fit.recipe, stage, device, parents=recipe.require_refit(), lineage=lineage_of(fit)
    )


def _answer_example(recipe: Recipe) -> None:
    """Answer one question with the finished run, and write the question beside its answer.

    Raises:
        ManifestError: the manifest has no spoken question.
        SignalError: the answer has no speech.
    """
    # Imported here because most runs have no example.
    from echox.inference.batch_run import GenerateConfig, generate

    stage = recipe.last(Use.answer_aloud)
    if recipe.example is None or stage is None:
        return  # `answers_example` is false of such a recipe
    clip = _first_spoken_question(recipe.example)
    question, answer = example_files(recipe)
    # At its own rate, since a person listens to it and the model resamples it anyway.
    rate_hz = audio_header(clip).rate_hz
    save_audio(question, load_audio(clip, rate_hz), rate_hz)
    print_message(f"asked:    {question}")
    final = Path(recipe.run_dir) / stage / "final"
    config = GenerateConfig(
        checkpoint=str(final),
        input=str(question),
        output=str(answer),
        device=recipe.device,
        answer_silence=True,  # after few steps nothing is heard yet, and the voice is to be heard
    )
    generate(config)


def _first_spoken_question(manifest: str) -> Audio:
    rows = read_manifests([manifest], on_broken=OnBroken.skip)
    for row in rows:
        for item in row.turns:
            if item.role is Role.USER and item.audio is not None:
                return item.audio
    raise ManifestError(
        f"no row of {manifest} asks anything aloud; "
        "set example to a manifest of spoken questions, or to null"
    )


def _report(recipe: Recipe, device: torch.device) -> None:
    # Imported here because a run without a report needs no recogniser.
    from echox.evaluation.report import evaluate

    report = recipe.report
    if report is None:
        return  # such a recipe has no step of a report
    corpus = recipe.corpus.folder if recipe.corpus else report.corpus
    evaluate(dataclasses.replace(report, run=recipe.run_dir, corpus=corpus, device=str(device)))
