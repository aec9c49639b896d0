"""Codec-head loss as operators of PyTorch: one node in a compiled or exported program.

`echox::codec_head_loss` sums the losses and computes its gradients in the forward pass, while the
scores are there; `echox::codec_head_losses` returns every target's own loss, and its backward pass
computes the scores again.
"""

from __future__ import annotations

import torch
from torch import Tensor

from echox.kernels.codec_head_loss import passes
from echox.kernels.codec_head_loss.inputs import check_range
from echox.kernels.codec_head_loss.passes import Gradients
from echox.kernels.codec_head_loss.paths import Problem
from echox.kernels.codec_head_loss.rows import RowResults
from echox.kernels.codec_head_loss.terms import Impl, Terms
from echox.kernels.dispatch import register_operator


def is_traced(*tensors: Tensor) -> bool:
    """Return whether a program is being recorded, in which the loss is to be one operator."""
    # Tracers that are not the compiler pass tensor subclasses, such as export's fake tensors.
    return torch.compiler.is_compiling() or any(
        type(tensor) not in (Tensor, torch.nn.Parameter) for tensor in tensors
    )


def summed_loss(problem: Problem, impl: Impl) -> tuple[Tensor, RowResults]:
    """Return the weighted sum [] of the losses, undivided, and the results of every target.

    Raises:
        ConfigError, SignalError: as `codec_head_loss`, when the operator runs.
    """
    p = problem
    # The operator cannot see which of its inputs want gradients.
    wanted = [
        torch.is_grad_enabled() and tensor is not None and tensor.requires_grad
        for tensor in (p.hidden, p.weight, p.bias)
    ]
    total, losses, lse, correct, *_ = torch.ops.echox.codec_head_loss(
        p.hidden, p.weight, p.bias, p.targets, p.weights, *_options(p, impl), wanted
    )
    return total, RowResults(losses, lse, correct)


def target_losses(problem: Problem, impl: Impl) -> RowResults:
    """Return the results [N, K] of every target, of which the unweighted losses have gradients.

    Raises:
        ConfigError, SignalError: as `codec_head_loss`, when the operator runs.
    """
    p = problem
    tensors = (p.hidden, p.weight, p.bias, p.targets)
    return RowResults(*torch.ops.echox.codec_head_losses(*tensors, *_options(p, impl)))


def _options(problem: Problem, impl: Impl) -> tuple[list[int], int, list[float], str, torch.dtype]:
    """Return the rest of a problem in types that an operator's schema has.

    They are cuts, ignore_index, numbers, impl and dtype.
    """
    terms = problem.terms
    return (
        list(terms.cuts),
        terms.ignore_index,
        [terms.label_smoothing, terms.z_loss, terms.softcap, terms.temperature],
        impl.value,
        problem.dtype,
    )


# The parameters of registered functions are the names in the operators' schemas: exported programs
# hold them.


def _codec_head_loss(
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
    """Compute the weighted sum [], losses, lse and correct [N, K], and the sum's gradients.

    Args:
        numbers: label_smoothing, z_loss, softcap, temperature, as `Terms` has them.
        wanted: of which of hidden, weight and bias there are gradients; the others are empty.
    """
    terms = _terms(cuts, ignore_index, numbers)
    with torch.autocast(hidden.device.type, enabled=False):
        all_valid = check_range(targets, terms)
        problem = Problem(hidden, weight, bias, targets, weights, terms, dtype, all_valid)
        if any(wanted):
            results, gradients = passes.gradients(problem, Impl(impl), _leaves(wanted))
        else:
            results, gradients = passes.losses(problem, Impl(impl)), Gradients(None, None, None)
        total = passes.weighted_sum(problem, results)
        # Every result of an operator must be a tensor, and no two of them the same one.
        empty = results.losses.new_empty(0)
        by_hidden, by_weight, by_bias = (
            empty.clone() if gradient is None else gradient
            for gradient in (gradients.hidden, gradients.weight, gradients.bias)
        )
        losses, lse, correct = results.losses, results.lse, results.correct
        return total, losses, lse, correct, by_hidden, by_weight, by_bias


def _codec_head_loss_fake(
    hidden, weight, bias, targets, weights, cuts, ignore_index, numbers, impl, dtype, wanted
):
    wide = torch.promote_types(dtype, torch.float32)
    results = [targets.new_empty(targets.shape, dtype=kind) for kind in (wide, wide, torch.bool)]
    shapes = (hidden.shape, weight.shape, (cuts[-1],))
    gradients = [
        hidden.new_empty(shape if want else (0,), dtype=wide) for shape, want in zip(shapes, wanted)
    ]
    return (hidden.new_empty((), dtype=wide), *results, *gradients)


def _save_gradients(ctx, inputs, output) -> None:
    hidden, weight, bias = inputs[:3]
    total, *results = output
    ctx.dtypes = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
    *_, impl, _, ctx.wanted = inputs
    ctx.impl = Impl(impl)
    ctx.mark_non_differentiable(*results)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*results[3:])


def _codec_head_loss_backward(ctx, upstream, *_):
    gradients: list[Tensor | None] = [None] * 3
    if upstream is not None:
        saved = [
            gradient if want else None for gradient, want in zip(ctx.saved_tensors, ctx.wanted)
        ]
        gradients = passes.scale_gradients(upstream, saved, ctx.dtypes, ctx.impl)
    return (*gradients, *[None] * 8)


def _codec_head_losses(
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
    """Compute losses, lse and correct [N, K]."""
    terms = _terms(cuts, ignore_index, numbers)
    with torch.autocast(hidden.device.type, enabled=False):
        all_valid = check_range(targets, terms)
        problem = Problem(hidden, weight, bias, targets, None, terms, dtype, all_valid)
        results = passes.losses(problem, Impl(impl))
    return results.losses, results.lse, results.correct


def _codec_head_losses_fake(
    hidden, weight, bias, targets, cuts, ignore_index, numbers, impl, dtype
):
    wide = torch.promote_types(dtype, torch.float32)
    return tuple(targets.new_empty(targets.shape, dtype=kind) for kind in (wide, wide, torch.bool))


def _codec_head_losses_backward(
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
    """Compute the gradients by hidden, weight and bias (empty if unwanted).

    Args:
        upstream: gradients [N, K] of the losses; lse: [N, K] of the forward pass.
    """
    terms = _terms(cuts, ignore_index, numbers)
    with torch.autocast(hidden.device.type, enabled=False):
        all_valid, weights = check_range(targets, terms), upstream.contiguous()
        # The upstream gradients take the place of the targets' weights.
        problem = Problem(hidden, weight, bias, targets, weights, terms, dtype, all_valid)
        _, gradients = passes.gradients(problem, Impl(impl), _leaves(wanted), lse)
        leaves = ((gradients.hidden, hidden), (gradients.weight, weight), (gradients.bias, bias))
        by_hidden, by_weight, by_bias = (
            lse.new_empty(0) if gradient is None or leaf is None else gradient.to(leaf.dtype)
            for gradient, leaf in leaves
        )
        return by_hidden, by_weight, by_bias


def _codec_head_losses_backward_fake(
    upstream, lse, hidden, weight, bias, targets, cuts, ignore_index, numbers, impl, dtype, wanted
):
    return tuple(
        torch.empty_like(tensor, memory_format=torch.contiguous_format)
        if want
        else lse.new_empty(0)
        for tensor, want in zip((hidden, weight, bias), wanted)
    )


def _save_inputs(ctx, inputs, output) -> None:
    hidden, weight, bias, targets, *ctx.options = inputs
    losses, lse, correct = output
    ctx.mark_non_differentiable(lse, correct)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(lse, hidden, weight, bias, targets)


def _recompute_gradients(ctx, upstream, *_):
    gradients: list[Tensor | None] = [None] * 3
    if upstream is not None:
        wanted = list(ctx.needs_input_grad[:3])
        results = torch.ops.echox.codec_head_losses_backward(
            upstream, *ctx.saved_tensors, *ctx.options, wanted
        )
        gradients = [gradient if want else None for gradient, want in zip(results, wanted)]
    return (*gradients, *[None] * 6)


def _terms(cuts: list[int], ignore_index: int, numbers: list[float]) -> Terms:
    label_smoothing, z_loss, softcap, temperature = numbers
    return Terms(tuple(cuts), ignore_index, label_smoothing, z_loss, softcap, temperature)


def _leaves(wanted: list[bool]) -> tuple[bool, bool, bool]:
    hidden, weight, bias = wanted
    return hidden, weight, bias


register_operator("echox::codec_head_loss", _codec_head_loss, _codec_head_loss_fake)
register_operator("echox::codec_head_losses", _codec_head_losses, _codec_head_losses_fake)
register_operator(
    "echox::codec_head_losses_backward",
    _codec_head_losses_backward,
    _codec_head_losses_backward_fake,
)
torch.library.register_autograd(
    "echox::codec_head_loss", _codec_head_loss_backward, setup_context=_save_gradients
)
torch.library.register_autograd(
    "echox::codec_head_losses", _recompute_gradients, setup_context=_save_inputs
)
