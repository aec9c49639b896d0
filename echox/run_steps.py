"""The steps of a recipe's run, in order: what each is called, how much there is to do, and what is left of it."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path

import torch

from echox import checkpoint
from echox.codecs.base import CODECS
from echox.corpora.demo import corpus_fingerprint, is_built
from echox.corpora.units import units_path
from echox.device import device_named
from echox.errors import EchoxError
from echox.recipe import Recipe
from echox.step_costs import PlannedStep

CORPUS, CODEC, EXAMPLE, REPORT = "corpus", "codec", "example", "report"  # the steps that are no stages
DATA = " data"  # after a stage's name: what it reads, made before it
SPEAKING = {"vocoder", "t2c", "echo"}  # stages that need the codec


def steps_of(recipe: Recipe, apart: bool) -> list[str]:
    """What a run does, in order; where steps are taken apart, what a stage reads is made in one before it."""
    steps = [CORPUS] if recipe.corpus is not None else []
    if recipe.codec is not None and SPEAKING & set(recipe.planned):
        steps.append(CODEC)
    for stage in recipe.planned:
        if apart and not (Path(recipe.run_dir) / stage / "final").exists():
            steps.append(stage + DATA)
        steps.append(stage)
    if recipe.answers_example:
        steps.append(EXAMPLE)
    if recipe.report is not None and not recipe.stage:
        steps.append(REPORT)
    return steps


def planned_steps(recipe: Recipe, steps: Sequence[str]) -> list[PlannedStep]:
    """The same for a clock."""
    return [PlannedStep(step, _title(step), _work(recipe, step), _left(recipe, step)) for step in steps]


def example_files(recipe: Recipe) -> tuple[Path, Path]:
    """Where a run keeps the question of its example, and the answer."""
    folder = Path(recipe.run_dir) / EXAMPLE
    return folder / "question.wav", folder / "answer.wav"


def costs_file(recipe: Recipe) -> Path:
    """Where the costs of a recipe's steps on this machine are kept."""
    device = device_named(recipe.device)
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    name = "-".join(f"{recipe.name} {platform.node()} {kind}".replace("/", " ").split())
    return Path(recipe.cache_dir) / "step_costs" / f"{name}.json"


def _title(step: str) -> str:
    if step.endswith(DATA):
        return f"features and labels for {step.removesuffix(DATA)}"
    titles = {CORPUS: "the corpus", CODEC: "the codec and its units", EXAMPLE: "a question and its answer", REPORT: "the report"}
    return titles.get(step) or f"training {step}"


def _work(recipe: Recipe, step: str) -> float:
    """Examples that a stage is shown; all else is done whole or not at all."""
    plan = None if step in (CORPUS, CODEC, EXAMPLE, REPORT) or step.endswith(DATA) else recipe.plan(step)
    return 1.0 if plan is None else float(plan.train.steps * plan.train.accumulation * (plan.train.batch_size or 1))


def _left(recipe: Recipe, step: str) -> float:
    run = Path(recipe.run_dir)
    if step == CORPUS:
        return float(not _has_corpus(recipe))
    if step == CODEC:
        return float(not _has_codec(recipe))
    if step == REPORT:
        return float(not (run / "report" / "report.json").exists() or any(_left(recipe, stage) for stage in recipe.planned))
    if step == EXAMPLE or step.endswith(DATA):
        return 1.0
    if (run / step / "final").exists():
        return 0.0
    saved = checkpoint.step_folders(run / step / "checkpoints")
    done = int(saved[-1].name.removeprefix("step_")) if saved else 0
    return max(0.0, 1 - done / recipe.plan(step).train.steps)


def _has_corpus(recipe: Recipe) -> bool:
    try:
        fingerprint = corpus_fingerprint(recipe.corpus, with_own_answers=True, with_words=True)
    except EchoxError:  # which the step itself will say
        return False
    return is_built(Path(recipe.corpus.folder), fingerprint)


def _has_codec(recipe: Recipe) -> bool:
    wanted = recipe.units if "t2c" in recipe.planned else []
    is_ready = CODECS.entry_of(recipe.codec).implementation.is_ready(recipe.codec)
    return is_ready and all(units_path(manifest).is_file() for manifest in wanted)
