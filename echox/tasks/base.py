"""The task interface: what one stage reads, builds, feeds and validates."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from echox.backbones.base import BackboneConfig
from echox.codecs.base import CodecConfig
from echox.encoders.base import EncoderConfig
from echox.errors import ConfigError
from echox.registry import Registry
from echox.signals import Batch, Outputs


@dataclass(kw_only=True, slots=True)
class TaskConfig:
    """Base of every task's config."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The swappable parts a recipe names; a task builds those it needs."""

    encoder: EncoderConfig | None
    backbone: BackboneConfig | None
    codec: CodecConfig | None


@dataclass(frozen=True, slots=True)
class StageContext:
    """Where a stage stands: its parts, its folders, and the stages before it."""

    parts: Parts
    seed: int
    cache_dir: Path  # derived data that can be made again (features, pseudo-labels, alignments)
    parents: Mapping[str, Path] = field(default_factory=dict)  # stage name -> folder of its finished checkpoint
    device: torch.device = torch.device("cpu")
    bf16: bool = False  # run frozen parts under bfloat16 autocast
    run_dir: Path | None = None  # the stage's own folder, where validation may leave what a person looks at


@dataclass(frozen=True, slots=True)
class Outline:
    """A stage's model before anything is read: its true shapes, and what training it will keep in memory."""

    model: nn.Module  # on the meta device, trained and frozen weights told apart, in the formats they are trained in
    parts: Mapping[str, Sequence[str]]  # what people call the parts -> prefixes of their weights' names in `model`; together all of them
    cost_unit: str  # what `Examples.cost` counts
    longest_cost: int  # of an example as long as the config allows
    activations: Mapping[str, float]  # estimate: bytes kept from forward to backward per unit of cost
    notes: Sequence[str] = ()  # what a person must know to read these numbers, each a sentence


class Role(enum.Enum):
    """Who learns in a turn of a step, in the order of the turns."""

    discriminator = "discriminator"  # learns to tell what the model makes from what is real, where a stage has one
    model = "model"


def role_of(group: Mapping[str, Any]) -> Role:
    """Whose parameters a group holds."""
    return group.get("role", Role.model)


@dataclass(frozen=True, slots=True, eq=False)
class Track:
    """A sequence of one row as its loss sees it. Tensors are views into the batch's own, so that a check can change what the model reads."""

    row: int  # in the batch
    name: str  # of the targets among `Outputs.scored`
    read: Tensor  # [N] ids as the model reads them, padding included
    scored: Tensor  # [M] ids that are predicted, IGNORE where nothing is
    ahead: int  # scored[i] is read[i + ahead], which the model reads once it is predicted
    length: int  # positions of `scored` that are real
    ids: range  # what may be predicted
    swaps: range  # ids of which one may take another's place in what is read; marks are none
    stop: int | None  # the id that ends what is predicted; None where it was cut short before its end
    text: Callable[[Sequence[int]], str]  # ids as people read them; other than `ids` too
    units: Sequence[int] = ()  # of the codec, that the targets say
    shared: int = 0  # ids at the front of what is read that may be computed once for all rows, since all begin with them
    given: str = ""  # what the model is given before, and which is no part of the sequence


@dataclass(frozen=True, slots=True, eq=False)
class Hearing:
    """A clip of one row, and what is to be heard in it."""

    row: int  # in the batch
    at: int | None  # its place in what the row's "text" track reads; None where nothing is read but the clip
    seconds: float
    frames: int  # of the encoder
    said: Tensor  # [S] ids that CTC is to find, a view into the batch
    length: int  # of them that are real
    ids: range  # what CTC may find, the blank left out
    text: Callable[[Sequence[int]], str]


@dataclass(frozen=True, slots=True)
class View:
    """A batch as its losses see it: tracks and clips in the order of rows and positions."""

    tracks: Sequence[Track] = ()
    heard: Sequence[Hearing] = ()
    padding: Sequence[Tensor] = ()  # views into the batch where nothing stands that may change a loss
    unit_count: int | None = None  # units that the codec has
    codecs: Mapping[str, str] = field(default_factory=dict)  # fingerprint of the codec, by who has it or was made with it
    notes: Sequence[str] = ()  # what a person must know beside this, each a sentence


class Examples(Sequence[Any], ABC):
    """A split of the data: map-style, each example with a cost by which batches are bucketed."""

    @abstractmethod
    def cost(self, index: int) -> int:
        """Length of example `index` in the unit the stage's `batch_cost` counts (frames, tokens)."""

    def costs(self) -> np.ndarray:
        """The costs of all examples [N]; one that knows them without making examples says so here."""
        return np.fromiter(map(self.cost, range(len(self))), dtype=np.int64, count=len(self))

    def at(self, index: int, epoch: int) -> Any:
        """Example `index` as training meets it in an epoch: where it is augmented, by draws that follow from these two alone."""
        return self[index]


class Task(ABC):
    """One stage of training. Constructed as `implementation(config, context)`; cheap until `build` or `prepare`."""

    parents: tuple[str, ...] = ()  # names of the stages whose checkpoints `build` reads
    continues: tuple[str, ...] = ()  # names of stages whose checkpoints it reads where the recipe has them
    needs: tuple[str, ...] = ("encoder", "backbone", "codec")  # kinds of the parts that it builds

    def __init__(self, config: Any, context: StageContext) -> None:
        self.config = config
        self.context = context

    @abstractmethod
    def build(self) -> nn.Module:
        """The stage's model on the CPU: pretrained parts loaded and frozen, parents' learned weights loaded, the rest seeded."""

    def manifests(self) -> Sequence[str]:
        """The manifests it reads; a task that does not say leaves them out of a dry run."""
        return ()

    def missing(self) -> list[str]:
        """Files it needs beside its parts' and its manifests that are not here."""
        return []

    def outline(self, parents: Mapping[str, Outline]) -> Outline:
        """The stage with true shapes on the meta device, without weights, data or checkpoints.

        Args:
            parents: the outlines of the stages named in `parents`.
        Raises:
            ConfigError: this task does not say.
        """
        raise ConfigError(f"{type(self).__name__} has no outline, so a dry run cannot tell its sizes; leave its stage out of `stages`")

    @abstractmethod
    def learned(self, model: nn.Module) -> dict[str, Tensor]:
        """The tensors a checkpoint of this stage must hold: all that echox trained, here or in a parent stage, by their names in `model`."""

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Trained parameters as groups {"name", "params", "lr_scale"}; the default is one group of all that require gradients.

        A group may also have a "role". Where one is the discriminator's, a step has two turns: in each, `forward` is run anew, one
        side learns by the criterion's loss for it, and the other stands still.
        """
        return [{"name": "all", "params": [p for p in model.parameters() if p.requires_grad], "lr_scale": 1.0}]

    def prepare(self, model: nn.Module) -> None:  # noqa: B027 (doing nothing is a fine default)
        """Long work done once before the first step and kept in `context.cache_dir`, with a progress bar; safe to kill and call again."""

    def write_labels(self, model: nn.Module) -> Path:
        """Make what this stage learns from by its parents' word, and keep it where its config says; safe to kill and call again.

        Raises:
            ConfigError: it learns from no such labels.
        """
        raise ConfigError(f"{type(self).__name__} learns from no labels of its own making, so there is nothing to write; ask for stage=echo")

    @abstractmethod
    def examples(self, split: str) -> Examples:
        """The examples of "train" or "valid", after `prepare`.

        Raises:
            ManifestError: the manifest is missing, empty or broken beyond what the config allows.
        """

    @abstractmethod
    def collate(self, examples: Sequence[Any]) -> Batch:
        """Examples -> one padded batch on the CPU. It may not draw random numbers: resuming must give the same batch."""

    @abstractmethod
    def forward(self, model: nn.Module, batch: Batch) -> Outputs:
        """Run the model on a batch that is on the model's device; called for training and for validation."""

    def score(self, model: nn.Module, batches: Callable[[], Iterable[Batch]]) -> dict[str, float]:
        """Metrics beyond the loss on the validation batches (accuracy, token error rate ...), model in eval mode, no gradients."""
        return {}

    def publish(self, model: nn.Module, folder: Path, step: int) -> None:  # noqa: B027 (most stages leave a checkpoint alone)
        """Write what others than echox read, beside the final checkpoint and before it, on the main rank.

        Args:
            folder: the stage's own.
            step: steps the model was trained for.
        """

    def view(self, model: nn.Module, batch: Batch) -> View:
        """What an audit shows and checks before the first step: a batch as the losses see it; a task that does not say is not audited."""
        return View()

    @abstractmethod
    def data_fingerprints(self) -> dict[str, str]:
        """Name -> fingerprint of every manifest, codec and cache this stage learns from; stored in the checkpoint's lineage."""


def named_parts(owner: str, path: str, parts: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The parts of a module at `path` in a stage's model, as `Outline.parts` wants them."""
    return {f"{owner}: {name}": [f"{path}.{module}" for module in modules] for name, modules in parts.items()}


TASKS: Registry[Task] = Registry("task", TaskConfig)
