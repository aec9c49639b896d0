"""Codec-head loss over a process group: a vocabulary or a set of codebooks split over its ranks.

Every rank has all rows of the batch. Both functions give every rank the loss of one process that
holds everything, and the gradient of its own rows of the weight; the hidden states' gradient is
summed over the ranks. Small heads need neither: replicate the weight, shard the rows, and pass the
`count` of all ranks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from echox.core.errors import ConfigError
from echox.kernels.codec_head_loss import passes
from echox.kernels.codec_head_loss.inputs import (
    check_range,
    matmul_dtype,
    nonzero_divisor,
    resolve_impl,
)
from echox.kernels.codec_head_loss.op import HeadLoss, codec_head_loss
from echox.kernels.codec_head_loss.paths import Problem
from echox.kernels.codec_head_loss.rows import PartialSoftmax, merge_partials
from echox.kernels.codec_head_loss.terms import Impl, Reduction, Terms


def codebook_parallel_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    group: dist.ProcessGroup,
    codebook_weight: Tensor | Sequence[float] | None = None,
    count: Tensor | float | None = None,
    reduction: Reduction = Reduction.mean,
    **options: object,
) -> HeadLoss:
    """Compute `codec_head_loss` with each codebook on one rank of `group`.

    Args:
        hidden: [..., D], the same on every rank.
        weight, targets, codebook_weight: [V, D], [..., K] and [K] of this rank's codebooks only.
        count: as in `codec_head_loss`; None is the sum of the weights of all ranks' valid targets.

    Returns:
        The loss of all codebooks; its tensors [..., K] are of this rank's codebooks.

    Raises:
        ConfigError: nothing is reduced; then call `codec_head_loss` on each rank.
    """
    if reduction is Reduction.none:
        raise ConfigError(
            "reduction=none needs no process group for whole codebooks; "
            "call codec_head_loss on each rank"
        )
    hidden = _SumGradientOverRanks.apply(hidden, group)
    own = codec_head_loss(
        hidden, weight, targets, codebook_weight=codebook_weight, reduction=Reduction.sum, **options
    )
    total = _SumOverRanks.apply(own.loss, group)
    if reduction is Reduction.mean:
        if count is None:
            weights = _valid_weights(own.valid, codebook_weight, options.get("token_weight"))
            count = weights.sum()
            dist.all_reduce(count, group=group)
        total = total / nonzero_divisor(count)
    return dataclasses.replace(own, loss=total)


def _valid_weights(
    valid: Tensor, codebook_weight: Tensor | Sequence[float] | None, token_weight: Tensor | None
) -> Tensor:
    """Return the weights of targets, 0 where ignored, in `valid`'s shape [..., K] or [...]."""
    weights = valid.float()
    if token_weight is not None:
        per_target = token_weight.dim() == valid.dim()
        weights = weights * (token_weight if per_target else token_weight[..., None])
    if codebook_weight is None:
        return weights
    return weights * torch.as_tensor(codebook_weight, dtype=weights.dtype, device=valid.device)


def vocabulary_parallel_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    group: dist.ProcessGroup,
    first_row: int,
    vocabulary_size: int,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    token_weight: Tensor | None = None,
    reduction: Reduction = Reduction.mean,
    count: Tensor | float | None = None,
    impl: Impl = Impl.auto,
) -> HeadLoss:
    """Compute `codec_head_loss` of one vocabulary whose rows are split over the ranks of `group`.

    Ranks hold the rows in their order, in any sizes. They exchange five numbers per row of the
    batch (top score, its entry, sum of exponentials, sum of scores, the target's score), once. The
    scores are computed twice, for no rank knows the log-sum-exp before the exchange.

    Args:
        hidden, targets: [..., D] and [...], the same on every rank; targets count from the first
            row of the first rank.
        weight, bias: [V_r, D] and [V_r] of this rank.
        first_row: row of the full weight that is this rank's first.
        vocabulary_size: rows of the full weight, V.

    Raises:
        ConfigError, SignalError: as `codec_head_loss`.
    """
    if list(targets.shape) != list(hidden.shape[:-1]):
        raise ConfigError(
            f"targets {list(targets.shape)} and hidden states {list(hidden.shape)} do not fit; "
            "they must be [...] and [..., D]"
        )
    numbers = (label_smoothing, z_loss, softcap or 0.0, temperature, vocabulary_size)
    terms = Terms((0, len(weight)), ignore_index, *numbers)
    impl = resolve_impl(impl, hidden)
    # The reference has no statistics of a part of the vocabulary.
    impl = Impl.torch if impl is Impl.reference else impl
    flat = targets.reshape(-1, 1).long()
    options = (flat, terms, first_row, group, impl, matmul_dtype(hidden))
    losses, lse, correct = _VocabularyParallel.apply(
        hidden.reshape(-1, hidden.shape[-1]), weight, bias, *options
    )
    valid = targets != ignore_index
    weights = _valid_weights(valid, None, token_weight)
    losses = losses.reshape(targets.shape)
    weighted = losses if token_weight is None else losses * weights
    loss = weighted if reduction is Reduction.none else weighted.sum()
    if reduction is Reduction.mean:
        loss = loss / nonzero_divisor(weights.sum() if count is None else count)
    lse, correct = lse.reshape(targets.shape), correct.reshape(targets.shape)
    return HeadLoss(loss, losses.detach(), lse, correct, valid)


# Marks ignored targets once they count from a rank's own first row: no target is as small.
_IGNORED = -(2**62)


class _VocabularyParallel(torch.autograd.Function):
    """losses, lse and correct [N, 1] of the full vocabulary from this rank's part of it."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, terms, first_row, group, impl, dtype):
        check_range(targets, Terms((0, terms.vocabulary_size), terms.ignore_index))
        # Moved targets may be negative, and one of them equal to the caller's `ignore_index`.
        local_targets = (targets - first_row).where(targets != terms.ignore_index, _IGNORED)
        local = dataclasses.replace(terms, ignore_index=_IGNORED)
        problem = Problem(hidden, weight, bias, local_targets, None, local, dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            parts = _exchange(passes.partial_softmax(problem, impl), first_row, group)
            results = merge_partials(parts, targets, terms)
        ctx.save_for_backward(hidden, weight, bias, local_targets, results.lse, results.losses)
        ctx.settings = (local, group, impl, dtype)
        ctx.mark_non_differentiable(results.lse, results.correct)
        ctx.set_materialize_grads(False)
        return results.losses, results.lse, results.correct

    @staticmethod
    def backward(ctx, upstream, *_):
        if upstream is None:
            return (None,) * 9
        hidden, weight, bias, local_targets, lse, losses = ctx.saved_tensors
        terms, group, impl, dtype = ctx.settings
        wanted = tuple(ctx.needs_input_grad[:3])
        # Where a loss is NaN, its gradients are too: the kernels here cannot tell a target out of
        # range from one of another rank.
        weights = (upstream + 0 * losses).contiguous()
        problem = Problem(hidden, weight, bias, local_targets, weights, terms, dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            _, gradients = passes.gradients(problem, impl, wanted, lse)
            if gradients.hidden is not None:
                dist.all_reduce(gradients.hidden, group=group)
        leaves = ((gradients.hidden, hidden), (gradients.weight, weight), (gradients.bias, bias))
        by_leaf = (
            None if gradient is None else gradient.to(leaf.dtype) for gradient, leaf in leaves
        )
        return *by_leaf, *[None] * 6


def _exchange(own: PartialSoftmax, first_row: int, group: dist.ProcessGroup) -> PartialSoftmax:
    """Gather the statistics of all ranks, [P, N, K].

    Their top entries count from the first row of the first rank.
    """
    names = PartialSoftmax.__dataclass_fields__
    moved = dataclasses.replace(own, top_entry=own.top_entry + first_row)
    # One exchange for all five. Entries travel in the dtype of the scores, in which numbers up to
    # 2^24 are exact.
    packed = torch.stack([getattr(moved, name).to(own.top_score.dtype) for name in names])
    parts = [torch.empty_like(packed) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, packed, group=group)
    fields = dict(zip(names, torch.stack(parts, dim=1)))  # five of [P, N, K]
    return PartialSoftmax(**fields | {"top_entry": fields["top_entry"].long()})


class _SumGradientOverRanks(torch.autograd.Function):
    """Identity whose gradient is summed over the ranks."""

    @staticmethod
    def forward(ctx, values, group):
        ctx.group = group
        return values.view_as(values)

    @staticmethod
    def backward(ctx, upstream):
        # Reduced in place, and autograd may use the upstream gradient elsewhere.
        upstream = upstream.contiguous().clone()
        dist.all_reduce(upstream, group=ctx.group)
        return upstream, None


class _SumOverRanks(torch.autograd.Function):
    """Sum over the ranks whose gradient is the identity: each rank goes on with the same number."""

    @staticmethod
    def forward(ctx, values, group):
        total = values.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx, upstream):
        return upstream, None
