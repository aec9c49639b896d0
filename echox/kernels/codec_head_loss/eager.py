"""The summed loss outside of compiled programs, where the dispatcher's tenth of a millisecond can be saved, and on a CPU more."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from echox.kernels.codec_head_loss import passes
from echox.kernels.codec_head_loss.passes import Problem
from echox.kernels.codec_head_loss.products import cpu_products, product, scaled_product
from echox.kernels.codec_head_loss.rows import RowResults, row_gradients
from echox.kernels.codec_head_loss.terms import Impl


def summed(problem: Problem, impl: Impl, count: Tensor | float) -> tuple[Tensor, RowResults]:
    """The weighted sum of the losses over `count`, and the results of every target."""
    leaves = (problem.hidden, problem.weight, problem.bias)
    with _without_autocast(problem.hidden.device.type):
        if not torch.is_grad_enabled() or not any(leaf is not None and leaf.requires_grad for leaf in leaves):
            results = passes.losses(problem, impl)
            return passes.total(problem, results) / count, results
        function = _OneChunk if impl is Impl.torch and passes.fits_one_chunk(problem) else _Chunks
        total, *results = function.apply(*leaves, problem, impl, count)
        return total, RowResults(*results)


def _without_autocast(kind: str) -> AbstractContextManager:
    # Entering it costs as much as several operations on a few rows.
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


class _Chunks(torch.autograd.Function):
    """Gradients made chunk by chunk in the forward pass; the backward pass scales and rounds them."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, problem, impl, count):
        results, made = passes.gradients(problem, impl, ctx.needs_input_grad[:3])
        ctx.impl = impl
        ctx.dtypes = [None if leaf is None else leaf.dtype for leaf in (hidden, weight, bias)]
        ctx.save_for_backward(made.hidden, made.weight, made.bias)
        return _outputs(ctx, problem, results, count)

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream, *_):
        if upstream is None:
            return (None,) * 6
        return *passes.scaled(upstream, ctx.saved_tensors, ctx.dtypes, ctx.impl, ctx.count), None, None, None


class _OneChunk(torch.autograd.Function):
    """All scores at once on a CPU: the backward pass multiplies, scaled on the way, so that no gradient is made twice."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, problem, impl, count):
        results = RowResults.empty(problem.targets, problem.wide)
        x, w = hidden.to(problem.wide), weight.to(problem.wide)
        with cpu_products(problem.dtype):
            z = product(x, w.T, out=x.new_empty(len(x), len(w)))
        d_scores = row_gradients(z, bias, problem.targets, problem.weights, problem.terms, problem.certain, results, None)
        ctx.dtype = problem.dtype
        ctx.save_for_backward(d_scores, hidden, weight, bias)
        return _outputs(ctx, problem, results, count)

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream, *_):
        if upstream is None:
            return (None,) * 6
        d_scores, hidden, weight, bias = ctx.saved_tensors
        of_hidden, of_weight, of_bias = ctx.needs_input_grad[:3]
        scale = float(upstream) / float(ctx.count)
        gradients = [None, None, None]
        with _without_autocast("cpu"), cpu_products(ctx.dtype):
            if of_hidden:
                gradients[0] = scaled_product(scale, d_scores, weight.to(d_scores.dtype)).to(hidden.dtype)
            if of_weight:
                gradients[1] = scaled_product(scale, d_scores.T, hidden.to(d_scores.dtype)).to(weight.dtype)
        if of_bias:
            gradients[2] = d_scores.sum(0).mul_(scale).to(bias.dtype)
        return *gradients, None, None, None


def _outputs(ctx, problem: Problem, results: RowResults, count: Tensor | float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    ctx.count = count
    ctx.mark_non_differentiable(results.losses, results.lse, results.correct)
    ctx.set_materialize_grads(False)
    return passes.total(problem, results) / count, results.losses, results.lse, results.correct
