"""Codec-head loss as one operation: projection to a vocabulary and its cross-entropy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.utils._pytree import register_pytree_node

from echox.kernels.codec_head_loss import eager, operators, reference
from echox.kernels.codec_head_loss.inputs import (
    check_range,
    check_shapes,
    matmul_dtype,
    nonzero_divisor,
    resolve_impl,
    select_rows,
    target_weights,
)
from echox.kernels.codec_head_loss.paths import Problem
from echox.kernels.codec_head_loss.rows import RowResults
from echox.kernels.codec_head_loss.terms import Impl, Reduction, Terms


@dataclass(frozen=True, slots=True)
class HeadLoss:
    """Codec-head loss with the loss, log-sum-exp and correctness of every target.

    `...` is the leading shape of the hidden states, [B, U] or [N].
    """

    loss: Tensor  # [], or as `losses` where nothing is reduced
    losses: Tensor  # [...] or [..., K] of every target, unweighted, detached; 0 where ignored
    lse: Tensor  # as `losses`; the log-sum-exp of the scores, detached
    correct: Tensor  # as `losses`, bool; whether the target has the highest score
    valid: Tensor  # as `losses`, bool; False where ignored


# FSDP2 attaches the hooks of its backward pass to the tensors that it finds in a module's output.
register_pytree_node(
    HeadLoss,
    lambda result: ([result.loss, result.losses, result.lse, result.correct, result.valid], None),
    lambda tensors, _: HeadLoss(*tensors),
    serialized_type_name="echox.HeadLoss",
)


def codec_head_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    segments: Sequence[int] | None = None,
    first_id: int = 0,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    codebook_weight: Tensor | Sequence[float] | None = None,
    token_weight: Tensor | None = None,
    reduction: Reduction = Reduction.mean,
    count: Tensor | float | None = None,
    impl: Impl = Impl.auto,
) -> HeadLoss:
    """Compute the cross-entropy of hidden states projected to one or several codebooks.

    `Terms` has the formula.

    Args:
        hidden: [..., D] in any strides.
        weight: [V, D] rows of text, units, codebooks; bias: [V].
        targets: [...], or [..., K] for K codebooks: integers, 0 .. V_k - 1 within their codebook,
            or `ignore_index`.
        segments: [K + 1] rising rows of the weight; codebook k owns rows segments[k] ..
            segments[k + 1] - 1. None is all rows, one codebook. Rows outside take no part: the loss
            over a unit range of a text and unit vocabulary costs the unit range.
        first_id: target that means a codebook's first row; `segments[0]` where targets are row
            numbers of the full weight.
        softcap: bound of the scores, applied before the temperature.
        codebook_weight: [K]; token_weight: [...] or as targets. Constants: they get no gradient. On
            a GPU a list is copied there in every call, and a tensor is not: give one where nothing
            may wait, as in a CUDA graph.
        reduction: mean divides the weighted sum by `count`, or by the sum of the valid targets'
            weights; where that is 0 (all targets ignored) the loss is 0 and so are its gradients,
            unlike PyTorch's NaN.
        count: number of targets to divide by, for instance of all ranks and micro-batches.

    Raises:
        ConfigError: an option or a shape does not fit.
        SignalError: a target is out of range. A GPU is not waited for: there the loss and the
            gradients become NaN.
    """
    cuts = tuple(segments) if segments is not None else (0, len(weight))
    terms = Terms(cuts, ignore_index, label_smoothing, z_loss, softcap or 0.0, temperature)
    check_shapes(hidden, weight, bias, targets, terms)
    terms, weight, bias = select_rows(terms, weight, bias)
    flat = _flat_targets(targets, terms, first_id)  # [N, K]
    weights = target_weights(hidden, flat, targets, codebook_weight, token_weight)
    # A program that is being recorded has no values to check; its operator checks when it runs.
    traced = operators.is_traced(hidden, weight)
    all_valid = not traced and check_range(flat, terms)
    # A view costs some microseconds of Python even where the shape stays.
    rows = hidden if hidden.dim() == 2 else hidden.reshape(-1, hidden.shape[-1])
    problem = Problem(rows, weight, bias, flat, weights, terms, matmul_dtype(hidden), all_valid)
    valid = flat != ignore_index
    divisor = _divisor(problem, valid, reduction, count)
    loss, results = _compute(problem, resolve_impl(impl, hidden), reduction, traced, divisor)
    losses, lse, correct, is_valid = (
        (tensor.detach() if tensor.requires_grad else tensor).view(targets.shape)
        for tensor in (results.losses, results.lse, results.correct, valid)
    )
    loss = loss.reshape(targets.shape) if reduction is Reduction.none else loss
    return HeadLoss(loss, losses, lse, correct, is_valid)


def _flat_targets(targets: Tensor, terms: Terms, first_id: int) -> Tensor:
    """Return targets as int64 [N, K] that count from their codebook's first row."""
    flat = targets.reshape(-1, terms.codebooks).long()
    if not first_id:
        return flat
    # `ignore_index` is no row number and must not be moved with them.
    return (flat - first_id).where(flat != terms.ignore_index, terms.ignore_index)


def _divisor(
    problem: Problem, valid: Tensor, reduction: Reduction, count: Tensor | float | None
) -> Tensor | float:
    """Return what the weighted sum is divided by: 1 where it is no mean, or all is ignored."""
    if reduction is not Reduction.mean:
        return 1
    if count is not None:
        return nonzero_divisor(count)
    if problem.weights is not None:
        return nonzero_divisor(problem.weights.where(valid, 0).sum())
    return problem.targets.numel() if problem.all_valid else valid.sum().clamp(min=1)


def _compute(
    problem: Problem, impl: Impl, reduction: Reduction, traced: bool, divisor: Tensor | float
) -> tuple[Tensor, RowResults]:
    """Return the weighted losses [N, K] or their sum over the divisor, and all results."""
    if impl is Impl.reference:
        p = problem
        results = RowResults(*reference.losses(p.hidden, p.weight, p.bias, p.targets, p.terms))
    elif reduction is Reduction.none:
        results = operators.target_losses(problem, impl)
    elif traced:
        total, results = operators.summed_loss(problem, impl)
        return total / divisor, results
    else:
        return eager.summed_loss(problem, impl, divisor)
    weighted = results.losses if problem.weights is None else results.losses * problem.weights
    return weighted if reduction is Reduction.none else weighted.sum() / divisor, results
