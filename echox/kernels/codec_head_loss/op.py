"""The codec-head loss as one operation: projection to a vocabulary and its cross-entropy, forward and backward.

Inside a compiled or exported program it is one node: `echox::codec_head_loss` where the losses are summed (its gradients are made in
the forward pass, while the scores are there), `echox::codec_head_losses` where every target's own loss is wanted (its backward pass
computes the scores again).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from echox.errors import ConfigError, SignalError
from echox.kernels.codec_head_loss import passes, reference
from echox.kernels.codec_head_loss.passes import Problem
from echox.kernels.codec_head_loss.terms import Impl, Reduction, Terms


@dataclass(frozen=True, slots=True)
class HeadLoss:
    """A codec-head loss and what it knows on the way. `...` is the leading shape of the hidden states, [B, U] or [N]."""

    loss: Tensor  # [], or as `losses` where nothing is reduced
    losses: Tensor  # [...] or [..., K] of every target, unweighted, detached; 0 where ignored
    lse: Tensor  # as `losses`; the log-sum-exp of the scores, detached
    correct: Tensor  # as `losses`, bool; whether the target has the highest score
    valid: Tensor  # as `losses`, bool; False where ignored
    per_codebook: bool = False  # whether the last axis of `losses` is K

    def codebook_losses(self) -> Tensor:
        """[K] mean loss of each codebook over its valid targets ([] for one codebook); 0 where there is none."""
        return self._mean(self.losses)

    def accuracy(self) -> Tensor:
        """[K] share of valid targets that are correct ([] for one codebook); 0 where there is none."""
        return self._mean(self.correct)

    def _mean(self, values: Tensor) -> Tensor:
        rows = tuple(range(values.dim() - self.per_codebook))
        return values.float().sum(rows) / self.valid.sum(rows).clamp(min=1)


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
    """Cross-entropy of hidden states projected to one or several codebooks; see `Terms` for the formula.

    Args:
        hidden: [..., D] in any strides.
        weight: [W, D] rows of text, units, codebooks; bias: [W].
        targets: [...], or [..., K] for several codebooks: integers, 0 .. V_k - 1 within their codebook, or `ignore_index`.
        segments: [K + 1] rising rows of the weight; codebook k owns rows segments[k] .. segments[k + 1] - 1. None is all rows, one
            codebook. Rows outside take no part: the loss over a unit range of a text and unit vocabulary costs the unit range.
        first_id: target that means a codebook's first row; `segments[0]` where targets are row numbers of the whole weight.
        softcap: bound of the scores, applied before the temperature.
        codebook_weight: [K]; token_weight: [...] or as targets. Constants: they get no gradient. On a GPU a list is copied there in
            every call, and a tensor is not: give one where nothing may wait, as in a CUDA graph.
        reduction: mean divides the weighted sum by `count`, or by the sum of the valid targets' weights; where that is 0 (all
            targets ignored) the loss is 0 and so are its gradients, unlike PyTorch's NaN.
        count: number of targets to divide by, for instance of all ranks and micro-batches.
    Raises:
        ConfigError: an option or a shape does not fit.
        SignalError: a target is out of range. A GPU is not waited for: there the loss and the gradients become NaN.
    """
    terms = Terms(
        tuple(segments) if segments is not None else (0, len(weight)), ignore_index, label_smoothing, z_loss, softcap or 0.0, temperature
    )
    _check(hidden, weight, bias, targets, terms)
    with_codebooks = targets.dim() == hidden.dim()
    terms, weight, bias = _narrowed(terms, weight, bias)
    flat = targets.reshape(-1, terms.codebooks).long()
    if first_id:
        flat = (flat - first_id).where(flat != ignore_index, ignore_index)
    weights = _weights(hidden, flat, targets, codebook_weight, token_weight)
    inputs = (hidden.reshape(-1, hidden.shape[-1]), weight, bias, flat, weights)
    losses, lse, correct, total = _apply(inputs, terms, chosen(impl, hidden), reduction)
    valid = flat != ignore_index
    if reduction is Reduction.mean:
        if count is None:
            count = valid.sum() if weights is None else weights.where(valid, 0).sum()
        total = total / _not_zero(count)
    shaped = (tensor.detach().reshape(targets.shape) for tensor in (losses, lse, correct, valid))
    return HeadLoss(total.reshape(targets.shape) if reduction is Reduction.none else total, *shaped, with_codebooks)


def chosen(impl: Impl, hidden: Tensor) -> Impl:
    """The implementation that `auto` means for these hidden states."""
    if impl is not Impl.auto:
        return impl
    if not hidden.is_cuda:
        return Impl.torch
    # Without gradients nothing has to be written but one number per row. Exact float32 products are slow in Triton.
    sixteen = multiplying_dtype(hidden).itemsize == 2
    return Impl.chunked if torch.is_grad_enabled() or not sixteen else Impl.fused


def multiplying_dtype(hidden: Tensor) -> torch.dtype:
    """The precision matrix products of these hidden states multiply in, as for `torch.nn.Linear`."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) and hidden.dtype is not torch.float64 else hidden.dtype


def _check(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, terms: Terms) -> None:
    shape = list(hidden.shape)
    if weight.dim() != 2 or hidden.dim() < 2 or shape[-1] != weight.shape[1]:
        raise ConfigError(f"hidden states {shape} and weight {list(weight.shape)} do not fit; they must be [..., D] and [V, D]")
    if bias is not None and list(bias.shape) != [len(weight)]:
        raise ConfigError(f"bias {list(bias.shape)} and weight {list(weight.shape)} do not fit; they must be [V] and [V, D]")
    if terms.cuts[-1] > len(weight):
        raise ConfigError(f"segments end at row {terms.cuts[-1]}, but the weight has {len(weight)} rows")
    per_codebook = [*shape[:-1], terms.codebooks]
    if list(targets.shape) != per_codebook and not (terms.codebooks == 1 and list(targets.shape) == shape[:-1]):
        raise ConfigError(f"targets {list(targets.shape)} do not fit hidden states {shape} and {terms.codebooks} codebooks; they must be {per_codebook}")
    if targets.is_floating_point() or targets.dtype is torch.bool:
        raise ConfigError(f"targets are numbers of rows, integers, not {targets.dtype}")


def _narrowed(terms: Terms, weight: Tensor, bias: Tensor | None) -> tuple[Terms, Tensor, Tensor | None]:
    """The rows that take part, and cuts that count from the first of them."""
    start, stop = terms.cuts[0], terms.cuts[-1]
    if (start, stop) == (0, len(weight)):
        return terms, weight, bias
    cuts = tuple(cut - start for cut in terms.cuts)
    moved = Terms(cuts, terms.ignore_index, terms.label_smoothing, terms.z_loss, terms.softcap, terms.temperature)
    return moved, weight[start:stop], None if bias is None else bias[start:stop]


def _weights(
    hidden: Tensor, flat: Tensor, targets: Tensor, codebook_weight: Tensor | Sequence[float] | None, token_weight: Tensor | None
) -> Tensor | None:
    """[N, K] weights of the targets, or None where all are 1."""
    N, K = flat.shape
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    weights = None
    if token_weight is not None:
        if token_weight.requires_grad:
            raise ConfigError("token_weight gets no gradient; detach it, or weigh losses of reduction=none yourself")
        if token_weight.numel() not in (N, N * K):
            raise ConfigError(f"token_weight {list(token_weight.shape)} does not fit targets {list(targets.shape)}")
        weights = token_weight.reshape(N, -1).to(dtype).expand(N, K)
    if codebook_weight is not None:
        of_codebook = torch.as_tensor(codebook_weight, dtype=dtype, device=flat.device)
        if list(of_codebook.shape) != [K]:
            raise ConfigError(f"codebook_weight has shape {list(of_codebook.shape)} for {K} codebooks; give one number for each")
        weights = of_codebook.expand(N, K) if weights is None else weights * of_codebook
    return None if weights is None else weights.contiguous()


def _not_zero(count: Tensor | float) -> Tensor | float:
    if isinstance(count, Tensor):
        return count.where(count != 0, 1)
    return count or 1


def _apply(
    inputs: tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor | None], terms: Terms, impl: Impl, reduction: Reduction
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """losses, lse, correct [N, K] and the total: [], or [N, K] if nothing is reduced."""
    hidden, weight, bias, targets, weights = inputs
    if impl is Impl.reference:
        check_range(targets, terms)
        losses, lse, correct = reference.losses(hidden, weight, bias, targets, terms)
        weighted = losses if weights is None else losses * weights
        return losses, lse, correct, weighted if reduction is Reduction.none else weighted.sum()
    options = (list(terms.cuts), terms.ignore_index, [terms.label_smoothing, terms.z_loss, terms.softcap, terms.temperature])
    how = (impl.value, multiplying_dtype(hidden))
    if reduction is Reduction.none:
        losses, lse, correct = torch.ops.echox.codec_head_losses(hidden, weight, bias, targets, *options, *how)
        return losses, lse, correct, losses if weights is None else losses * weights
    wanted = [torch.is_grad_enabled() and tensor is not None and tensor.requires_grad for tensor in (hidden, weight, bias)]
    total, losses, lse, correct, *_ = torch.ops.echox.codec_head_loss(hidden, weight, bias, targets, weights, *options, *how, wanted)
    return losses, lse, correct, total


def check_range(targets: Tensor, terms: Terms) -> None:
    """Raise where a target is out of range, on a CPU; a GPU is not waited for, its kernels answer NaN."""
    if targets.is_cuda:
        return
    sizes = torch.tensor(terms.sizes)
    inside = (targets >= 0) & (targets < sizes)
    if bool(inside.all()):
        return
    wrong = ~inside & (targets != terms.ignore_index)
    if bool(wrong.any()):
        row, k = wrong.nonzero()[0].tolist()
        raise SignalError(
            f"target {int(targets[row, k])} of row {row} is no entry of codebook {k}, which has {terms.sizes[k]}; "
            f"targets count from 0, and {terms.ignore_index} is ignored"
        )


def _problem(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, weights: Tensor | None, terms: Terms, dtype: torch.dtype
) -> Problem:
    check_range(targets, terms)
    return Problem(hidden, weight, bias, targets, weights, terms, dtype)


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
        weighted = results.losses if weights is None else results.losses * weights
        empty = results.losses.new_empty(0)
        return weighted.sum(), results.losses, results.lse, results.correct, *(empty.clone() if g is None else g for g in gradients)


def _summed_fake(hidden, weight, bias, targets, weights, cuts, ignore_index, numbers, impl, dtype, wanted):
    wide = torch.promote_types(dtype, torch.float32)
    rows = [targets.new_empty(targets.shape, dtype=kind) for kind in (wide, wide, torch.bool)]
    shapes = (hidden.shape, weight.shape, (cuts[-1],))
    return (hidden.new_empty((), dtype=wide), *rows, *(hidden.new_empty(shape if want else (0,), dtype=wide) for shape, want in zip(shapes, wanted)))


def _keep_gradients(ctx, inputs, output) -> None:
    hidden, weight, bias = inputs[:3]
    total, *results = output
    ctx.dtypes = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
    ctx.wanted = inputs[-1]
    ctx.mark_non_differentiable(*results)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*results[3:])


def _scaled(ctx, upstream, *_):
    gradients = [None] * 3
    if upstream is not None:
        # Out of place, since a graph may be walked twice; rounded once, at the very end.
        gradients = [(saved * upstream).to(dtype) if want else None for saved, dtype, want in zip(ctx.saved_tensors, ctx.dtypes, ctx.wanted)]
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
