"""Residual codebooks: look-up and sum, with an output projection folded into the tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from echox.errors import ConfigError
from echox.signals import valid_mask


@dataclass(frozen=True, slots=True)
class Codebooks:
    """The tables of a residual quantiser, one under the other. Made by `of`; it holds copies."""

    table: Tensor  # [sum of V_k, C]
    firsts: Tensor  # int64 [K] first row of each codebook
    counts: Tensor  # int64 [K] entries of each codebook

    @classmethod
    def of(
        cls,
        tables: Sequence[Tensor],
        *,
        projections: Sequence[Tensor] | None = None,
        biases: Sequence[Tensor | None] | None = None,
        dtype: torch.dtype | None = None,
    ) -> Codebooks:
        """
        Args:
            tables: K codebooks [V_k, E], of any sizes.
            projections: for each codebook the output projection [C, E] of its vectors, as a `torch.nn.Linear` holds it; it is
                multiplied into the table once, in float64, and costs nothing afterwards. biases: [C] each.
            dtype: of the result; None is that of the first table.
        Raises:
            ConfigError: shapes do not fit.
        """
        if not tables or any(table.dim() != 2 for table in tables):
            raise ConfigError(f"codebooks must be [V, E] each, and there must be one at least, not {[list(table.shape) for table in tables]}")
        folded = [table.detach().double() for table in tables]
        if projections is not None:
            biases = biases or [None] * len(tables)
            if not len(projections) == len(biases) == len(tables):
                raise ConfigError(f"{len(tables)} codebooks have {len(projections)} projections and {len(biases)} biases; give one for each")
            folded = [_projected(*parts) for parts in zip(folded, projections, biases)]
        if len({table.shape[1] for table in folded}) > 1:
            raise ConfigError(f"codebooks that are added must have equal channels, not {[table.shape[1] for table in folded]}; project them to equal ones")
        counts = torch.tensor([len(table) for table in folded], device=folded[0].device)
        return cls(torch.cat(folded).to(dtype or tables[0].dtype), counts.cumsum(0) - counts, counts)

    @property
    def channels(self) -> int:
        """C."""
        return self.table.shape[1]


def _projected(table: Tensor, projection: Tensor, bias: Tensor | None) -> Tensor:
    if projection.dim() != 2 or projection.shape[1] != table.shape[1]:
        raise ConfigError(f"projection {list(projection.shape)} does not take a codebook's vectors {list(table.shape)}; it must be [C, E]")
    made = table @ projection.detach().double().T
    return made if bias is None else made + bias.detach().double()


def looked_up(codes: Tensor, lengths: Tensor, books: Codebooks, channels_first: bool) -> Tensor:
    """See `rvq_dequantize`; summed in float32 at least, codebook after codebook."""
    B, K, T = codes.shape
    known = (codes >= 0) & (codes < books.counts[:, None]) & valid_mask(lengths, T)[:, None]
    rows = torch.where(known, codes + books.firsts[:, None], 0)
    wide = torch.promote_types(books.table.dtype, torch.float32)
    total = torch.zeros(B, T, books.channels, dtype=wide, device=codes.device)
    for k in range(K):
        total += books.table[rows[:, k]].to(wide) * known[:, k, :, None]
    made = total.to(books.table.dtype)
    return made.transpose(1, 2).contiguous() if channels_first else made
