"""Ablation of Echo's training on a finished run: one table, each row of which can be resumed."""

from __future__ import annotations

import dataclasses
import functools
import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from echox.codecs.base import CODECS, Codec
from echox.core import checkpoint
from echox.core.config import near, to_plain
from echox.core.device import device_named, multiplies_bf16_fast
from echox.core.errors import CheckpointError, ConfigError, ManifestError
from echox.core.files import atomic_write, json_hash
from echox.core.number_format import kept_in
from echox.core.progress import progress
from echox.data.audio import audio_header
from echox.data.manifest import OnBroken, Row, read_manifests
from echox.evaluation.agreement import (
    CASCADE,
    Record,
    agreement_table,
    cascade_of,
    recorded_units,
    spoken_answers,
)
from echox.evaluation.page import protocol_lines, table_lines
from echox.inference.load import load_tts_pipeline
from echox.inference.pipeline import SpeechToSpeechPipeline
from echox.models.echo import EchoModel
from echox.models.speech_llm import SpeechLLM
from echox.pipeline.compose import amended
from echox.pipeline.recipe import Recipe, from_dict, in_full
from echox.pipeline.recipe_files import recipe_folders
from echox.pipeline.run import train_stage
from echox.pipeline.tasks import finished_parents, parent_folder, stage_task
from echox.tasks.base import TaskConfig, Use

REVISION = 1  # raised when the content of a stored row changes
UNTRAINED = "Echo, untrained"
WAYS = {
    "Echo": [],
    "without denoising": ["echo.criterion.denoising_weight=0"],
    "denoising capped at 20 %": ["echo.criterion=echo_capped"],
    "online labels": ["echo.task.online={}"],
    "segment-wise": ["echo.task.segments={}"],
    "starting from 8 candidates": ["echo.task.denoiser.candidates=8"],
}


@dataclass(kw_only=True, slots=True)
class AblationConfig:
    """Train Echo in several ways on a finished run, and compare the units of each.

    They are compared with recordings and with pseudo-labels.

    Raises:
        ConfigError: a number is below 1, or a name is not one of a way.
    """

    run: str = "runs/echo_mini"
    """Folder of the run, which holds s2t/final and t2c/final; the table is written to `ablation` in
    it."""
    ways: dict[str, list[str]] = field(
        default_factory=lambda: {name: list(changes) for name, changes in WAYS.items()}
    )
    """Ways to train Echo: each a name and the settings it changes in the run's recipe. Two rows
    come before: T2C from the greedy text, and Echo before its first step."""
    only: list[str] = field(default_factory=list)
    """Names of the ways to take; none takes all."""
    settings: list[str] = field(default_factory=list)
    """Settings changed in the run's recipe for every way, each in quotes:
    settings=['echo.train.lr=1e-4']."""
    steps: int | None = 40
    """Training steps of each way; null takes the recipe's."""
    manifests: list[str] = field(default_factory=list)
    """Manifests of held-out questions; none takes those that Echo validates on."""
    questions: int = 64
    """Held-out questions that are answered, drawn by `seed`, first among those whose answers are
    recorded."""
    max_tokens: int = 48
    """Text tokens of an answer at most."""
    batch_size: int = 16
    """Questions answered at once."""
    seed: int = 1
    """Seed of the draw."""
    cache_dir: str | None = None
    """Folder of derived data; null takes the recipe's."""
    device: str = "auto"
    """Device to run on: auto, cpu, cuda or cuda:N."""
    plugin_dirs: list[str] = field(default_factory=list)
    """Folders of plugins beside ./plugins and ECHOX_PLUGINS; their code is run."""

    def __post_init__(self) -> None:
        for name in ("questions", "max_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, and is {getattr(self, name)}")
        for name in self.only:
            if name not in self.ways:
                raise ConfigError(
                    f"only names {name!r}, which is no way to train Echo{near(name, self.ways)}; "
                    f"ways are {', '.join(self.ways)}"
                )
        if reserved := {CASCADE, UNTRAINED} & set(self.ways):
            raise ConfigError(
                f"ways may not be called {' or '.join(sorted(reserved))}; that row is always there"
            )


def ablate(config: AblationConfig) -> dict[str, Any]:
    """Train Echo in each way, write `ablation.json` and `ablation.md`, and print the latter.

    Rows that are finished are not made again.

    Returns:
        the content of `ablation.json`.

    Raises:
        CheckpointError: S2T or T2C of the run is not finished.
        ConfigError: a way does not fit the recipe.
        ManifestError: there is no held-out question.
    """
    bench = _Bench(config)
    # All recipes before the first training, since one of them may not fit.
    recipes = {UNTRAINED: bench.recipe}
    for name, changes in config.ways.items():
        if name in config.only or not config.only:
            recipes[name] = bench.way(name, changes)
    recordings, ways = _rows(bench, recipes)
    table = agreement_table({CASCADE: cascade_of(ways[UNTRAINED]), **ways}, recordings)
    scores = {
        name: {metric: dataclasses.asdict(score) for metric, score in row.items()}
        for name, row in table.items()
    }
    result = {
        "run": config.run,
        "parents": bench.parents,
        "config": to_plain(config),
        "rows": len(bench.rows),
        "recorded": len(recordings),
        "scores": scores,
    }
    _write(bench.folder / "ablation.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    page = "\n".join(_page(result))
    _write(bench.folder / "ablation.md", page + "\n")
    print(page)
    return result


def _rows(
    bench: _Bench, recipes: Mapping[str, Recipe]
) -> tuple[dict[str, Any], dict[str, list[Record]]]:
    """Return the recorded units, and the records of every way's answers."""
    ways: dict[str, list[Record]] = {}
    with kept_in(bench.run, bench.device):
        recordings = bench.stored(
            "recordings", "", lambda: recorded_units(bench.rows, bench.codec, bench.device)
        )
        for name, recipe in recipes.items():
            is_trained = name != UNTRAINED
            plan = to_plain(recipe.plan(bench.stage)) if is_trained else ""
            make = functools.partial(bench.answer_all, recipe, is_trained)
            ways[name] = bench.stored(name, plan, make)
    return recordings, ways


def _held_out_manifests(task: TaskConfig) -> list[str]:
    """The validation manifests of a task; none where it names its data otherwise."""
    return list(getattr(getattr(task, "data", None), "valid", ()))


class _Bench:
    """A finished run and the questions that its ways answer."""

    def __init__(self, config: AblationConfig) -> None:
        self.config = config
        self.run = Path(config.run)
        self.folder = self.run / "ablation"
        self.device = device_named(config.device)
        # The run's own recipe, since ways must differ from it by their changes alone.
        recipe = _recipe_of(self.run)
        stage = recipe.last(Use.answer_aloud)
        if stage is None:
            raise ConfigError(f"{self.run} has no stage that answers aloud, such as echo")
        self.stage = stage
        finals = finished_parents(recipe, self.stage, self.run)
        self.parents = {role: _weights_of(final) for role, final in finals.items()}
        self.t2c = parent_folder(self.run, self._t2c_of(recipe))
        train = f"stages.{self.stage}.train"
        # Without validation: the table scores every way once, after its training.
        changes = [f"stage={self.stage}", f"{train}.validate_every=null", *config.settings]
        changes += [f"{train}.steps={config.steps}"] if config.steps is not None else []
        changes += [f"cache_dir={config.cache_dir}"] if config.cache_dir is not None else []
        self.recipe = self._amended(recipe, changes)
        self.codec: Codec = CODECS.build(self.recipe.codec).to(self.device).eval()
        self.rows = self._held_out_rows()

    def _t2c_of(self, recipe: Recipe) -> str:
        parents = recipe.parents(self.stage).values()
        return next(name for name in parents if recipe.task_type(name).use is Use.synthesize)

    def _amended(self, recipe: Recipe, changes: Sequence[str]) -> Recipe:
        return amended(recipe, changes, recipe_folders(), in_full=in_full)

    def way(self, name: str, changes: Sequence[str]) -> Recipe:
        """Return the recipe of a way, whose folder no way of other settings shares."""
        recipe = self._amended(self.recipe, changes)
        key = self._key(to_plain(recipe.plan(self.stage)))
        folder = self.folder / "runs" / f"{_file_name(name)}-{key}"
        return dataclasses.replace(recipe, run_dir=str(folder))

    def _key(self, settings: Any) -> str:
        # With the parents' weights, so that rows of a run that was trained again are made again.
        return json_hash([REVISION, self.parents, settings], 12)

    def _held_out_rows(self) -> list[Row]:
        """Draw held-out questions, and sort them by duration for batches of little padding."""
        paths = self.config.manifests or _held_out_manifests(self.recipe.plan(self.stage).task)
        rows = [
            row for row in read_manifests(paths, on_broken=OnBroken.skip) if row.answers_a_question
        ]
        if not rows:
            raise ManifestError(
                f"no row of {', '.join(paths) or 'any manifest'} has a question with a written "
                "answer; name held-out manifests=[...]"
            )
        random.Random(self.config.seed).shuffle(rows)
        # Recorded answers first, in shuffled order, because the sort is stable.
        rows.sort(key=lambda row: row.require_answer().audio is None)
        return sorted(rows[: self.config.questions], key=_question_s)

    def stored(self, name: str, settings: Any, make: Callable[[], Any]) -> Any:
        """Return a row that was stored with the same settings and questions, or make and store it.

        Args:
            name: of the row.
            settings: what decides its content, beside the questions; JSON-ready.
            make: returns its content, JSON-ready.
        """
        key = self._key([settings, self.config.max_tokens, [row.id for row in self.rows]])
        path = self.folder / "rows" / f"{_file_name(name)}.json"
        stored = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        # The file is named by the way, so a row of other settings is replaced.
        if stored.get("key") != key:
            stored = {"key": key, "name": name, "made": make()}
            _write(path, json.dumps(stored, ensure_ascii=False) + "\n")
        return stored["made"]

    def answer_all(self, recipe: Recipe, is_trained: bool) -> list[Record]:
        """Train Echo by a recipe, or leave it at its initial weights, and answer all questions."""
        model = self._model(recipe, is_trained).to(self.device).eval()
        bf16 = multiplies_bf16_fast(self.device)
        pipeline = SpeechToSpeechPipeline(
            model, self.codec, max_tokens=self.config.max_tokens, bf16=bf16
        )
        cascade = load_tts_pipeline(self.t2c, beside=pipeline, bf16=bf16)
        size = self.config.batch_size
        batches = [self.rows[start : start + size] for start in range(0, len(self.rows), size)]
        return [
            record
            for batch in progress(batches, "answering", unit="batch")
            for record in spoken_answers(pipeline, cascade, batch)
        ]

    def _model(self, recipe: Recipe, is_trained: bool) -> EchoModel | SpeechLLM:
        final = None
        if is_trained:
            final = train_stage(recipe, self.stage, self.device, parents=self.run)
        task = stage_task(recipe, self.stage, self.device, parents=self.run)
        # The initial weights of the stage's own training.
        torch.manual_seed(recipe.seed)
        model = task.build()
        if final is not None:
            checkpoint.fill(model, checkpoint.load(final), set(task.trained_state_dict(model)))
        return model


def _recipe_of(run: Path) -> Recipe:
    """Return the recipe of a run, as the last of its finished stages recorded it.

    Raises:
        CheckpointError: no stage is finished.
    """
    finals = sorted(run.glob("*/final"))
    if not finals:
        raise CheckpointError(
            f"{run} holds no finished stage; name a run that S2T and T2C are finished in with run="
        )
    # Any of them tells the order of the stages, by which the last is found.
    recipe = from_dict(checkpoint.described(finals[0])["recipe"])
    last = [stage for stage in recipe.members if (run / stage / "final").exists()][-1]
    return from_dict(checkpoint.described(run / last / "final")["recipe"])


def _weights_of(final: Path) -> str:
    """Return the hash of a checkpoint's weights that its metadata records."""
    # Not computed, since `finished_parents` has just verified it.
    return checkpoint.described(final)["files"][checkpoint.MODEL]["sha256"]


def _question_s(row: Row) -> float:
    """Return the duration of a row's spoken question in seconds, 0 for a typed one."""
    if row.question is None or row.question.audio is None:
        return 0.0
    return audio_header(row.question.audio).duration_s


def _file_name(name: str) -> str:
    # A name is free text, and may hold "/" or "%".
    return re.sub(r"\W+", "_", name).strip("_").lower()


def _page(result: dict[str, Any]) -> list[str]:
    config, scores = result["config"], result["scores"]
    settings, steps = ", ".join(config["settings"]), config["steps"]
    length = "as many steps as the recipe has" if steps is None else f"{steps} steps"
    ways = [
        f"- {name}: {', '.join(changes) or 'as the recipe has it'}"
        for name, changes in config["ways"].items()
        if name in scores
    ]
    return [
        f"# Ways to train Echo: {result['run']}",
        "",
        f"Each way trained for {length}{f' with {settings}' if settings else ''}.",
        f"{result['rows']} held-out questions answered, {result['recorded']} of them with a "
        "recorded answer; in brackets the 95 % interval, by bootstrap over rows.",
        "",
        *table_lines(scores),
        "",
        *protocol_lines(scores),
        "",
        *ways,
    ]


def _write(path: Path, text: str) -> None:
    # Whole or not at all, because a later call trusts the file.
    with atomic_write(path) as unfinished:
        unfinished.write_text(text, "utf-8")
