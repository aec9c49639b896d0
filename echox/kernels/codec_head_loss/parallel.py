"""The codec-head loss over a process group: a vocabulary or a set of codebooks dealt out to ranks, every rank with all rows.

Both give every rank the loss of one process that holds everything, and the gradient of its own rows of the weight. The hidden states'
gradient is summed over the ranks. Small heads need neither: replicate the weight, shard the rows, and pass the `count` of all ranks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from echox.errors import ConfigError
from echox.kernels.codec_head_loss import passes
from echox.kernels.codec_head_loss.inputs import check_range, chosen, multiplying_dtype, nonzero
from echox.kernels.codec_head_loss.op import HeadLoss, codec_head_loss
from echox.kernels.codec_head_loss.passes import Problem
from echox.kernels.codec_head_loss.rows import Partial, joined
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
    """`codec_head_loss` of whole codebooks dealt out to the ranks of `group`.

    Args:
        hidden: [..., D], the same on every rank; weight, targets, codebook_weight: of this rank's codebooks only.
        count: as ever; None is the sum of the weights of all ranks' valid targets.
    Returns:
        the loss of all codebooks; its per-target tensors are of this rank's codebooks.
    Raises:
        ConfigError: nothing is reduced; then call `codec_head_loss` on each rank.
    """
    if reduction is Reduction.none:
        raise ConfigError("reduction=none needs no process group for whole codebooks; call codec_head_loss on each rank")
    hidden = _SumOfGradients.apply(hidden, group)
    own = codec_head_loss(hidden, weight, targets, codebook_weight=codebook_weight, reduction=Reduction.sum, **options)
    total = _SumOverRanks.apply(own.loss, group)
    if reduction is Reduction.mean:
        if count is None:
            weights = target_weights(own.valid, codebook_weight, options.get("token_weight"))
            count = weights.sum()
            dist.all_reduce(count, group=group)
        total = total / nonzero(count)
    return dataclasses.replace(own, loss=total)


def target_weights(valid: Tensor, codebook_weight: Tensor | Sequence[float] | None, token_weight: Tensor | None) -> Tensor:
    """Weights of the targets, 0 where ignored, in the targets' shape."""
    weights = valid.float()
    if token_weight is not None:
        weights = weights * (token_weight if token_weight.dim() == valid.dim() else token_weight[..., None])
    return weights if codebook_weight is None else weights * torch.as_tensor(codebook_weight, dtype=weights.dtype, device=valid.device)


def vocabulary_parallel_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    group: dist.ProcessGroup,
    first: int,
    whole: int,
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
    """`codec_head_loss` of one vocabulary whose rows are dealt out to the ranks of `group` in their order, in any sizes.

    The ranks exchange five numbers per row (highest score, its entry, sum of exponentials, sum of scores, the target's score), once.
    The scores are computed twice, for no rank knows the log-sum-exp before the exchange.

    Args:
        hidden: [..., D] and targets [...]: the same on every rank; targets count from the first row of the first rank.
        weight: [V_r, D], bias: [V_r] of this rank.
        first: row of the whole weight that is this rank's first; whole: rows of the whole weight.
    Raises:
        ConfigError, SignalError: as `codec_head_loss`.
    """
    if list(targets.shape) != list(hidden.shape[:-1]):
        raise ConfigError(f"targets {list(targets.shape)} and hidden states {list(hidden.shape)} do not fit; they must be [...] and [..., D]")
    terms = Terms((0, len(weight)), ignore_index, label_smoothing, z_loss, softcap or 0.0, temperature, whole)
    impl = chosen(impl, hidden)
    if impl is Impl.reference:
        impl = Impl.torch
    flat = targets.reshape(-1, 1).long()
    options = (flat, terms, first, group, impl, multiplying_dtype(hidden))
    losses, lse, correct = _VocabularyParallel.apply(hidden.reshape(-1, hidden.shape[-1]), weight, bias, *options)
    valid = targets != ignore_index
    weights = target_weights(valid, None, token_weight)
    losses = losses.reshape(targets.shape)
    weighted = losses if token_weight is None else losses * weights
    loss = weighted if reduction is Reduction.none else weighted.sum()
    if reduction is Reduction.mean:
        loss = loss / nonzero(weights.sum() if count is None else count)
    return HeadLoss(loss, losses.detach(), lse.reshape(targets.shape), correct.reshape(targets.shape), valid)


# Marks ignored targets once they count from a rank's own first row: no target is as small.
_IGNORED = -(2**62)


class _VocabularyParallel(torch.autograd.Function):
    """losses, lse and correct [N, 1] of the whole vocabulary from this rank's part of it."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, terms, first, group, impl, dtype):
        check_range(targets, Terms((0, terms.whole), terms.ignore_index))
        here = (targets - first).where(targets != terms.ignore_index, _IGNORED)
        local = dataclasses.replace(terms, ignore_index=_IGNORED)
        problem = Problem(hidden, weight, bias, here, None, local, dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            results = joined(_exchanged(passes.statistics(problem, impl), first, group), targets, terms)
        ctx.save_for_backward(hidden, weight, bias, here, results.lse, results.losses)
        ctx.settings = (local, group, impl, dtype)
        ctx.mark_non_differentiable(results.lse, results.correct)
        ctx.set_materialize_grads(False)
        return results.losses, results.lse, results.correct

    @staticmethod
    def backward(ctx, upstream, *_):
        if upstream is None:
            return (None,) * 9
        hidden, weight, bias, here, lse, losses = ctx.saved_tensors
        terms, group, impl, dtype = ctx.settings
        wanted = tuple(ctx.needs_input_grad[:3])
        weights = (upstream + 0 * losses).contiguous()  # where a loss is no number, so are its gradients
        problem = Problem(hidden, weight, bias, here, weights, terms, dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            _, made = passes.gradients(problem, impl, wanted, lse)
            if made.hidden is not None:
                dist.all_reduce(made.hidden, group=group)
        pairs = ((made.hidden, hidden), (made.weight, weight), (made.bias, bias))
        return *(None if gradient is None else gradient.to(tensor.dtype) for gradient, tensor in pairs), *[None] * 6


def _exchanged(own: Partial, first: int, group: dist.ProcessGroup) -> Partial:
    """The statistics of all ranks [P, N, K], the highest entries counted from the first row of the first rank."""
    moved = dataclasses.replace(own, best=own.best + first)
    # Entries travel in the type of the scores, in which numbers up to 2^24 are exact.
    packed = torch.stack([getattr(moved, name).to(own.top.dtype) for name in Partial.__dataclass_fields__])
    parts = [torch.empty_like(packed) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, packed, group=group)
    fields = dict(zip(Partial.__dataclass_fields__, torch.stack(parts, dim=1)))
    return Partial(**fields | {"best": fields["best"].long()})


class _SumOfGradients(torch.autograd.Function):
    """The identity, whose gradient is summed over the ranks."""

    @staticmethod
    def forward(ctx, values, group):
        ctx.group = group
        return values.view_as(values)

    @staticmethod
    def backward(ctx, upstream):
        upstream = upstream.contiguous().clone()
        dist.all_reduce(upstream, group=ctx.group)
        return upstream, None


class _SumOverRanks(torch.autograd.Function):
    """The sum over the ranks, whose gradient is the identity: every rank goes on with the same number."""

    @staticmethod
    def forward(ctx, values, group):
        total = values.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx, upstream):
        return upstream, None
