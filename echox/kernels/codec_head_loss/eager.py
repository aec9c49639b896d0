"""Summed loss outside of compiled programs, as autograd functions that call the passes directly.

The dispatcher's way to a registered gradient takes a tenth of a millisecond, which is saved here;
on a CPU a loss of one chunk saves more.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from echox.kernels.codec_head_loss import passes
from echox.kernels.codec_head_loss.paths import Problem, fits_one_chunk
from echox.kernels.codec_head_loss.products import cpu_products, product, scaled_product
from echox.kernels.codec_head_loss.rows import RowResults, row_gradients
from echox.kernels.codec_head_loss.terms import Impl
from echox.kernels.dispatch import without_autocast


def summed_loss(problem: Problem, impl: Impl, count: Tensor | float) -> tuple[Tensor, RowResults]:
    """Compute the weighted sum [] of the losses over `count`, and the results of every target.

    Raises:
        ConfigError: impl is chunked or fused, and the kernels cannot take the problem.
    """
    leaves = (problem.hidden, problem.weight, problem.bias)
    with without_autocast(problem.hidden.device.type):
        if not torch.is_grad_enabled() or not any(
            leaf is not None and leaf.requires_grad for leaf in leaves
        ):
            results = passes.losses(problem, impl)
            return passes.weighted_sum(problem, results) / count, results
        one_chunk = impl is Impl.torch and fits_one_chunk(problem)
        function = _OneChunkLoss if one_chunk else _ChunkedLoss
        total, *results = function.apply(*leaves, problem, impl, count)
        return total, RowResults(*results)


class _ChunkedLoss(torch.autograd.Function):
    """Gradients computed chunk by chunk in the forward pass; the backward pass scales and rounds.

    Source: Liger-Kernel, Hsu et al. 2024, arXiv:2410.10989.
    """

    @staticmethod
    def forward(ctx, hidden, weight, bias, problem, impl, count):
        results, gradients = passes.gradients(problem, impl, ctx.needs_input_grad[:3])
        ctx.impl = impl
        ctx.dtypes = [None if leaf is None else leaf.dtype for leaf in (hidden, weight, bias)]
        ctx.save_for_backward(gradients.hidden, gradients.weight, gradients.bias)
        return _loss_outputs(ctx, problem, results, count)

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream, *_):
        if upstream is None:
            return (None,) * 6
        gradients = passes.scale_gradients(
            upstream, ctx.saved_tensors, ctx.dtypes, ctx.impl, ctx.count
        )
        return (*gradients, None, None, None)


class _OneChunkLoss(torch.autograd.Function):
    """All scores at once on a CPU: the backward pass multiplies, and scales on the way.

    The forward pass keeps the scores' gradient instead of the leaves', so that no pass over a
    gradient is there for the scaling alone.
    """

    @staticmethod
    def forward(ctx, hidden, weight, bias, problem, impl, count):
        results = RowResults.empty(problem.targets, problem.wide)
        x, w = hidden.to(problem.wide), weight.to(problem.wide)
        with cpu_products(problem.dtype):
            z = product(x, w.T, out=x.new_empty(len(x), len(w)))  # [N, V]
        terms, all_valid = problem.terms, problem.all_valid
        d_scores = row_gradients(
            z, bias, problem.targets, problem.weights, terms, all_valid, results, None
        )
        ctx.dtype = problem.dtype
        ctx.save_for_backward(d_scores, hidden, weight, bias)
        return _loss_outputs(ctx, problem, results, count)

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream, *_):
        if upstream is None:
            return (None,) * 6
        d_scores, hidden, weight, bias = ctx.saved_tensors
        for_hidden, for_weight, for_bias = ctx.needs_input_grad[:3]
        # Numbers of Python: on a CPU reading them waits for nothing, and products take them.
        scale = float(upstream) / float(ctx.count)
        wide = d_scores.dtype
        d_hidden = d_weight = d_bias = None
        with without_autocast("cpu"), cpu_products(ctx.dtype):
            if for_hidden:
                d_hidden = scaled_product(scale, d_scores, weight.to(wide)).to(hidden.dtype)
            if for_weight:
                d_weight = scaled_product(scale, d_scores.T, hidden.to(wide)).to(weight.dtype)
        if for_bias:
            d_bias = d_scores.sum(0).mul_(scale).to(bias.dtype)
        return d_hidden, d_weight, d_bias, None, None, None


def _loss_outputs(
    ctx, problem: Problem, results: RowResults, count: Tensor | float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    ctx.count = count
    ctx.mark_non_differentiable(results.losses, results.lse, results.correct)
    # Else autograd would fill gradients [N, K] with zeros for outputs that have none.
    ctx.set_materialize_grads(False)
    # The division belongs here: outside it would be a node of the graph of its own.
    loss = passes.weighted_sum(problem, results) / count
    return loss, results.losses, results.lse, results.correct
