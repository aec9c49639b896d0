"""The typed values that flow through echox, and the letters of their dimensions.

    B  batch            T  samples          F  frames           D  feature channels
    S  text positions   H  hidden channels  U  units            K  codebooks
    V  vocabulary       M  mel bins         L  shrunk frames (vectors that enter the backbone)

Ragged axes are right-padded; `lengths` holds how much of each row is real. Values past a length
are unspecified, and every part must give the same result whatever they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

M = TypeVar("M", bound="_Movable")


class _Movable:
    """Adds `.to(device)` to a dataclass of tensors."""

    # Without it, subclasses with slots would still get a `__dict__`.
    __slots__ = ()
    # Every subclass is a dataclass.
    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    def to(self: M, device: torch.device | str) -> M:
        """Return a copy whose tensors are on a device; other fields are passed through."""
        moved = {
            f.name: _move(getattr(self, f.name), device) for f in dataclasses.fields(self) if f.init
        }
        return dataclasses.replace(self, **moved)


def _move(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, (Tensor, _Movable)):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _move(item, device) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_move(item, device) for item in value)
    return value


def valid_mask(lengths: Tensor, size: int) -> Tensor:
    """Return which positions of right-padded rows are real.

    Args:
        lengths: positions of each row that are real [B].
        size: positions of each row, padding included.

    Returns:
        bool [B, N] with N = `size`, True for real positions.
    """
    # [1, N] < [B, 1]
    return torch.arange(size, device=lengths.device)[None, :] < lengths[:, None]


def padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Right-pad ragged ids with a value: B rows -> [B, N] int64 with N at least 1."""
    # At least 1, because later layers take no sequences without a position.
    width = max(1, max(map(len, rows), default=0))
    return torch.tensor(
        [[*row, *[value] * (width - len(row))] for row in rows], dtype=torch.int64
    ).reshape(len(rows), width)


def last_positions(mask: Tensor) -> Tensor:
    """Return the index [B] of the last True of each row of a mask, bool [B, N]."""
    return mask.shape[1] - 1 - mask.flip(1).long().argmax(1)


@dataclass(frozen=True, slots=True)
class Waveform(_Movable):
    """Mono audio: samples [B, T] in [-1, 1] at a rate in Hz."""

    samples: Tensor  # [B, T] float32 in [-1, 1]
    lengths: Tensor  # [B] int64, samples
    rate_hz: int


EDGE_FRAMES = 2
"""Frames by which a clip may have more or fewer than its duration times the frame rate.

Those of a partly filled window at an edge may be counted or not.
"""


@dataclass(frozen=True, slots=True)
class Features(_Movable):
    """Frame features of audio [B, F, D], as an encoder returns them."""

    values: Tensor  # [B, F, D]
    lengths: Tensor  # [B] int64, frames
    rate_hz: float  # frames per second


@dataclass(frozen=True, slots=True)
class Units(_Movable):
    """Discrete speech units: [B, U], or [B, K, U] for K codebooks."""

    ids: Tensor  # [B, U], or [B, K, U] for K codebooks, int64
    lengths: Tensor  # [B] int64, units
    rate_hz: float | None  # units per second; None once repeats are merged (then the rate varies)

    def rows(self) -> list[list[int]]:
        """Return each row as manifests and decoders hold it.

        Returns:
            For each row its [U] units without padding; of K codebooks [U * K], frame by frame.
        """
        # [K, U] -> [U, K], so that the codes of one frame stand together; [U] stays [U].
        return [
            ids[..., :length].movedim(-1, 0).flatten().tolist()
            for ids, length in zip(self.ids, self.lengths.tolist())
        ]

    @classmethod
    def of_rows(
        cls, rows: Sequence[Sequence[int]], codebooks: int, device: torch.device | str = "cpu"
    ) -> Units:
        """Return the units that `rows` returned; their rate is not known.

        Args:
            rows: for each row [U] units, or [U * K] frame by frame.
            codebooks: K.
            device: where the tensors are placed.

        Returns:
            ids [B, U] for one codebook, else [B, K, U], padded with 0; lengths [B] in units.
        """
        shape = (-1,) if codebooks == 1 else (-1, codebooks)  # [U] or [U, K]
        tensors = [torch.tensor(row, dtype=torch.int64).view(shape) for row in rows]
        # `pad_sequence` pads the first axis, so the units move last only afterwards:
        # [B, U, K] -> [B, K, U].
        ids = pad_sequence(tensors, batch_first=True).movedim(1, -1)
        lengths = [len(row) // codebooks for row in rows]
        return cls(ids.to(device), torch.tensor(lengths, device=device), None)


@dataclass(frozen=True, slots=True)
class Spans(_Movable):
    """Segments [G] of the rows of a batch, in the order of rows and positions."""

    rows: Tensor  # [G] int64, the row each segment is cut from
    starts: Tensor  # [G] int64
    ends: Tensor  # [G] int64, exclusive


@dataclass(frozen=True, slots=True)
class Batch(_Movable):
    """The result of a task's `collate` and the input of its `forward`; every task subclasses it."""

    row_ids: tuple[str, ...]  # the manifest rows inside, for error messages
    # Number of targets the loss is averaged over. Known before the forward pass, because the
    # training loop needs the sum over micro-batches and ranks first.
    count: int


@dataclass(frozen=True, slots=True)
class Scored:
    """Targets [N] that a loss counts one by one, and what predicts each of them."""

    labels: Tensor  # [N], -100 where nothing is scored
    values: Tensor  # [N, V] scores, or [N, ...] states from which a layer computes scores
    are_scores: bool = True  # values are [N, V], one score for each label of the vocabulary


@dataclass(frozen=True, slots=True)
class Outputs(_Movable):
    """The result of a task's `forward` and the input of its criterion; every task subclasses it."""

    def scored(self) -> dict[str, Scored]:
        """Return the targets that an audit compares with the batch.

        Returns:
            Name for people ("text", "units") -> labels [N] and values [N, V] in the order of
            rows and positions; empty where a task offers none.
        """
        return {}


@dataclass(frozen=True, slots=True)
class Loss:
    """A criterion's result: a sum over targets, as a float32 scalar, and their count.

    `total` is the sum over the batch's `count` targets, not their mean, so that micro-batches
    and ranks add up: the training loop divides by the count of the whole optimisation step.
    `parts` are for people: name -> (sum, count), detached.
    """

    total: Tensor  # [] float32
    count: int
    parts: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
