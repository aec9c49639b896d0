"""Passes over all rows of a batch, chunk by chunk: losses, softmax statistics and gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from echox.kernels.codec_head_loss.paths import Path, Problem, TorchPath, row_view
from echox.kernels.codec_head_loss.products import add_product, cpu_products, product
from echox.kernels.codec_head_loss.rows import RowResults
from echox.kernels.codec_head_loss.terms import Impl


@dataclass(frozen=True, slots=True)
class Gradients:
    """Gradients of the weighted sum of the losses; None where none is wanted."""

    hidden: Tensor | None  # [N, D]
    weight: Tensor | None  # [V, D]
    bias: Tensor | None  # [V]


def make_path(problem: Problem, impl: Impl) -> Path:
    """Return the path by which an implementation computes a problem.

    Raises:
        ConfigError: impl is chunked or fused, and the kernels cannot take the problem.
    """
    if impl is Impl.torch:
        return TorchPath(problem)
    # Triton is needed by these two alone.
    from echox.kernels.codec_head_loss.launch import ChunkedPath, FusedPath

    return {Impl.chunked: ChunkedPath, Impl.fused: FusedPath}[impl](problem)


def losses(problem: Problem, impl: Impl) -> RowResults:
    """Compute the results [N, K] of all rows.

    Raises:
        ConfigError: as `make_path`.
    """
    path = make_path(problem, impl)
    with cpu_products(problem.dtype):
        for rows in path.chunks():
            path.losses(rows)
    return path.results


def gradients(
    problem: Problem, impl: Impl, wanted: tuple[bool, bool, bool], lse: Tensor | None = None
) -> tuple[RowResults, Gradients]:
    """Compute the gradients of the weighted sum of the losses, undivided, in float32 at least.

    Args:
        wanted: whether the gradients of hidden states, weight and bias are.
        lse: [N, K] if it is known; the results are then not computed and must not be read.

    Raises:
        ConfigError: as `make_path`.
    """
    path = make_path(problem, impl)
    result = _empty_gradients(problem, wanted)
    with cpu_products(problem.dtype):
        for rows in path.chunks():
            d_scores = path.gradients(rows, lse)  # [R, V]
            if result.hidden is not None:
                product(d_scores, path.w, out=row_view(result.hidden, rows))
            # The first chunk writes the weight's gradient, so that it need not be zeroed before.
            if result.weight is not None and rows.start == 0:
                product(d_scores.T, row_view(path.x, rows), out=result.weight)
            elif result.weight is not None:
                add_product(result.weight, d_scores.T, path.x[rows])
            if result.bias is not None:
                result.bias.add_(d_scores.sum(0, dtype=problem.wide))
    return path.results, result


def _empty_gradients(problem: Problem, wanted: tuple[bool, bool, bool]) -> Gradients:
    hidden, weight, wide = problem.hidden, problem.weight, problem.wide
    for_hidden, for_weight, for_bias = wanted
    d_hidden = hidden.new_empty(hidden.shape, dtype=wide) if for_hidden else None
    # Without a row no product writes the weight's gradient.
    allocate = weight.new_empty if len(hidden) else weight.new_zeros
    d_weight = allocate(weight.shape, dtype=wide) if for_weight else None
    d_bias = weight.new_zeros(problem.terms.width, dtype=wide) if for_bias else None
    return Gradients(d_hidden, d_weight, d_bias)


def weighted_sum(problem: Problem, results: RowResults) -> Tensor:
    """Return the weighted sum [] of the losses [N, K]."""
    return (results.losses if problem.weights is None else results.losses * problem.weights).sum()


def scale_gradients(
    upstream: Tensor,
    gradients: Sequence[Tensor | None],
    dtypes: Sequence[torch.dtype | None],
    impl: Impl,
    count: Tensor | float = 1.0,
) -> list[Tensor | None]:
    """Multiply gradients by the upstream gradient [] over the count.

    They are copied, since backward may run twice over a graph, and rounded once, at the very end.

    Args:
        gradients: float32 at least; dtypes: of the results.
    """
    if impl in (Impl.chunked, Impl.fused):
        from echox.kernels.codec_head_loss import launch  # Triton is needed by these two alone

        return [
            None
            if gradient is None or dtype is None
            else launch.scale_gradient(gradient, upstream, count, dtype)
            for gradient, dtype in zip(gradients, dtypes)
        ]
    scale = upstream / count
    return [
        None if gradient is None else (gradient * scale).to(dtype)
        for gradient, dtype in zip(gradients, dtypes)
    ]
