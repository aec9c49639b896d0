"""Walks over the rows of a batch: losses, statistics and gradients in bounded memory.

There are two sizes of chunk. An inner chunk of rows has its float32 scores in a scratch; an outer chunk has its score gradients in memory
at once, so that the weight's gradient is few matrix products, or one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from echox.kernels.codec_head_loss.products import add_product, cpu_products, product
from echox.kernels.codec_head_loss.rows import Partial, RowResults, row_gradients, row_losses, row_statistics
from echox.kernels.codec_head_loss.terms import Impl, Terms

# Scores of one inner chunk. A GPU's second-level cache is not worth aiming at: few long products beat many short ones (see the README).
# On a CPU products of fewer rows than MIN_ROWS spend their time reading the weight.
SCRATCH_BYTES = {"cuda": 256 << 20, "cpu": 16 << 20}
MIN_ROWS = 256
# Score gradients of one outer chunk on a GPU: all of 65,536 rows at V = 4,096 in 16 bits.
GRADIENT_BYTES = 512 << 20


@dataclass(frozen=True, slots=True)
class Problem:
    """The tensors of one loss, on one device."""

    hidden: Tensor  # [N, D]
    weight: Tensor  # [V, D]
    bias: Tensor | None  # [V]
    targets: Tensor  # [N, K] int64
    weights: Tensor | None  # [N, K] of the targets; None is 1
    terms: Terms
    dtype: torch.dtype  # in which the products multiply
    certain: bool = False  # that every target is an entry of its codebook; False where nobody looked

    @property
    def wide(self) -> torch.dtype:
        """The precision of sums and softmax: float32, or float64 for float64."""
        return torch.promote_types(self.dtype, torch.float32)


@dataclass(frozen=True, slots=True)
class Gradients:
    """What the weighted sum of the losses is due to; None where nobody asked."""

    hidden: Tensor | None  # [N, D]
    weight: Tensor | None  # [V, D]
    bias: Tensor | None  # [V]


class Path(ABC):
    """One way to compute the rows of a problem."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.x = problem.hidden
        self.w = problem.weight
        self.results = RowResults.empty(problem.targets, problem.wide)

    @property
    @abstractmethod
    def step(self) -> int:
        """Rows of an outer chunk."""

    @abstractmethod
    def losses(self, rows: slice) -> None:
        """Write the results of some rows."""

    @abstractmethod
    def gradients(self, rows: slice, lse: Tensor | None) -> Tensor:
        """The gradient with respect to the scores of some rows, [R, V]; valid until the next call.

        Args:
            lse: [N, K] if it is known; else it is computed, and with it the results.
        """

    @abstractmethod
    def statistics(self, rows: slice) -> Partial:
        """Statistics of some rows over the vocabulary that is here."""

    def chunks(self) -> Iterator[slice]:
        """The outer chunks."""
        N = self.x.shape[0]
        return (slice(start, min(start + self.step, N)) for start in range(0, N, self.step))


class TorchPath(Path):
    """Plain PyTorch on any device; the gradients take the place of the scores."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        # A CPU sums in float32 only what it is given in float32; `cpu_products` then multiplies in bfloat16.
        factor = problem.dtype if problem.hidden.is_cuda else problem.wide
        self.x, self.w = self.x.to(factor), self.w.to(factor)
        self._scratch = self.x.new_empty(min(len(self.x), self.step), problem.terms.width, dtype=problem.wide)

    @property
    def step(self) -> int:
        return rows_that_fit(SCRATCH_BYTES[self.x.device.type], self.problem)

    def losses(self, rows: slice) -> None:
        p = self.problem
        row_losses(self._products(rows), p.bias, p.targets[rows], p.terms, p.certain, self.results[rows])

    def gradients(self, rows: slice, lse: Tensor | None) -> Tensor:
        p = self.problem
        weights = None if p.weights is None else p.weights[rows]
        known = None if lse is None else lse[rows]
        made = row_gradients(self._products(rows), p.bias, p.targets[rows], weights, p.terms, p.certain, self.results[rows], known)
        return made.to(self.x.dtype)

    def statistics(self, rows: slice) -> Partial:
        p = self.problem
        return row_statistics(self._products(rows), p.bias, p.targets[rows], p.terms)

    def _products(self, rows: slice) -> Tensor:
        x = self.x[rows]
        return product(x, self.w.T, out=self._scratch[: len(x)])


def part(tensor: Tensor, rows: slice) -> Tensor:
    """Some rows of a tensor; all of them are the tensor itself, for every view is some microseconds of Python."""
    return tensor if rows.start == 0 and rows.stop == tensor.shape[0] else tensor[rows]


def rows_that_fit(budget_bytes: int, problem: Problem) -> int:
    """Rows whose scores fit into a budget, but no fewer than a product needs to be worth its while."""
    return max(MIN_ROWS, budget_bytes // (problem.terms.width * problem.wide.itemsize))


def fits_one_chunk(problem: Problem) -> bool:
    """Whether the scores of a problem on a CPU are held at once."""
    return problem.hidden.device.type == "cpu" and len(problem.hidden) <= rows_that_fit(SCRATCH_BYTES["cpu"], problem)


def path_of(problem: Problem, impl: Impl) -> Path:
    """The path that computes a problem."""
    if impl is Impl.torch:
        return TorchPath(problem)
    from echox.kernels.codec_head_loss.launch import ChunkedPath, FusedPath  # Triton is needed by these two alone

    return {Impl.chunked: ChunkedPath, Impl.fused: FusedPath}[impl](problem)


def losses(problem: Problem, impl: Impl) -> RowResults:
    """The results of all rows."""
    path = path_of(problem, impl)
    with cpu_products(problem.dtype):
        for rows in path.chunks():
            path.losses(rows)
    return path.results


def statistics(problem: Problem, impl: Impl) -> Partial:
    """Statistics of all rows over the vocabulary that is here."""
    path = path_of(problem, impl)
    with cpu_products(problem.dtype):
        parts = [path.statistics(rows) for rows in path.chunks()]
    return Partial(*(torch.cat([getattr(part, name) for part in parts]) for name in Partial.__dataclass_fields__))


def gradients(problem: Problem, impl: Impl, wanted: tuple[bool, bool, bool], lse: Tensor | None = None) -> tuple[RowResults, Gradients]:
    """Gradients of the weighted sum of the losses, not yet divided by anything, in float32 at least.

    Args:
        wanted: whether those of hidden states, weight and bias are.
        lse: [N, K] if it is known; then the results are not computed and not to be read.
    """
    path = path_of(problem, impl)
    of_hidden, of_weight, of_bias = wanted
    wide = problem.wide
    d_hidden = problem.hidden.new_empty(problem.hidden.shape, dtype=wide) if of_hidden else None
    # Without a row no product writes the weight's gradient.
    fresh = problem.weight.new_empty if len(problem.hidden) else problem.weight.new_zeros
    d_weight = fresh(problem.weight.shape, dtype=wide) if of_weight else None
    d_bias = problem.weight.new_zeros(problem.terms.width, dtype=wide) if of_bias else None
    with cpu_products(problem.dtype):
        for rows in path.chunks():
            d_scores = path.gradients(rows, lse)
            if of_hidden:
                product(d_scores, path.w, out=part(d_hidden, rows))
            if of_weight and rows.start == 0:
                product(d_scores.T, part(path.x, rows), out=d_weight)
            elif of_weight:
                add_product(d_weight, d_scores.T, path.x[rows])
            if of_bias:
                d_bias.add_(d_scores.sum(0, dtype=wide))
    return path.results, Gradients(d_hidden, d_weight, d_bias)


def total(problem: Problem, results: RowResults) -> Tensor:
    """The weighted sum of the losses, []."""
    return (results.losses if problem.weights is None else results.losses * problem.weights).sum()


def scaled(
    upstream: Tensor, gradients: Sequence[Tensor | None], dtypes: Sequence[torch.dtype | None], impl: Impl, count: Tensor | float = 1.0
) -> list[Tensor | None]:
    """Gradients times the upstream one over the count; out of place, since a graph may be walked twice, and rounded once, at the very end."""
    if impl in (Impl.chunked, Impl.fused):
        from echox.kernels.codec_head_loss import launch  # Triton is needed by these two alone

        return [None if gradient is None else launch.scaled(gradient, upstream, count, dtype) for gradient, dtype in zip(gradients, dtypes)]
    scale = upstream / count
    return [None if gradient is None else (gradient * scale).to(dtype) for gradient, dtype in zip(gradients, dtypes)]
