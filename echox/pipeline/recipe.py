"""A recipe is the typed config of one run, composed from a YAML file and command-line overrides.

Stages are data: a recipe may have any number under any names. On a command line
`s2t.train.steps=400` is short for `stages.s2t.train.steps=400`.

A recipe file names its parts in a Hydra defaults list and sets what
differs from the dataclasses' defaults:

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
    stages:
      s2t:
        train: {steps: 400}
"""

from __future__ import annotations

import dataclasses
import enum
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

from echox.assets.sources import AssetSources
from echox.backbones.base import BackboneConfig
from echox.codecs.base import CodecConfig
from echox.core.config import from_plain, near, neutral, to_plain
from echox.core.errors import ConfigError
from echox.corpora.demo_config import DemoCorpusConfig
from echox.criteria.base import CRITERIA, CriterionConfig
from echox.encoders.base import EncoderConfig, cannot_train_reason
from echox.engine.config import TrainConfig
from echox.evaluation.config import EvaluateConfig
from echox.pipeline.compose import compose, finish, parse_overrides
from echox.pipeline.compose_errors import explained
from echox.pipeline.criterion_fit import criterion_misfit_reason
from echox.pipeline.plugins import REGISTRIES
from echox.pipeline.recipe_files import find_recipe, recipe_folders
from echox.pipeline.yaml_files import inherited_files
from echox.tasks.base import TASKS, Task, TaskConfig, Use
from echox.tasks.recorded import FORMER_STAGES, plans_of

DEFAULT_RECIPE = "echo_mini"


@dataclass(kw_only=True, slots=True)
class StagePlan:
    """Plan of one training stage.

    Raises:
        ConfigError: `cpu_processes` is below 1.
    """

    task: TaskConfig = MISSING
    """What the stage reads, builds and validates."""
    criterion: CriterionConfig = MISSING
    """Loss of the stage."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """How the stage is trained."""
    after: dict[str, str] = field(default_factory=dict)
    """Stages that it builds on, by the roles that its task names for them, `{s2t: my_s2t}`; a role
    that is not named here is filled by the stage of the same name. A finished stage of another run
    is named by its folder, `{s2t: runs/other/s2t}`."""
    cpu_processes: int = neutral(1)
    """Processes that train it together on a CPU: ranks that share each micro-batch and the threads;
    more than one needs `own_processes`. It pays where few weights of a large model are trained, as
    with LoRA, for each rank holds the whole optimiser. Without effect on a GPU and under
    torchrun."""

    def __post_init__(self) -> None:
        if self.cpu_processes < 1:
            raise ConfigError(f"cpu_processes must be at least 1, and is {self.cpu_processes}")


_PLAN_FIELDS = {field.name for field in dataclasses.fields(StagePlan)}


class Resume(enum.Enum):
    """Which checkpoints an unfinished stage goes on from."""

    same_settings = "same_settings"
    with_new_settings = "with_new_settings"


def is_folder(parent: str) -> bool:
    """Whether what fills a role names a folder, which is of another run, and no stage."""
    return "/" in parent or os.sep in parent


@dataclass(kw_only=True, slots=True)
class Recipe:
    """Config of one run: its parts, its stages, its data and its folders.

    Raises:
        ConfigError: a value is out of range, or a stage is named that has no plan.
    """

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
    assets: AssetSources = field(default_factory=AssetSources)
    """Where pretrained weights and voices are taken from."""
    cpu_threads: int | None = neutral(None)
    """Threads that PyTorch computes on, on a CPU; null for one per core, or as OMP_NUM_THREADS
    says. Parts as small as a smoke test's gain nothing from a second one, and beside other
    processes take up to three times as long on two."""
    dry_run: bool = False
    """Only print what the run would take: sizes, memory, tokens per step, missing files; with an
    exit code of 0 where none is missing."""
    overwrite: bool = False
    """Train stages of `run_dir` that were trained with other settings or data again, with all that
    builds on them, instead of refusing to; the earlier files are moved to `replaced` in
    `run_dir`."""
    resume: Resume = Resume.same_settings
    """Which checkpoints an unfinished stage goes on from: same_settings refuses those of other
    settings or of plugins edited since, with_new_settings takes them, and the stage's lineage
    records both settings and from which step. A finished stage, or a fitted codec, of which only
    plugins were edited is kept by it as it is."""
    own_processes: bool = False
    """Make the corpus, the codec, what each stage reads, each stage and the report in a process of
    its own each, so that none inherits the scattered memory of those before; a process takes some
    seconds to start. Under torchrun the process of each rank does all."""
    stage: str | None = None
    """Train this stage alone, on finished stages of `run_dir`; null trains those of `only`."""
    only: list[str] = field(default_factory=list)
    """Names of the stages that the recipe consists of; empty takes all of `stages`."""
    stages: dict[str, StagePlan | None] = field(default_factory=dict)
    """Stages by name, in the order in which they are trained; null leaves one out."""
    refit: str | None = None
    """Folder of a finished run whose speech side is fitted to this recipe's language model: Echo
    alone is trained, on that run's S2T and T2C."""
    checkpoint: str | None = None
    """Published folder that training starts from, where the recipe's tasks take one."""
    encoder: EncoderConfig | None = None
    """Speech encoder; null where the tasks bring their own."""
    backbone: BackboneConfig | None = None
    """Language model; null where the tasks bring their own."""
    codec: CodecConfig | None = None
    """Codec between speech and units; null where the tasks bring their own."""
    corpus: DemoCorpusConfig | None = None
    """Corpus to synthesise before training; null where manifests are given."""
    codec_speech: list[str] = field(default_factory=list)
    """Manifests whose assistant audio the codec is fitted to, where it needs fitting and is not
    fitted yet."""
    codec_hours: float | None = 1.5
    """Hours of those recordings to fit to, drawn evenly; null takes all."""
    units: list[str] = field(default_factory=list)
    """Manifests whose assistant audio is encoded before T2C: NAME.jsonl becomes
    NAME.units.jsonl."""
    example: str | None = None
    """Manifest whose first spoken question the finished run answers aloud: `run_dir`/example holds
    question.wav and answer.wav; null for none."""
    report: EvaluateConfig | None = None
    """Score the finished run on the corpus's test questions, and write the answers to listen
    to."""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ConfigError(f"seed must not be negative, and is {self.seed}")
        if self.overwrite and self.resume is Resume.with_new_settings:
            raise ConfigError(
                "overwrite=true trains stages of other settings anew, and resume=with_new_settings "
                "goes on from them; give one of the two"
            )
        if self.cpu_threads is not None and self.cpu_threads < 1:
            raise ConfigError(f"cpu_threads must be at least 1 or null, and is {self.cpu_threads}")
        self._check_stage_names()
        # Only those that are trained: a plan that `only` leaves out may be incomplete.
        for stage in [self.stage] if self.stage else self._chosen_stages:
            self._check_plan(stage)
        # By its spelling alone; whether the machine has it is checked where it is used.
        number = self.device.removeprefix("cuda:")
        if self.device not in ("auto", "cpu", "cuda") and not number.isdecimal():
            raise ConfigError(f"device {self.device!r} is unknown; use auto, cpu, cuda or cuda:N")

    def _check_stage_names(self) -> None:
        for stage in [*self.only, *([self.stage] if self.stage else [])]:
            if stage not in self.stages:
                raise ConfigError(
                    f"no stage named {stage!r}{near(stage, self.stages)}; "
                    f"the recipe has {', '.join(self.stages) or 'none'}"
                )
        if not self._chosen_stages:
            raise ConfigError(
                "the recipe has no stage; add '- _stages' to its defaults list, or set "
                "stages.NAME.task"
            )

    def _check_plan(self, stage: str) -> None:
        plan = self.stages[stage]
        if plan is None:
            raise ConfigError(
                f"the recipe trains stage {stage!r}, whose plan is null; "
                f"set stages.{stage}.task, or leave it out of only"
            )
        if plan.cpu_processes > 1 and not self.own_processes:
            raise ConfigError(
                f"{stage}.cpu_processes is {plan.cpu_processes}, which needs own_processes=true"
            )

    @property
    def _chosen_stages(self) -> list[str]:
        """Names of the stages that the recipe consists of, in the order of its file."""
        return self.only or [name for name, plan in self.stages.items() if plan is not None]

    @property
    def members(self) -> list[str]:
        """Stages that the recipe consists of, each after those it builds on."""
        chosen = self._chosen_stages
        # An ancestor that `only` leaves out is finished already, and is no member.
        return [stage for stage in self.with_ancestors(chosen) if stage in chosen]

    @property
    def planned(self) -> list[str]:
        """Stages that this run trains, in order."""
        return [self.stage] if self.stage else self.members

    @property
    def answers_example(self) -> bool:
        """Whether the run ends with a question that it answers aloud."""
        is_complete = self.example is not None and not self.stage
        return is_complete and self.last(Use.answer_aloud) is not None

    def require_corpus(self) -> DemoCorpusConfig:
        """Return the config of the corpus that the run makes.

        Raises:
            ConfigError: it makes none.
        """
        if self.corpus is None:
            raise ConfigError("this recipe makes no corpus; set corpus.folder to make one")
        return self.corpus

    def require_refit(self) -> Path:
        """Return the folder of the finished run that is fitted to this language model.

        Raises:
            ConfigError: none is named.
        """
        if self.refit is None:
            raise ConfigError("no finished run is named to refit; set refit=runs/NAME")
        return Path(self.refit)

    def plan(self, stage: str) -> StagePlan:
        """Return the plan of a stage by its name.

        Raises:
            ConfigError: the recipe leaves the stage out.
        """
        plan = self.stages[stage]
        if plan is None:
            raise ConfigError(f"stages.{stage} is null, which leaves it out; give it a task")
        return plan

    def task_type(self, stage: str) -> type[Task]:
        """Return the class of a stage's task.

        Raises:
            PluginError: the task's name was registered twice.
        """
        return TASKS.entry_of(self.plan(stage).task).implementation

    def parents(self, stage: str) -> dict[str, str]:
        """Return the stages whose checkpoints a stage builds on.

        Returns:
            role -> name of the stage, or folder of a stage of another run (`is_folder`). A role
            that the task only continues from is absent where the recipe does not consist of such a
            stage.
        """
        # A role that `after` does not name is filled by the stage of the same name.
        task, after = self.task_type(stage), self.plan(stage).after
        names = {role: after.get(role, role) for role in (*task.parents, *task.continues)}
        return {
            role: name
            for role, name in names.items()
            if role in task.parents or name in self._chosen_stages or is_folder(name)
        }

    def with_ancestors(self, stages: Iterable[str]) -> list[str]:
        """Return stages and all that they build on, each after those it builds on.

        Args:
            stages: names of stages; those that the recipe has no plan of are left out.

        Raises:
            ConfigError: they build on each other in a circle.
        """
        order: list[str] = []
        for stage in stages:
            self._append_with_ancestors(stage, order, path=[])
        return order

    def _append_with_ancestors(self, stage: str, order: list[str], path: list[str]) -> None:
        """Append a stage to `order` after its ancestors; `path` holds its descendants."""
        # Checked first, or a circle would recurse without end.
        if stage in path:
            circle = " -> ".join([*path[path.index(stage) :], stage])
            raise ConfigError(f"stages build on each other in a circle: {circle}; mend `after`")
        if stage in order or is_folder(stage) or self.stages.get(stage) is None:
            return
        for parent in self.parents(stage).values():
            self._append_with_ancestors(parent, order, [*path, stage])
        order.append(stage)

    def kinds(self, stage: str) -> list[str]:
        """Return the kinds of parts that a stage builds: encoder, backbone, codec."""
        task = self.task_type(stage)
        return [*task.needs, *(kind for kind in task.takes if getattr(self, kind) is not None)]

    def last(self, *uses: Use) -> str | None:
        """Return the last stage whose checkpoints have one of these uses, or None."""
        # `members` is in the order of training, so the first of its reverse is the last trained.
        stages = reversed(self.members)
        return next((stage for stage in stages if self.task_type(stage).use in uses), None)

    def check(self) -> None:
        """Check that the recipe names what its stages need.

        Raises:
            ConfigError: a stage needs a part that the recipe does not name, `after` names a role
                that its task does not have, a criterion cannot read what its task returns, the
                encoder is to be trained and cannot be, or a checkpoint is given that no stage
                takes.
        """
        for stage in self.planned:
            for kind in self.task_type(stage).needs:
                if getattr(self, kind) is None:
                    raise ConfigError(
                        f"{kind} has no value, but stage {stage!r} needs one; set {kind}=NAME, "
                        f"one of {', '.join(REGISTRIES[kind])}"
                    )
            self._check_roles(stage)
            self._check_criterion(stage)
            self._check_encoder_training(stage)
        tasks = (to_plain(self.plan(stage).task) for stage in self.planned)
        # Otherwise the field would be ignored, and training would start from other weights.
        if self.checkpoint is not None and all(task.get("checkpoint") is None for task in tasks):
            raise ConfigError(
                f"checkpoint is {self.checkpoint!r}, but no stage of {self.name} starts from one; "
                "use recipe=release_finetune, or leave it out"
            )

    def _check_roles(self, stage: str) -> None:
        """Check that a plan's `after` names roles of its task; another would be ignored."""
        task = self.task_type(stage)
        roles = (*task.parents, *task.continues)
        for role in self.plan(stage).after:
            if role not in roles:
                raise ConfigError(
                    f"{stage}.after names the role {role!r}, which its task does not have"
                    f"{near(role, roles)}; it has {', '.join(roles) or 'none'}"
                )

    def _check_criterion(self, stage: str) -> None:
        """Check that the criterion can read what the task returns."""
        implementation = CRITERIA.entry_of(self.plan(stage).criterion).implementation
        if reason := criterion_misfit_reason(self.task_type(stage), implementation):
            raise ConfigError(f"{stage}.criterion does not fit {stage}.task: {reason}")

    def _check_encoder_training(self, stage: str) -> None:
        """Check that a stage has a use for the encoder, where that is to be trained."""
        if self.encoder is None or not self.encoder.train or "encoder" not in self.kinds(stage):
            return
        if reason := cannot_train_reason(self.encoder):
            raise ConfigError(reason)
        plan = self.plan(stage)
        if reason := self.task_type(stage).cannot_train_encoder_reason(plan.task):
            raise ConfigError(
                f"encoder.train is true, but not for stage {stage!r}: {reason}; set "
                "encoder.train=false, or leave the stage out of only"
            )


_RECIPE_FIELDS = {"defaults", *(field.name for field in dataclasses.fields(Recipe))}


def load_recipe(
    name: str = DEFAULT_RECIPE,
    overrides: Sequence[str] = (),
    recipe_dirs: Sequence[str | Path] = (),
) -> Recipe:
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
    # A name that two plugins register is refused here, before anything is built.
    for kind, config in parts_of(recipe, recipe.planned):
        REGISTRIES[kind].entry_of(config)
    return recipe


def parts_of(recipe: Recipe, stages: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """Yield the kind and the config of every part that stages are built of."""
    parts = (("encoder", recipe.encoder), ("backbone", recipe.backbone), ("codec", recipe.codec))
    yield from ((kind, config) for kind, config in parts if config is not None)
    for stage in stages:
        plan = recipe.plan(stage)
        yield from (("task", plan.task), ("criterion", plan.criterion))


def own_parts(recipe: Recipe, stage: str) -> Iterator[tuple[str, Any]]:
    """Yield the kind and the config of every part that a stage itself is trained with."""
    kinds, plan = recipe.kinds(stage), recipe.plan(stage)
    yield from (item for item in parts_of(recipe, []) if item[0] in kinds)
    yield from (("task", plan.task), ("criterion", plan.criterion))


def compose_recipe(
    name: str, overrides: Sequence[str] = (), recipe_dirs: Sequence[str | Path] = ()
) -> Any:
    """Return the typed tree of a recipe, before its values are checked.

    Args:
        name, overrides, recipe_dirs: as `load_recipe` takes them.

    Raises:
        ConfigError: the recipe, a field, a value or a part does not exist or does not fit.
    """
    path = find_recipe(name, recipe_dirs)
    # The recipe's own folder first, so that presets beside it win.
    folders = list(dict.fromkeys([path.parent, *recipe_folders(recipe_dirs)]))
    with explained(DictConfig({}), f"{path.stem}.yaml: "):
        files = [*inherited_files(path.stem, folders)]
    for file in files:
        # Files of presets, such as encoder/mel, hold the fields of one part.
        if "/" not in file.name:
            _refuse_misplaced_keys(file.path, file.body)
    assignments = parse_overrides(overrides)
    # Before composing, whose error would only say that `stages` takes a mapping.
    if any(item.key == "stages" and isinstance(item.value, list) for item in assignments):
        raise ConfigError(
            "stages holds the plans of the stages; only=[NAME, ...] trains some of them"
        )
    tree = compose(Recipe, assignments, path.stem, folders, in_full=in_full)
    if OmegaConf.is_missing(tree, "name"):
        tree.name = path.stem
    return tree


def in_full(tree: DictConfig, key: str, keys: Sequence[str]) -> str:
    """Complete an override's key: `s2t.train.steps` is `stages.s2t.train.steps`.

    Args:
        tree: the recipe.
        key: dotted key of the override.
        keys: keys of all overrides; `stages.NAME.task` among them begins a new stage.

    Raises:
        ConfigError: the override sets a field of a stage that the recipe does not have.
    """
    new_stages = [name for name, field in map(_stage_and_field, keys) if field == "task"]
    stages = [*tree.stages, *new_stages]
    first = key.partition(".")[0]
    # A field of the recipe wins over a stage of the same name.
    if first in stages and first not in tree:
        return f"stages.{key}"
    # Without this, the error would look for a field of the recipe only.
    if first not in tree and near(first, stages):
        raise ConfigError(f"no field or stage named {first!r}{near(first, stages)}")
    name, field = _stage_and_field(key)
    # `turns.train.steps=3`, where no stage has that name.
    if first not in tree and _PLAN_FIELDS.intersection(key.split(".")[1:2]):
        name, field = first, key
    # A mistyped stage would otherwise begin a new one, since `stages` is an open mapping.
    if field and name not in stages:
        raise ConfigError(
            f"no stage named {name!r}{near(name, stages)}; the recipe has "
            f"{', '.join(stages) or 'none'}, and a new stage begins with stages.{name}.task=NAME"
        )
    return key


def _stage_and_field(key: str) -> tuple[str, str]:
    """Split `stages.NAME.FIELD` into (NAME, FIELD); any other key gives empty strings."""
    if not key.startswith("stages."):
        return "", ""
    name, _, field = key.removeprefix("stages.").partition(".")
    return name, field


def in_short(key: str) -> str:
    """Return the short form of a field's key, which `in_full` completes."""
    return key.removeprefix("stages.")


def _refuse_misplaced_keys(path: Path, body: Mapping[str, Any]) -> None:
    """Refuse `encoder: mel`, `task: turns` and `s2t: ...` in a body, which belong elsewhere."""
    # Hydra would report a type error here, without the advice.
    for kind in ("encoder", "backbone", "codec"):
        _refuse_name_of_part(path, kind, kind, body.get(kind))
    stages = body.get("stages")
    if not isinstance(stages, Mapping | None):
        raise ConfigError(
            f"{path}: stages takes a mapping of names to plans, NAME: {{train: ...}}, not "
            f"{stages!r}; 'only: [NAME, ...]' trains some of them"
        )
    for stage, plan in (stages or {}).items():
        if not isinstance(plan, Mapping | None):
            raise ConfigError(
                f"{path}: stages.{stage} takes a plan, {{task: ..., train: ...}}, or null to "
                f"leave the stage out, not {plan!r}"
            )
        for kind in ("task", "criterion"):
            _refuse_name_of_part(path, kind, f"stages.{stage}.{kind}", (plan or {}).get(kind))
    for key, value in body.items():
        # Recipes of before had a field for each stage.
        if key in FORMER_STAGES or (key not in _RECIPE_FIELDS and _is_plan(value)):
            raise ConfigError(
                f"{path} says '{key}:' beside its fields; plans of stages stand below 'stages:', "
                f"as stages: {{{key}: {{...}}}}"
            )


def _is_plan(value: Any) -> bool:
    """Whether a mapping has a field of a stage's plan, as the plan of a misplaced stage."""
    return isinstance(value, Mapping) and not _PLAN_FIELDS.isdisjoint(value)


def _refuse_name_of_part(path: Path, kind: str, key: str, value: Any) -> None:
    """Refuse the name of a part where its fields belong, as a text or as the field `name`."""
    name = value.get("name") if isinstance(value, Mapping) else value
    if isinstance(name, str):
        entry = f"{kind if kind == key else f'{kind}@{key}'}: {name}"
        raise ConfigError(
            f"{path} names the {kind} {name!r} in its body, at {key}; write '- {entry}' in its "
            f"defaults list, or '- override {entry}' where a recipe in that list names one"
        )


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as JSON-ready data, each part with its name; stored in checkpoints."""
    return to_plain(recipe)


def from_dict(data: Mapping[str, Any]) -> Recipe:
    """Rebuild a recipe from the data that `to_dict` returned.

    Raises:
        ConfigError: a field is unknown, or a value is out of range.
        PluginError: a part's plugin is not installed.
    """
    # Checkpoints of earlier versions must stay readable, so both forms are accepted.
    fields = _without_former_stages(data)
    return from_plain(Recipe, {**fields, "stages": plans_of(data), "only": _only(data)})


def _without_former_stages(data: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the fields that held the plan of one stage each, before `stages` held all."""
    return {key: value for key, value in data.items() if key not in FORMER_STAGES}


def _only(data: Mapping[str, Any]) -> list[str]:
    """Return `only`, which was a list called `stages` before `stages` held the plans."""
    stages = data.get("stages")
    return list(stages) if isinstance(stages, list) else list(data.get("only", ()))
