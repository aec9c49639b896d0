"""The codec-head loss as operators of PyTorch: one node in a compiled or exported program, with gradients of our own.

`echox::codec_head_loss` sums the losses and makes its gradients in the forward pass, while the scores are there;
`echox::codec_head_losses` gives every target's own loss, and its backward pass computes the scores again.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from echox.kernels.codec_head_loss import passes
from echox.kernels.codec_head_loss.inputs import check_range
from echox.kernels.codec_head_loss.passes import Problem
from echox.kernels.codec_head_loss.rows import RowResults
from echox.kernels.codec_head_loss.terms import Impl, Terms


def is_traced(*tensors: Tensor) -> bool:
    """Whether a program is being recorded, in which the loss is to be one operator."""
    return torch.compiler.is_compiling() or any(type(tensor) not in (Tensor, torch.nn.Parameter) for tensor in tensors)


def summed(problem: Problem, impl: Impl) -> tuple[Tensor, RowResults]:
    """The weighted sum of the losses, and the results of every target."""
    p = problem
    wanted = [torch.is_grad_enabled() and tensor is not None and tensor.requires_grad for tensor in (p.hidden, p.weight, p.bias)]
    total, losses, lse, correct, *_ = torch.ops.echox.codec_head_loss(p.hidden, p.weight, p.bias, p.targets, p.weights, *_options(p, impl), wanted)
    return total, RowResults(losses, lse, correct)


def each(problem: Problem, impl: Impl) -> RowResults:
    """The results of every target, of which the losses, unweighted, have gradients."""
    p = problem
    return RowResults(*torch.ops.echox.codec_head_losses(p.hidden, p.weight, p.bias, p.targets, *_options(p, impl)))


def _options(problem: Problem, impl: Impl) -> tuple[list[int], int, list[float], str, torch.dtype]:
    """What an operator can be given of the rest: cuts, ignore_index, numbers, impl, dtype."""
    terms = problem.terms
    return list(terms.cuts), terms.ignore_index, [terms.label_smoothing, terms.z_loss, terms.softcap, terms.temperature], impl.value, problem.dtype


def _problem(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, weights: Tensor | None, terms: Terms, dtype: torch.dtype
) -> Problem:
    return Problem(hidden, weight, bias, targets, weights, terms, dtype, check_range(targets, terms))


def _summed(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    weights: Tensor | None,
    cuts: list[int],
    ignore_index: int,
    numbers: list[float],
    impl: str,
    dtype: torch.dtype,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The weighted sum [], losses, lse and correct [N, K], and the sum's gradients by hidden, weight and bias (empty if unwanted).

    Args:
        numbers: label_smoothing, z_loss, softcap, temperature, as `Terms` has them.
    """
    terms = Terms(tuple(cuts), ignore_index, *numbers)
    with torch.autocast(hidden.device.type, enabled=False):
        problem = _problem(hidden, weight, bias, targets, weights, terms, dtype)
        if any(wanted):
            results, made = passes.gradients(problem, Impl(impl), tuple(wanted))
            gradients = (made.hidden, made.weight, made.bias)
        else:
            results, gradients = passes.losses(problem, Impl(impl)), (None, None, None)
        empty = results.losses.new_empty(0)
        return passes.total(problem, results), results.losses, results.lse, results.correct, *(empty.clone() if g is None else g for g in gradients)


def _summed_fake(hidden, weight, bias, targets, weights, cuts, ignore_index, numbers, impl, dtype, wanted):
    wide = torch.promote_types(dtype, torch.float32)
    rows = [targets.new_empty(targets.shape, dtype=kind) for kind in (wide, wide, torch.bool)]
    shapes = (hidden.shape, weight.shape, (cuts[-1],))
    return (hidden.new_empty((), dtype=wide), *rows, *(hidden.new_empty(shape if want else (0,), dtype=wide) for shape, want in zip(shapes, wanted)))


def _keep_gradients(ctx, inputs, output) -> None:
    hidden, weight, bias = inputs[:3]
    total, *results = output
    ctx.dtypes = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
    *_, impl, _, ctx.wanted = inputs
    ctx.impl = Impl(impl)
    ctx.mark_non_differentiable(*results)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*results[3:])


def _scaled(ctx, upstream, *_):
    gradients = [None] * 3
    if upstream is not None:
        saved = [gradient if want else None for gradient, want in zip(ctx.saved_tensors, ctx.wanted)]
        gradients = passes.scaled(upstream, saved, ctx.dtypes, ctx.impl)
    return (*gradients, *[None] * 8)


def _each(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    cuts: list[int],
    ignore_index: int,
    numbers: list[float],
    impl: str,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """losses, lse and correct [N, K]."""
    terms = Terms(tuple(cuts), ignore_index, *numbers)
    with torch.autocast(hidden.device.type, enabled=False):
        results = passes.losses(_problem(hidden, weight, bias, targets, None, terms, dtype), Impl(impl))
    return results.losses, results.lse, results.correct


def _each_fake(hidden, weight, bias, targets, cuts, ignore_index, numbers, impl, dtype):
    wide = torch.promote_types(dtype, torch.float32)
    return tuple(targets.new_empty(targets.shape, dtype=kind) for kind in (wide, wide, torch.bool))


def _each_backward(
    upstream: Tensor,
    lse: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    cuts: list[int],
    ignore_index: int,
    numbers: list[float],
    impl: str,
    dtype: torch.dtype,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by hidden, weight and bias (empty if unwanted) of losses whose upstream gradients are [N, K]."""
    terms = Terms(tuple(cuts), ignore_index, *numbers)
    with torch.autocast(hidden.device.type, enabled=False):
        problem = _problem(hidden, weight, bias, targets, upstream.contiguous(), terms, dtype)
        _, made = passes.gradients(problem, Impl(impl), tuple(wanted), lse)
        pairs = ((made.hidden, hidden), (made.weight, weight), (made.bias, bias))
        return tuple(lse.new_empty(0) if gradient is None else gradient.to(tensor.dtype) for gradient, tensor in pairs)


def _each_backward_fake(upstream, lse, hidden, weight, bias, targets, cuts, ignore_index, numbers, impl, dtype, wanted):
    pairs = zip((hidden, weight, bias), wanted)
    return tuple(torch.empty_like(tensor, memory_format=torch.contiguous_format) if want else lse.new_empty(0) for tensor, want in pairs)


def _keep_inputs(ctx, inputs, output) -> None:
    hidden, weight, bias, targets, *ctx.options = inputs
    losses, lse, correct = output
    ctx.mark_non_differentiable(lse, correct)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(lse, hidden, weight, bias, targets)


def _recomputed(ctx, upstream, *_):
    gradients = [None] * 3
    if upstream is not None:
        wanted = list(ctx.needs_input_grad[:3])
        made = torch.ops.echox.codec_head_losses_backward(upstream, *ctx.saved_tensors, *ctx.options, wanted)
        gradients = [gradient if want else None for gradient, want in zip(made, wanted)]
    return (*gradients, *[None] * 6)


def _register(name: str, function: Callable, fake: Callable) -> None:
    """Make a function an operator. (`torch.library.custom_op` does it too, at the price of importing the compiler on the first call.)"""
    torch.library.define(name, torch.library.infer_schema(function, mutates_args=()))
    torch.library.impl(name, ("cpu", "cuda"), function)
    torch.library.register_fake(name, fake)


_register("echox::codec_head_loss", _summed, _summed_fake)
_register("echox::codec_head_losses", _each, _each_fake)
_register("echox::codec_head_losses_backward", _each_backward, _each_backward_fake)
torch.library.register_autograd("echox::codec_head_loss", _scaled, setup_context=_keep_gradients)
torch.library.register_autograd("echox::codec_head_losses", _recomputed, setup_context=_keep_inputs)
