"""Output layer of a unit decoder, laid out for decoding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from echox.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class UnitHead:
    """Output layer of a unit decoder, and the table its next step reads.

    Made by `of`, which may copy. V rows of the weight, K codebooks among them.
    """

    # [V, D]; on a CPU float32 and stored by columns, which is fastest and gives a row the same bits
    # in any batch.
    weight: Tensor
    bias: Tensor | None  # [V], as the weight
    # [K + 1] rising rows of the weight; codebook k owns rows cuts[k] .. cuts[k + 1] - 1.
    cuts: tuple[int, ...]
    softcap: float  # bound of the scores, c * tanh(z / c); 0 is none
    pad_id: int  # token of a row that has ended, in every codebook
    # [V, E] vectors of the next step, by rows of the weight; None where the caller makes them.
    embedding: Tensor | None
    ids: Tensor  # int32 [V] 0 .. V-1
    at: Tensor  # int64 [K + 1], the cuts
    # int64 [K, C] rows of the weight by codebook, of C the largest, -1 past a codebook's end; None
    # where all are of one size.
    columns: Tensor | None

    def require_embedding(self) -> Tensor:
        """Return the table [V, E] that the next step reads.

        Raises:
            ConfigError: the head was built without one.
        """
        if self.embedding is None:
            raise ConfigError(
                "the head has no table of its tokens' vectors, so nothing can be fed back; "
                "build it with an embedding"
            )
        return self.embedding

    @classmethod
    def of(
        cls,
        weight: Tensor,
        *,
        bias: Tensor | None = None,
        segments: Sequence[int] | None = None,
        softcap: float | None = None,
        pad_id: int = 0,
        embedding: Tensor | None = None,
    ) -> UnitHead:
        """Lay out a head for the device its weight is on.

        Args:
            weight: [V, D] rows of units, or of K codebooks one after the other; bias: [V]. Of a
                vocabulary of text and units give the rows that may be generated alone,
                `weight[rows]`: the head costs what it reads.
            segments: [K + 1] rising rows from 0 to V; None is one codebook.
            pad_id: token of a row once it has ended.
            embedding: [V, E] what the next step reads, with any projection folded in; vectors of K
                codebooks are added.

        Raises:
            ConfigError: shapes do not fit.
        """
        cuts = (0, len(weight)) if segments is None else tuple(segments)
        _check_head(weight, bias, cuts, pad_id, embedding)
        weight, bias = _lay_out(weight.detach(), None if bias is None else bias.detach())
        embedding = None if embedding is None else embedding.detach().contiguous()
        ids = torch.arange(len(weight), dtype=torch.int32, device=weight.device)
        at = torch.tensor(cuts, device=weight.device)
        columns = _columns(cuts, weight.device)
        return cls(weight, bias, cuts, softcap or 0.0, pad_id, embedding, ids, at, columns)

    @property
    def codebooks(self) -> int:
        """Number of codebooks, K."""
        return len(self.cuts) - 1

    @property
    def sizes(self) -> tuple[int, ...]:
        """Entries of each codebook, [K] numbers."""
        return _sizes(self.cuts)


def _sizes(cuts: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(stop - start for start, stop in zip(cuts, cuts[1:]))


def _lay_out(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Store the weight as its device reads it fastest; see the README."""
    if weight.is_cuda:
        return weight.contiguous(), bias
    wide = torch.promote_types(weight.dtype, torch.float32)
    return weight.to(wide).T.contiguous().T, None if bias is None else bias.to(wide)


def _check_head(
    weight: Tensor,
    bias: Tensor | None,
    cuts: tuple[int, ...],
    pad_id: int,
    embedding: Tensor | None,
) -> None:
    if weight.dim() != 2:
        raise ConfigError(f"a head's weight must be [V, D], and is {list(weight.shape)}")
    V = len(weight)
    if bias is not None and list(bias.shape) != [V]:
        raise ConfigError(
            f"bias {list(bias.shape)} and weight {list(weight.shape)} do not fit; "
            "they must be [V] and [V, D]"
        )
    _check_cuts(cuts, pad_id, V)
    if embedding is not None and (embedding.dim() != 2 or len(embedding) != V):
        raise ConfigError(
            f"embedding {list(embedding.shape)} must be [V, E] "
            f"with a vector for each of the head's {V} rows"
        )


def _check_cuts(cuts: tuple[int, ...], pad_id: int, V: int) -> None:
    if len(cuts) < 2 or cuts[0] != 0 or cuts[-1] != V or min(_sizes(cuts)) < 1:
        raise ConfigError(
            f"segments {list(cuts)} must rise from 0 to the weight's {V} rows; "
            "give [0, V] for one codebook"
        )
    # A row that has ended has the token in all of its codebooks.
    smallest = min(_sizes(cuts))
    if not 0 <= pad_id < smallest:
        raise ConfigError(
            f"pad_id {pad_id} is no entry of every codebook; the smallest has {smallest}"
        )


def _columns(cuts: tuple[int, ...], device: torch.device) -> Tensor | None:
    """Return the rows of the weight by codebook, `UnitHead.columns`."""
    sizes = _sizes(cuts)
    if len(set(sizes)) == 1:
        return None
    table = [
        [start + column if column < size else -1 for column in range(max(sizes))]
        for start, size in zip(cuts, sizes)
    ]
    return torch.tensor(table, device=device)
