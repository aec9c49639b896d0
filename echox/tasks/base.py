"""The task interface: data, model, forward pass and validation of one training stage."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from echox.backbones.base import BACKBONES, Backbone, BackboneConfig
from echox.codecs.base import Codec, CodecConfig
from echox.core.checkpoint import Checkpoint
from echox.core.errors import CheckpointError, ConfigError
from echox.core.indexable import Indexable
from echox.core.registry import Registry
from echox.core.signals import Batch, Outputs
from echox.encoders.base import EncoderConfig, build_encoder

E = TypeVar("E")
Model = TypeVar("Model", bound=nn.Module)
Part = TypeVar("Part", bound=nn.Module)
TaskBatch = TypeVar("TaskBatch", bound=Batch)


@dataclass(kw_only=True, slots=True)
class TaskConfig:
    """Base class of every task's config."""


@dataclass(frozen=True, slots=True)
class Parts:
    """Configs of the swappable parts of a recipe; a task builds those it needs."""

    encoder: EncoderConfig | None
    backbone: BackboneConfig | None
    codec: CodecConfig | None

    def require_encoder(self) -> EncoderConfig:
        """Return the encoder's config.

        Raises:
            ConfigError: the recipe names none.
        """
        if self.encoder is None:
            raise ConfigError("encoder has no value, but the stage needs one; set encoder=NAME")
        return self.encoder


@dataclass(frozen=True, slots=True)
class StageContext:
    """Surroundings of a stage: its parts, its folders, and the stages before it."""

    parts: Parts
    seed: int
    cache_dir: Path  # derived data that can be made again (features, pseudo-labels, alignments)
    parents: Mapping[str, Path] = field(default_factory=dict)  # role -> finished checkpoint
    device: torch.device = torch.device("cpu")
    bf16: bool = False  # run frozen parts under bfloat16 autocast
    run_dir: Path | None = None  # of the stage, where validation may leave files for people


@dataclass(frozen=True, slots=True)
class Outline:
    """Sizes of a stage's model before anything is read: its shapes, and its memory in training."""

    # On the meta device, trained and frozen weights told apart, in the formats of training.
    model: nn.Module
    # Name of a part for people -> prefixes of its weights' names in `model`; together all weights.
    parts: Mapping[str, Sequence[str]]
    cost_unit: str  # what `Examples.cost` counts
    longest_cost: int | None  # of an example as long as the config allows; None: not known
    # Name -> estimated bytes kept from forward to backward, per unit of cost.
    activations: Mapping[str, float]
    notes: Sequence[str] = ()  # what a person must know to read these numbers, each a sentence
    # The pretrained parts alone: no stage can build on these shapes.
    is_estimate: bool = False

    def module(self, path: str, kind: type[Part]) -> Part:
        """Return a module of the model, for a stage whose model is built on this one's.

        Args:
            path: name of the module in `model`; "" is the model itself.
            kind: the class that it must have.

        Raises:
            ConfigError: the model has no such module.
        """
        found = dict(self.model.named_modules(remove_duplicate=False)).get(path)
        if not isinstance(found, kind):
            raise ConfigError(
                f"a stage needs a {kind.__name__}{f' called {path!r}' if path else ''} of the "
                f"stage before it, whose model is a {type(self.model).__name__}; name another "
                "stage in `after`"
            )
        return found


class Use(enum.Enum):
    """What the finished checkpoint of a stage can be used for."""

    answer_aloud = "answer_aloud"  # a spoken question -> the answer's text and speech
    answer = "answer"  # a spoken question -> the answer's text
    synthesize = "synthesize"  # text -> speech


class Role(enum.Enum):
    """Side that is updated in one phase of a training step, in the order of the phases."""

    discriminator = "discriminator"  # tells synthesized from real, where a stage has one
    model = "model"


def role_of(group: Mapping[str, Any]) -> Role:
    """Return the side that the parameters of a group belong to."""
    return group.get("role", Role.model)


@dataclass(frozen=True, slots=True, eq=False)
class TokenTargets:
    """Token sequence of one row of a batch, as its loss sees it.

    Tensors are views into the batch's own, so that a check can change what the model reads.
    """

    row: int  # in the batch
    name: str  # of the targets among `Outputs.scored`
    read: Tensor  # [N] ids as the model reads them, padding included
    scored: Tensor  # [M] ids that are predicted, IGNORE where nothing is
    ahead: int  # scored[i] is read[i + ahead], which the model reads once it is predicted
    length: int  # positions of `scored` that are real
    ids: range  # what may be predicted
    swaps: range  # ids of which one may replace another in `read`, special tokens left out
    stop: int | None  # id that ends the targets; None where they were cut short before it
    text: Callable[[Sequence[int]], str]  # ids as people read them; other than `ids` too
    units: Sequence[int] = ()  # of the codec, which the targets encode
    # Ids at the front of `read` that all rows have in common, so that they may be computed once.
    shared: int = 0
    given: str = ""  # what the model is given before, and which is no part of the sequence


@dataclass(frozen=True, slots=True, eq=False)
class CtcTargets:
    """Audio clip of one row of a batch, and the CTC targets of its transcription."""

    row: int  # in the batch
    at: int | None  # position in the row's "text" track; None where nothing but the clip is read
    seconds: float
    frames: int  # of the encoder
    labels: Tensor  # [S] ids that CTC is to find, a view into the batch
    length: int  # of them that are real
    ids: range  # what CTC may find, the blank left out
    text: Callable[[Sequence[int]], str]


@dataclass(frozen=True, slots=True)
class AuditBatch:
    """Targets of a batch as its losses see them, in the order of rows and positions."""

    tracks: Sequence[TokenTargets] = ()
    ctc_targets: Sequence[CtcTargets] = ()
    padding: Sequence[Tensor] = ()  # views into the batch that may not change a loss
    unit_count: int | None = None  # units that the codec has
    # Owner of the codec, or of data made with it -> the codec's fingerprint.
    codecs: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()  # what a person must know beside this, each a sentence


class Examples(Indexable[E], Dataset[E], ABC):
    """Map-style split of the data; each example has a cost, by which batches are bucketed."""

    @abstractmethod
    def cost(self, index: int) -> int:
        """Return the length of an example in the unit of `batch_cost`, such as frames or tokens."""

    def costs(self) -> np.ndarray:
        """Return the costs of all examples, int64 [N].

        A subclass that stores costs should override this, since `cost` may read the example.
        """
        return np.fromiter(map(self.cost, range(len(self))), dtype=np.int64, count=len(self))

    def at(self, index: int, epoch: int) -> E:
        """Return an example as it is in an epoch of training, augmented where the task does so.

        Args:
            index: of the example.
            epoch: from 0. Random draws may depend on these two alone, so that a resumed run sees
                the same example.
        """
        return self[index]


class Task(ABC, Generic[Model, TaskBatch]):
    """One training stage, constructed as `implementation(config, context)`.

    The constructor is cheap; `build` and `prepare` read weights and data. A task names the types of
    its model and of its batches: `Task[SpeechLLM, SpeechTextBatch]`.

    Needed: `build`, `trained_state_dict`, `examples`, `collate`, `forward`,
    `data_fingerprints`.

    Optional: `parents`, `continues`, `needs`, `takes`, `use`, `cannot_train_encoder_reason`,
    `manifests`, `missing`, `outline`, `outline_of_parts`, `restore`, `parameter_groups`,
    `prepare`, `write_labels`, `score`, `publish`, `audit_batch`.
    """

    parents: tuple[str, ...] = ()
    """Roles of the stages whose checkpoints `build` reads; `StagePlan.after` fills them."""
    continues: tuple[str, ...] = ()
    """Roles of stages whose checkpoints it reads where the recipe has such a stage."""
    needs: tuple[str, ...] = ("encoder", "backbone", "codec")
    """Kinds of the parts that it builds."""
    takes: tuple[str, ...] = ()
    """Kinds of parts that it builds where the recipe names them."""
    use: Use | None = None
    """What its finished checkpoints can be used for; None for training alone."""

    def __init__(self, config: Any, context: StageContext) -> None:
        self.config = config
        self.context = context

    @abstractmethod
    def build(self) -> Model:
        """Build the stage's model on the CPU.

        Pretrained parts are loaded and frozen, the trained weights of parents are loaded, and the
        rest is initialised from the seed.

        Raises:
            ConfigError, AssetError: a part cannot be built.
            CheckpointError: the checkpoint of a parent does not fit.
        """

    @classmethod
    def cannot_train_encoder_reason(cls, config: Any) -> str | None:
        """Return why the stage has no use for an encoder that is trained (`encoder.train`).

        None is for a stage that trains it, or takes it over from a parent as it was trained.

        Args:
            config: of the task.
        """
        return f"{cls.__name__} reads the features of a pretrained encoder"

    def manifests(self) -> Sequence[str]:
        """List the manifests it reads; a task without this leaves them out of a dry run."""
        return ()

    def missing(self) -> list[str]:
        """List the files that are missing, beside those of its parts and its manifests."""
        return []

    def outline(self, parents: Mapping[str, Outline]) -> Outline:
        """Return the stage's sizes, without reading weights, data or checkpoints.

        Args:
            parents: the outlines of the stages with the roles in `parents`.

        Returns:
            the model with its true shapes on the meta device, and its estimated memory in bytes.
            This default knows the pretrained parts alone.

        Raises:
            ConfigError: parts do not fit each other.
        """
        return self.outline_of_parts(f"{type(self).__name__} has no outline")

    def outline_of_parts(self, reason: str) -> Outline:
        """Return the sizes of the encoder and the language model that the task builds.

        Args:
            reason: why no more is known, as the beginning of a sentence.
        """
        kinds, parts = (*self.needs, *self.takes), self.context.parts
        modules: dict[str, nn.Module] = {}
        if "encoder" in kinds and parts.encoder is not None:
            modules["encoder"] = build_encoder(parts.encoder, meta=True)
        if "backbone" in kinds and parts.backbone is not None:
            implementation = BACKBONES.entry_of(parts.backbone).implementation
            modules["backbone"] = implementation.outline(parts.backbone)
        return Outline(
            model=nn.ModuleDict(modules),
            parts={name: [name] for name in modules},
            cost_unit="units of the task's own",
            longest_cost=None,
            activations={},
            notes=[f"{reason}: an estimate by its pretrained parts, without activations and heads"],
            is_estimate=True,
        )

    @classmethod
    def restore(
        cls,
        checkpoint: Checkpoint,
        *,
        backbone: Backbone | None = None,
        codec: Codec | None = None,
    ) -> nn.Module:
        """Rebuild the trained model for inference, on the CPU and in eval mode.

        Args:
            checkpoint: of a stage of this task, with its tensors.
            backbone: the language model, where it is loaded already; None loads the one that the
                checkpoint records.
            codec: the codec, where the model synthesizes speech.

        Raises:
            CheckpointError: the checkpoint is damaged, or this task's checkpoints are not for
                inference.
        """
        raise CheckpointError(
            f"{checkpoint.folder} was trained by {cls.__name__}, "
            "whose checkpoints cannot be loaded for inference"
        )

    @abstractmethod
    def trained_state_dict(self, model: Model) -> dict[str, Tensor]:
        """Return the tensors that a checkpoint must hold, by their names in `model`.

        They are all that echox trained, in this stage or in a parent.
        """

    def parameter_groups(self, model: Model) -> list[dict[str, Any]]:
        """Return the trained parameters as groups {"name", "params", "lr_scale"}.

        A group may also have a "role". Where one is the discriminator's, a step has two phases: in
        each, `forward` is run anew, one side is updated by the criterion's loss for it, and the
        other is not.

        Returns:
            by default one group of all parameters that require gradients.
        """
        params = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return [{"name": "all", "params": params, "lr_scale": 1.0}]

    def prepare(self, model: Model) -> None:  # noqa: B027 (doing nothing is a fine default)
        """Derive what the stage reads, once, and store it in `context.cache_dir`.

        It may take long, so it should draw a progress bar; stopped in any way and called again,
        it goes on.

        Args:
            model: as `build` returned it; its trained weights stay as they are.

        Raises:
            ManifestError: the data cannot be read.
        """

    def write_labels(self, model: Model) -> Path:
        """Generate the labels that this stage is trained on from its parents' models.

        Stopped in any way and called again, it goes on.

        Returns:
            the manifest of the labels, where the config says.

        Raises:
            ConfigError: the stage is trained on no such labels.
        """
        raise ConfigError(
            f"{type(self).__name__} learns from no labels of its own making, "
            "so there is nothing to write; ask for stage=echo"
        )

    @abstractmethod
    def examples(self, split: str) -> Examples[Any]:
        """Return the examples of a split; `prepare` must have been called.

        Args:
            split: "train" or "valid".

        Raises:
            ManifestError: the manifest is missing, empty or broken beyond what the config allows.
        """

    @abstractmethod
    def collate(self, examples: Sequence[Any]) -> TaskBatch:
        """Pad examples into one batch on the CPU.

        Args:
            examples: B elements of `Examples`.

        Returns:
            a batch of B rows. It must not depend on random numbers: a resumed run, and a worker
            process, must give the same batch.
        """

    @abstractmethod
    def forward(self, model: Model, batch: TaskBatch) -> Outputs:
        """Run the model on a batch on the model's device, in training and in validation.

        Args:
            model: as `build` returned it.
            batch: as `collate` returned it, B rows.

        Returns:
            what the stage's criterion reads. A row may not influence another one.
        """

    def score(self, model: Model, batches: Callable[[], Iterable[TaskBatch]]) -> dict[str, float]:
        """Compute validation metrics beyond the loss, such as accuracy or token error rate.

        Args:
            model: in eval mode, without gradients.
            batches: returns the validation batches from the beginning, each time it is called.
        """
        return {}

    def publish(  # noqa: B027 (most stages write nothing beside their checkpoint)
        self, model: Model, folder: Path, step: int
    ) -> None:
        """Write formats that other programs read, before the final checkpoint, on the main rank.

        Args:
            model: the trained model.
            folder: the stage's own.
            step: number of steps the model was trained for.
        """

    def audit_batch(self, model: Model, batch: TaskBatch) -> AuditBatch:
        """Return a batch as its losses see it, which is checked before the first step.

        Args:
            model: as `build` returned it.
            batch: as `collate` returned it, B rows.

        Returns:
            views into the batch's tensors; by default nothing, so that nothing is checked.
        """
        return AuditBatch()

    @abstractmethod
    def data_fingerprints(self) -> dict[str, str]:
        """Return the fingerprints of every manifest, codec and cache that the stage is trained on.

        Returns:
            name -> fingerprint, stored in the checkpoint's lineage.
        """


def named_parts(owner: str, path: str, parts: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return the parts of one module of a stage's model, in the form of `Outline.parts`.

    Args:
        owner: name of the module for people.
        path: of the module in the stage's model.
        parts: name of a part -> names of its submodules.
    """
    return {
        f"{owner}: {name}": [f"{path}.{module}" for module in modules]
        for name, modules in parts.items()
    }


TASKS: Registry[Task] = Registry("task", TaskConfig)
