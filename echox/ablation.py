"""Ways to train Echo, side by side on a finished run: one table, and each of its rows resumable."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from echox import checkpoint
from echox.chain import stage_task, train_stage
from echox.codecs.base import CODECS, Codec
from echox.compose import amended
from echox.config import near, to_plain
from echox.data.audio import audio_header
from echox.data.manifest import OnBroken, Row, read_manifests
from echox.data.writing import appearing
from echox.device import device_named, multiplies_bf16_fast
from echox.errors import ConfigError, ManifestError
from echox.evaluation.agreement import CASCADE, Record, agreement_table, cascade_of, recorded_units, spoken_answers
from echox.evaluation.page import protocol_lines, table_lines
from echox.generation.answering import Answerer, Voice
from echox.generation.restoring import load_stage, voice_of
from echox.number_format import kept_in
from echox.progress import progress
from echox.recipe import Recipe, recipe_folders, restore

REVISION = 1  # raised when what a row holds changes
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
    """Train Echo in several ways on a finished run, and compare the units that each speaks with recordings and with pseudo-labels."""

    run: str = "runs/echo_mini"
    """Folder of the run, which holds s2t/final and t2c/final; the table is written to `ablation` in it."""
    ways: dict[str, list[str]] = field(default_factory=lambda: {name: list(changes) for name, changes in WAYS.items()})
    """Ways to train Echo: each a name and the settings it changes in the run's recipe. Two rows come before: T2C from the greedy text, and Echo before its first step."""
    only: list[str] = field(default_factory=list)
    """Names of the ways to take; none takes all."""
    settings: list[str] = field(default_factory=list)
    """Settings changed in the run's recipe for every way, each in quotes: settings=['echo.train.lr=1e-4']."""
    steps: int | None = 40
    """Training steps of each way; null takes the recipe's."""
    manifests: list[str] = field(default_factory=list)
    """Manifests of held-out questions; none takes those that Echo validates on."""
    questions: int = 64
    """Held-out questions that are answered, drawn by `seed`, first among those whose answers are recorded."""
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
                raise ConfigError(f"only names {name!r}, which is no way to train Echo{near(name, self.ways)}; ways are {', '.join(self.ways)}")
        if taken := {CASCADE, UNTRAINED} & set(self.ways):
            raise ConfigError(f"ways may not be called {' or '.join(sorted(taken))}; that row is always there")


def ablate(config: AblationConfig) -> dict[str, Any]:
    """Fill the table row by row, write `ablation.json` and `ablation.md`, and print the latter; finished rows are not made again.

    Returns:
        what `ablation.json` holds.
    Raises:
        CheckpointError: S2T or T2C of the run is not finished. ConfigError: a way does not fit the recipe. ManifestError: nothing is held out.
    """
    bench = _Bench(config)
    chosen = {name: changes for name, changes in config.ways.items() if name in config.only or not config.only}
    recipes = {UNTRAINED: bench.recipe, **{name: bench.way(name, changes) for name, changes in chosen.items()}}
    ways: dict[str, list[Record]] = {}
    with kept_in(bench.run, bench.device):
        recordings = bench.kept("recordings", "", lambda: recorded_units(bench.rows, bench.codec, bench.device))
        for name, recipe in recipes.items():
            trained = name != UNTRAINED
            about = to_plain(recipe.echo) if trained else ""
            ways[name] = bench.kept(name, about, lambda recipe=recipe, trained=trained: bench.make(recipe, trained))
    table = agreement_table({CASCADE: cascade_of(ways[UNTRAINED]), **ways}, recordings)
    scores = {name: {metric: dataclasses.asdict(score) for metric, score in row.items()} for name, row in table.items()}
    result = {"run": config.run, "parents": bench.parents, "config": to_plain(config), "rows": len(bench.rows), "recorded": len(recordings), "scores": scores}
    _write(bench.folder / "ablation.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    page = "\n".join(_page(result))
    _write(bench.folder / "ablation.md", page + "\n")
    print(page)
    return result


class _Bench:
    """A finished run and the questions that its ways answer."""

    def __init__(self, config: AblationConfig) -> None:
        self.config = config
        self.run = Path(config.run)
        self.folder = self.run / "ablation"
        self.device = device_named(config.device)
        last = next((stage for stage in ("echo", "t2c") if (self.run / stage / "final").exists()), "t2c")
        self.parents = {stage: checkpoint.verify(self.run / stage / "final")["files"][checkpoint.MODEL]["sha256"] for stage in ("s2t", "t2c")}
        common = ["stage=echo", "echo.train.validate_every=null", *config.settings]
        common += [f"echo.train.steps={config.steps}"] if config.steps is not None else []
        common += [f"cache_dir={config.cache_dir}"] if config.cache_dir is not None else []
        self.recipe = self._amended(restore(checkpoint.verify(self.run / last / "final")["recipe"]), common)
        self.codec: Codec = CODECS.build(self.recipe.codec).to(self.device).eval()
        self.rows = self._drawn()

    def _amended(self, recipe: Recipe, changes: Sequence[str]) -> Recipe:
        return amended(recipe, changes, recipe_folders())

    def way(self, name: str, changes: Sequence[str]) -> Recipe:
        """The recipe of a way; its checkpoints stand in a folder that another setting would not share."""
        recipe = self._amended(self.recipe, changes)
        return dataclasses.replace(recipe, run_dir=str(self.folder / "runs" / f"{_file_name(name)}-{self._key(to_plain(recipe.echo))}"))

    def _key(self, about: Any) -> str:
        content = [REVISION, self.parents, about]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    def _drawn(self) -> list[Row]:
        paths = self.config.manifests or self.recipe.echo.task.data.valid
        rows = [row for row in read_manifests(paths, on_broken=OnBroken.skip) if row.answer is not None and row.answer.text and len(row.turns) > 1]
        if not rows:
            raise ManifestError(f"no row of {', '.join(paths) or 'any manifest'} has a question with a written answer; name held-out manifests=[...]")
        random.Random(self.config.seed).shuffle(rows)
        rows.sort(key=lambda row: row.answer.audio is None)
        return sorted(rows[: self.config.questions], key=_asked_s)

    def kept(self, name: str, about: Any, make: Callable[[], Any]) -> Any:
        """What was made before of the same settings and questions, or is made now."""
        key = self._key([about, self.config.max_tokens, [row.id for row in self.rows]])
        path = self.folder / "rows" / f"{_file_name(name)}.json"
        stored = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        if stored.get("key") != key:
            stored = {"key": key, "name": name, "made": make()}
            _write(path, json.dumps(stored, ensure_ascii=False) + "\n")
        return stored["made"]

    def make(self, recipe: Recipe, trained: bool) -> list[Record]:
        """Train Echo by a recipe, or leave it as it begins, and answer all questions."""
        final = train_stage(recipe, "echo", self.device, parents=self.run) if trained else None
        task = stage_task(recipe, "echo", self.device, parents=self.run)
        torch.manual_seed(recipe.seed)
        model = task.build()
        if final is not None:
            checkpoint.fill(model, checkpoint.load(final), set(task.learned(model)))
        bf16 = multiplies_bf16_fast(self.device)
        answerer = Answerer(model.to(self.device).eval(), self.codec, max_tokens=self.config.max_tokens, bf16=bf16)
        t2c = voice_of(load_stage(self.run / "t2c" / "final", ("t2c",)), answerer.backbone, self.codec)
        voice = Voice(t2c.to(self.device), answerer.backbone, self.codec, bf16=bf16)
        size = self.config.batch_size
        batches = [self.rows[start : start + size] for start in range(0, len(self.rows), size)]
        return [record for batch in progress(batches, "answering", unit="batch") for record in spoken_answers(answerer, voice, batch)]


def _asked_s(row: Row) -> float:
    return audio_header(row.question.audio).duration_s if row.question is not None and row.question.audio is not None else 0.0


def _file_name(name: str) -> str:
    return re.sub(r"\W+", "_", name).strip("_").lower()


def _page(result: dict[str, Any]) -> list[str]:
    settings, config = ", ".join(result["config"]["settings"]), result["config"]
    steps = "as many steps as the recipe has" if config["steps"] is None else f"{config['steps']} steps"
    lines = [f"# Ways to train Echo: {result['run']}", "", f"Each way trained for {steps}{f' with {settings}' if settings else ''}."]
    lines += [f"{result['rows']} held-out questions answered, {result['recorded']} of them with a recorded answer; in brackets the 95 % interval, by bootstrap over rows.", ""]
    lines += [*table_lines(result["scores"]), "", *protocol_lines(result["scores"]), ""]
    return [*lines, *(f"- {name}: {', '.join(changes) or 'as the recipe has it'}" for name, changes in config["ways"].items() if name in result["scores"])]


def _write(path: Path, text: str) -> None:
    with appearing(path) as unfinished:
        unfinished.write_text(text, "utf-8")
