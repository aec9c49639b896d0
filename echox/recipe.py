"""A recipe: everything one run is made of, typed; composed from a YAML file and the command line.

A recipe file names its parts in a Hydra defaults list and sets what differs from the dataclasses' defaults:

    # echox-train recipe=my_run
    doc: What this recipe is for.
    defaults:
      - _stages                # the tasks and criteria of align, s2t, t2c and echo
      - encoder: whisper       # a registered name, or a preset in recipes/encoder/
      - backbone: hub
      - codec: kmeans
      - _self_
    encoder: {weights: whisper_base}
    backbone: {weights: smollm2_135m}
    codec: {folder: "${run_dir}/codec"}
    s2t:
      train:
        steps: 400
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import echox_recipes
import yaml
from omegaconf import MISSING, OmegaConf

from echox.backbones.base import BackboneConfig
from echox.codecs.base import CodecConfig
from echox.compose import compose, finish, parse_overrides
from echox.config import from_plain, near, neutral, to_plain
from echox.corpora.demo_config import DemoCorpusConfig
from echox.criteria.base import CriterionConfig
from echox.encoders.base import EncoderConfig
from echox.engine.config import TrainConfig
from echox.errors import ConfigError
from echox.evaluation.config import EvaluateConfig
from echox.plugins import REGISTRIES
from echox.tasks.base import TASKS, TaskConfig

DEFAULT_RECIPE = "echo_mini"
FOLDERS_VARIABLE = "ECHOX_RECIPES"
DEFAULT_FOLDER = "recipes"
STAGES = ("align", "s2t", "t2c", "echo")
ALL_STAGES = ("vocoder", *STAGES)  # a vocoder is trained by a recipe of its own, before the others need it


@dataclass(kw_only=True, slots=True)
class StagePlan:
    """One stage of training."""

    task: TaskConfig = MISSING
    """What the stage reads, builds and validates."""
    criterion: CriterionConfig = MISSING
    """Its loss."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """How it is trained."""
    cpu_processes: int = neutral(1)
    """Processes that train it together on a CPU: ranks that share each micro-batch and the threads, as the recipe's `own_processes` allows. It
    pays where little is learned of a large model, such as LoRA, for each keeps the whole optimiser. Without effect on a GPU and under torchrun."""

    def __post_init__(self) -> None:
        if self.cpu_processes < 1:
            raise ConfigError(f"cpu_processes must be at least 1, and is {self.cpu_processes}")


@dataclass(kw_only=True, slots=True)
class Recipe:
    """Everything one run is made of."""

    name: str = MISSING
    """Name of the run; the recipe's file name where it is not set."""
    doc: str = ""
    """What the recipe is for, in one sentence."""
    seed: int = 1
    """Seed of every random draw."""
    run_dir: str = "runs/${name}"
    """Folder of checkpoints, metrics and logs."""
    cache_dir: str = "runs/cache"
    """Folder of derived data that can be made again (features, pseudo-labels, corpora)."""
    device: str = "auto"
    """Device to run on: auto, cpu, cuda or cuda:N."""
    plugin_dirs: list[str] = field(default_factory=list)
    """Folders of plugins beside ./plugins and ECHOX_PLUGINS; their code is run."""
    cpu_threads: int | None = neutral(None)
    """Threads that PyTorch computes on, on a CPU; null for one per core, or as OMP_NUM_THREADS says. Parts as small as a smoke test's gain
    nothing from a second one, and beside other processes take up to three times as long on two."""
    dry_run: bool = False
    """Only say what the run would take: sizes, memory, tokens per step, missing files; with an exit code of 0 where none is missing."""
    overwrite: bool = False
    """Train stages of `run_dir` that were made by other settings or data again, with all that builds on them, instead of refusing to; what
    was there is moved to `replaced` in `run_dir`."""
    own_processes: bool = False
    """Make the corpus, the codec, what each stage reads, each stage and the report in a process of its own each, so that none inherits the
    scattered memory of those before; a process takes some seconds to start. Under torchrun the process of each rank does all."""
    stage: str | None = None
    """Run this stage alone; null runs all of `stages`."""
    stages: list[str] = field(default_factory=lambda: list(STAGES))
    """Stages in the order they are run."""
    refit: str | None = None
    """Folder of a finished run whose speech side is fitted to this recipe's language model: Echo alone is trained, on that run's S2T and T2C."""
    checkpoint: str | None = None
    """A published folder that training starts from, where the recipe's tasks take one."""
    encoder: EncoderConfig | None = None
    """What hears."""
    backbone: BackboneConfig | None = None
    """The language model; null where the tasks bring their own."""
    codec: CodecConfig | None = None
    """What turns speech into units and back; null where the tasks bring their own."""
    corpus: DemoCorpusConfig | None = None
    """The corpus to synthesise before training; null where manifests are given."""
    codec_speech: list[str] = field(default_factory=list)
    """Manifests whose assistant audio the codec is fitted to, where it needs fitting and is not fitted yet."""
    codec_hours: float | None = 1.5
    """Hours of those recordings to fit to, drawn evenly; null takes all."""
    units: list[str] = field(default_factory=list)
    """Manifests whose assistant audio is encoded before T2C: NAME.jsonl becomes NAME.units.jsonl."""
    example: str | None = None
    """Manifest whose first spoken question the finished run answers aloud: `run_dir`/example holds question.wav and answer.wav; null for none."""
    report: EvaluateConfig | None = None
    """Score the finished run on the corpus's test questions, and write the answers to listen to."""
    vocoder: StagePlan | None = None
    """A unit vocoder, which turns the codec's units into a voice; it stands by itself."""
    align: StagePlan | None = None
    """Stage I, first half: the speech adapter learns to hear the language model's tokens."""
    s2t: StagePlan | None = None
    """Stage I: speech to text, the language model answers what it hears."""
    t2c: StagePlan | None = None
    """Stage II: text to codec units."""
    echo: StagePlan | None = None
    """Stage III: the language model's hidden states to codec units."""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ConfigError(f"seed must not be negative, and is {self.seed}")
        if self.cpu_threads is not None and self.cpu_threads < 1:
            raise ConfigError(f"cpu_threads must be at least 1 or null, and is {self.cpu_threads}")
        if not self.stages:
            raise ConfigError(f"stages is empty; name at least one of {', '.join(ALL_STAGES)}")
        for stage in [*self.stages, *([self.stage] if self.stage else [])]:
            if stage not in ALL_STAGES:
                raise ConfigError(f"no stage named {stage!r}{near(stage, ALL_STAGES)}; stages are {', '.join(ALL_STAGES)}")
        for stage in self.planned:
            plan = self.plan(stage)
            if plan is None:
                raise ConfigError(f"the recipe runs stage {stage!r} but has no plan for it; add '- _stages' to its defaults list or set {stage}.task")
            if plan.cpu_processes > 1 and not self.own_processes:
                raise ConfigError(f"{stage}.cpu_processes is {plan.cpu_processes}, which needs own_processes=true")
        if self.device not in ("auto", "cpu", "cuda") and not self.device.removeprefix("cuda:").isdecimal():
            raise ConfigError(f"device {self.device!r} is unknown; use auto, cpu, cuda or cuda:N")

    @property
    def planned(self) -> list[str]:
        """The stages this run trains, in order."""
        return [self.stage] if self.stage else self.stages

    @property
    def answers_example(self) -> bool:
        """Whether the run ends with a question that it answers."""
        return self.example is not None and not self.stage and "echo" in self.planned

    def parents(self, stage: str) -> list[str]:
        """The stages whose checkpoints a stage builds on."""
        task = TASKS.entry_of(self.plan(stage).task).implementation
        return [*task.parents, *(parent for parent in task.continues if parent in self.stages)]

    def check(self) -> None:
        """
        Raises:
            ConfigError: a stage needs a part that the recipe does not name, or a checkpoint is given that no stage takes.
        """
        for stage in self.planned:
            for kind in TASKS.entry_of(self.plan(stage).task).implementation.needs:
                if {"encoder": self.encoder, "backbone": self.backbone, "codec": self.codec}[kind] is None:
                    raise ConfigError(f"{kind} has no value, but stage {stage!r} needs one; set {kind}=NAME, one of {', '.join(REGISTRIES[kind])}")
        if self.checkpoint is not None and all(to_plain(self.plan(stage).task).get("checkpoint") is None for stage in self.planned):
            raise ConfigError(f"checkpoint is {self.checkpoint!r}, but no stage of {self.name} starts from one; use recipe=release_finetune, or leave it out")

    def plan(self, stage: str) -> StagePlan | None:
        """The plan of a stage by its name."""
        return {"vocoder": self.vocoder, "align": self.align, "s2t": self.s2t, "t2c": self.t2c, "echo": self.echo}[stage]


def recipe_folders(recipe_dirs: Sequence[str | Path] = ()) -> list[Path]:
    """Where recipes and presets are looked for, first wins: `recipe_dirs`, ECHOX_RECIPES, ./recipes, those of echox.

    Raises:
        ConfigError: a folder that was asked for does not exist.
    """
    named = [(Path(folder), "the recipe folder") for folder in recipe_dirs]
    named += [(Path(folder), FOLDERS_VARIABLE) for folder in os.environ.get(FOLDERS_VARIABLE, "").split(os.pathsep) if folder]
    for folder, where in named:
        if not folder.is_dir():
            raise ConfigError(f"{where} {str(folder)!r} does not exist")
    candidates = [folder for folder, _ in named] + [Path(DEFAULT_FOLDER), Path(echox_recipes.__file__).parent]
    return list({folder.resolve(): folder for folder in candidates if folder.is_dir()}.values())


def list_recipes(recipe_dirs: Sequence[str | Path] = ()) -> dict[str, Path]:
    """Name -> file of every recipe that can be run; names with a leading underscore are building blocks."""
    files = [path for folder in recipe_folders(recipe_dirs) for path in sorted(folder.glob("*.yaml")) if not path.name.startswith("_")]
    return {path.stem: path for path in reversed(files)}


def recipe_doc(path: Path) -> str:
    """The one sentence a recipe file says about itself; of a broken file, what is wrong with it."""
    try:
        return str(_read_yaml(path).get("doc", ""))
    except ConfigError as error:
        return str(error)


def find_recipe(name: str, recipe_dirs: Sequence[str | Path] = ()) -> Path:
    """The file of a recipe, by name or by path.

    Raises:
        ConfigError: there is none; the text lists those there are.
    """
    if name.endswith((".yaml", ".yml")) or os.sep in name:
        path = Path(name) if name.endswith((".yaml", ".yml")) else Path(f"{name}.yaml")
        if not path.is_file():
            raise ConfigError(f"no recipe file {str(path)!r}; give the path of a YAML file, or one of the names {', '.join(list_recipes(recipe_dirs))}")
        return path
    known = list_recipes(recipe_dirs)
    if name not in known:
        raise ConfigError(f"no recipe named {name!r}{near(name, known)}; known: {', '.join(sorted(known)) or 'none'}")
    return known[name]


def plugin_dirs_of(name: str, overrides: Sequence[str] = (), recipe_dirs: Sequence[str | Path] = ()) -> list[str]:
    """The plugin folders a recipe asks for, readable before its plugins are loaded; an override replaces the file's."""
    folders = _read_yaml(find_recipe(name, recipe_dirs)).get("plugin_dirs") or []
    for assignment in parse_overrides(overrides):
        if assignment.key == "plugin_dirs":
            folders = assignment.value
    if not isinstance(folders, list):
        raise ConfigError(f"plugin_dirs takes a list of folders, plugin_dirs=[a,b], not {folders!r}")
    return [str(folder) for folder in folders]


def load_recipe(name: str = DEFAULT_RECIPE, overrides: Sequence[str] = (), recipe_dirs: Sequence[str | Path] = ()) -> Recipe:
    """Compose a recipe; `plugins.discover` must have been called before.

    Args:
        name: a recipe's name, or the path of a YAML file.
        overrides: `a.b=value` or `encoder=preset`, applied after the file.
        recipe_dirs: folders to search before all others.
    Raises:
        ConfigError: the recipe, a field, a value or a part does not exist or does not fit.
        PluginError: a part's name was registered twice.
    """
    recipe = finish(compose_recipe(name, overrides, recipe_dirs))
    for kind, config in _parts(recipe):
        REGISTRIES[kind].entry_of(config)
    return recipe


def _parts(recipe: Recipe) -> Iterator[tuple[str, Any]]:
    parts = (("encoder", recipe.encoder), ("backbone", recipe.backbone), ("codec", recipe.codec))
    yield from ((kind, config) for kind, config in parts if config is not None)
    for stage in recipe.planned:
        plan = recipe.plan(stage)
        yield from (("task", plan.task), ("criterion", plan.criterion))


def compose_recipe(name: str, overrides: Sequence[str] = (), recipe_dirs: Sequence[str | Path] = ()) -> Any:
    """The typed tree of a recipe, before its values are checked."""
    path = find_recipe(name, recipe_dirs)
    _refuse_inline_parts(path)
    folders = list(dict.fromkeys([path.parent, *recipe_folders(recipe_dirs)]))
    tree = compose(Recipe, parse_overrides(overrides), path.stem, folders)
    if OmegaConf.is_missing(tree, "name"):
        tree.name = path.stem
    return tree


def _refuse_inline_parts(path: Path) -> None:
    """`encoder: mel` in the body reads well, but a part is chosen in the defaults list."""
    body = _read_yaml(path)
    for kind in ("encoder", "backbone", "codec"):
        if isinstance(body.get(kind), str):
            raise ConfigError(f"{path} says '{kind}: {body[kind]}' in its body; write '- {kind}: {body[kind]}' in its defaults list")


def freeze(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON-ready data, each part with its name; stored in checkpoints."""
    return to_plain(recipe)


def restore(data: Mapping[str, Any]) -> Recipe:
    """The recipe that `freeze` wrote.

    Raises:
        ConfigError: a field is unknown. PluginError: a part's plugin is not there.
    """
    return from_plain(Recipe, data)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        place = f" at line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path} is not valid YAML{place}: {error.problem}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if data is not None and not isinstance(data, dict):
        raise ConfigError(f"{path} is not a recipe; it must hold `key: value` lines")
    return data or {}
