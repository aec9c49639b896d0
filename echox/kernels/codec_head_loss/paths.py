"""Computation of a codec-head loss in chunks of rows whose scores fit a memory budget.

There are two sizes of chunk. An inner chunk of rows has its float32 scores in a scratch buffer; an
outer chunk has its score gradients in memory at once, so that the weight's gradient is one matrix
product, or few.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from echox.kernels.codec_head_loss.products import product
from echox.kernels.codec_head_loss.rows import (
    RowResults,
    row_gradients,
    row_losses,
)
from echox.kernels.codec_head_loss.terms import Terms

# Bytes of the scores of one inner chunk. A GPU's second-level cache is not worth aiming at: few
# long products beat many short ones (see the README).
SCRATCH_BYTES = {"cuda": 256 << 20, "cpu": 16 << 20}
# On a CPU products of fewer rows spend their time reading the weight.
MIN_ROWS = 256
# Bytes of the score gradients of one outer chunk on a GPU: all of 65,536 rows at V = 4,096 in 16
# bits.
GRADIENT_BYTES = 512 << 20


@dataclass(frozen=True, slots=True)
class Problem:
    """Tensors of one loss, on one device."""

    hidden: Tensor  # [N, D]
    weight: Tensor  # [V, D]
    bias: Tensor | None  # [V]
    targets: Tensor  # [N, K] int64
    weights: Tensor | None  # [N, K] of the targets; None is 1
    terms: Terms
    dtype: torch.dtype  # in which the products multiply
    # Whether every target is known to be an entry of its codebook; False where none was checked.
    all_valid: bool = False

    @property
    def wide(self) -> torch.dtype:
        """Dtype of sums and softmax: float32, or float64 for float64."""
        return torch.promote_types(self.dtype, torch.float32)


class Path(ABC):
    """One way to compute the rows of a problem, chunk by chunk, into `results`."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.x = problem.hidden
        self.w = problem.weight
        self.results = RowResults.empty(problem.targets, problem.wide)

    @property
    @abstractmethod
    def chunk_rows(self) -> int:
        """Rows of an outer chunk."""

    @abstractmethod
    def losses(self, rows: slice) -> None:
        """Write the results [R, K] of some rows."""

    @abstractmethod
    def gradients(self, rows: slice, lse: Tensor | None) -> Tensor:
        """Return the gradient with respect to the scores of some rows, valid until the next call.

        Args:
            lse: [N, K] if it is known; else it is computed, and with it the results.

        Returns:
            Gradient [R, V] in the dtype of the products.
        """

    def chunks(self) -> Iterator[slice]:
        """Return the rows of each outer chunk."""
        N, size = self.x.shape[0], self.chunk_rows
        return (slice(start, min(start + size, N)) for start in range(0, N, size))


class TorchPath(Path):
    """Plain PyTorch on any device; the gradients overwrite the scores."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        # A CPU sums in float32 only products of float32 factors; `cpu_products` then multiplies
        # them in bfloat16.
        factor_dtype = problem.dtype if problem.hidden.is_cuda else problem.wide
        self.x, self.w = self.x.to(factor_dtype), self.w.to(factor_dtype)
        most_rows = min(len(self.x), self.chunk_rows)
        self._scratch = self.x.new_empty(most_rows, problem.terms.width, dtype=problem.wide)

    @property
    def chunk_rows(self) -> int:
        """Rows of a chunk, the inner and the outer one being the same."""
        return rows_that_fit(SCRATCH_BYTES[self.x.device.type], self.problem)

    def losses(self, rows: slice) -> None:
        """Write the results [R, K] of some rows."""
        p = self.problem
        z = self._products(rows)
        row_losses(z, p.bias, p.targets[rows], p.terms, p.all_valid, self.results[rows])

    def gradients(self, rows: slice, lse: Tensor | None) -> Tensor:
        """Return the gradient [R, V] with respect to the scores of some rows."""
        p = self.problem
        weights = None if p.weights is None else p.weights[rows]
        row_lse = None if lse is None else lse[rows]
        d_scores = row_gradients(
            self._products(rows),
            p.bias,
            p.targets[rows],
            weights,
            p.terms,
            p.all_valid,
            self.results[rows],
            row_lse,
        )
        return d_scores.to(self.x.dtype)

    def _products(self, rows: slice) -> Tensor:
        """Return x W^T [R, V] of some rows, in the scratch buffer."""
        x = self.x[rows]
        return product(x, self.w.T, out=self._scratch[: len(x)])


def row_view(tensor: Tensor, rows: slice) -> Tensor:
    """Return some rows of a tensor; all of them are the tensor itself.

    Every view is some microseconds of Python, which is what small losses wait for.
    """
    return tensor if rows.start == 0 and rows.stop == tensor.shape[0] else tensor[rows]


def rows_that_fit(budget_bytes: int, problem: Problem) -> int:
    """Return the rows whose scores fit a budget, but no fewer than make a product worthwhile."""
    return max(MIN_ROWS, budget_bytes // (problem.terms.width * problem.wide.itemsize))


def fits_one_chunk(problem: Problem) -> bool:
    """Return whether the scores [N, V] of a problem on a CPU are held at once."""
    if problem.hidden.device.type != "cpu":
        return False
    return len(problem.hidden) <= rows_that_fit(SCRATCH_BYTES["cpu"], problem)
