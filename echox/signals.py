"""The typed values that flow through echox, and the one legend of their dimensions.

    B  batch            T  samples          F  frames           D  feature channels
    S  text positions   H  hidden channels  U  units            K  codebooks
    V  vocabulary       M  mel bins         L  shrunk frames (vectors that enter the backbone)

Ragged axes are right-padded; `lengths` says how much of each row is real. What lies past a length is unspecified, and every
part must give the same result whatever stands there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


M = TypeVar("M", bound="_Movable")


class _Movable:
    """Adds `.to(device)` to a dataclass of tensors (non-tensor fields pass through)."""

    __slots__ = ()

    def to(self: M, device: torch.device | str) -> M:
        moved = {f.name: _move(getattr(self, f.name), device) for f in dataclasses.fields(self) if f.init}
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
    """True where a right-padded position is real: lengths [B] -> bool [B, size]."""
    return torch.arange(size, device=lengths.device)[None, :] < lengths[:, None]


@dataclass(frozen=True, slots=True)
class Waveform(_Movable):
    """Mono audio."""

    samples: Tensor  # [B, T] float32 in [-1, 1]
    lengths: Tensor  # [B] int64, samples
    rate_hz: int


@dataclass(frozen=True, slots=True)
class Features(_Movable):
    """What an encoder hears."""

    values: Tensor  # [B, F, D]
    lengths: Tensor  # [B] int64, frames
    rate_hz: float  # frames per second


@dataclass(frozen=True, slots=True)
class Hidden(_Movable):
    """States of a backbone, after its final norm."""

    values: Tensor  # [B, S, H]
    lengths: Tensor  # [B] int64, positions


@dataclass(frozen=True, slots=True)
class Units(_Movable):
    """Discrete speech units."""

    ids: Tensor  # [B, U], or [B, K, U] for K codebooks, int64
    lengths: Tensor  # [B] int64, units
    rate_hz: float | None  # units per second; None once repeats are merged (then the rate varies)

    def rows(self) -> list[list[int]]:
        """Each row as manifests and decoders hold it: [U], or frame after frame with K codebooks, [U * K]."""
        return [ids[..., :length].movedim(-1, 0).flatten().tolist() for ids, length in zip(self.ids, self.lengths.tolist())]

    @classmethod
    def of_rows(cls, rows: Sequence[Sequence[int]], codebooks: int, device: torch.device | str = "cpu") -> Units:
        """The inverse of `rows`, of units whose rate is not known."""
        shape = (-1,) if codebooks == 1 else (-1, codebooks)
        ids = pad_sequence([torch.tensor(row, dtype=torch.int64).view(shape) for row in rows], batch_first=True).movedim(1, -1)
        return cls(ids.to(device), torch.tensor([len(row) // codebooks for row in rows], device=device), None)


@dataclass(frozen=True, slots=True)
class Spans(_Movable):
    """Segments of the rows of a batch, in the order of rows and positions."""

    rows: Tensor  # [G] int64, the row each segment is cut from
    starts: Tensor  # [G] int64
    ends: Tensor  # [G] int64, exclusive


@dataclass(frozen=True, slots=True)
class Batch(_Movable):
    """What a task's `collate` makes and its `forward` reads; every task subclasses it."""

    row_ids: tuple[str, ...]  # the manifest rows inside, for error messages
    count: int  # number of targets the loss is averaged over, known before the forward pass


@dataclass(frozen=True, slots=True)
class Scored:
    """Targets that a loss counts one by one, and what predicts each of them."""

    labels: Tensor  # [N], -100 where nothing is scored
    values: Tensor  # [N, ...] the scores, or the states that a layer of the outputs makes scores of
    are_scores: bool = True  # values are [N, V], one of a label each


@dataclass(frozen=True, slots=True)
class Outputs(_Movable):
    """What a task's `forward` returns to its criterion; every task subclasses it."""

    def scored(self) -> dict[str, Scored]:
        """The targets in the order of rows and positions, by what people call them ("text", "units"); an audit compares them with the batch."""
        return {}


@dataclass(frozen=True, slots=True)
class Loss:
    """A criterion's result.

    `total` is the sum over the batch's `count` targets, not their mean, so that micro-batches and ranks add up: the training
    loop divides by the count of the whole optimisation step. `parts` are for people: name -> (sum, count), detached.
    """

    total: Tensor  # [] float32
    count: int
    parts: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
