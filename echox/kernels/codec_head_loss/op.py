"""The codec-head loss as one operation: projection to a vocabulary and its cross-entropy, forward and backward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.utils._pytree import register_pytree_node

from echox.kernels.codec_head_loss import eager, operators, reference
from echox.kernels.codec_head_loss.inputs import check_range, check_shapes, chosen, multiplying_dtype, narrowed, nonzero, target_weights
from echox.kernels.codec_head_loss.passes import Problem
from echox.kernels.codec_head_loss.rows import RowResults
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


# FSDP2 hangs the hooks of its backward pass on the tensors that it finds in a module's output.
register_pytree_node(
    HeadLoss,
    lambda found: ([found.loss, found.losses, found.lse, found.correct, found.valid], found.per_codebook),
    lambda tensors, per_codebook: HeadLoss(*tensors, per_codebook),
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
    cuts = tuple(segments) if segments is not None else (0, len(weight))
    terms = Terms(cuts, ignore_index, label_smoothing, z_loss, softcap or 0.0, temperature)
    check_shapes(hidden, weight, bias, targets, terms)
    with_codebooks = targets.dim() == hidden.dim()
    terms, weight, bias = narrowed(terms, weight, bias)
    flat = targets.reshape(-1, terms.codebooks).long()
    if first_id:
        flat = (flat - first_id).where(flat != ignore_index, ignore_index)
    weights = target_weights(hidden, flat, targets, codebook_weight, token_weight)
    traced = operators.is_traced(hidden, weight)
    certain = not traced and check_range(flat, terms)
    rows = hidden if hidden.dim() == 2 else hidden.reshape(-1, hidden.shape[-1])
    problem = Problem(rows, weight, bias, flat, weights, terms, multiplying_dtype(hidden), certain)
    valid = flat != ignore_index
    divisor = 1
    if reduction is Reduction.mean:
        divisor = _weight_sum(problem, valid) if count is None else nonzero(count)
    total, results = _computed(problem, chosen(impl, hidden), reduction, traced, divisor)
    found = (results.losses, results.lse, results.correct, valid)
    shaped = ((tensor.detach() if tensor.requires_grad else tensor).view(targets.shape) for tensor in found)
    return HeadLoss(total.reshape(targets.shape) if reduction is Reduction.none else total, *shaped, with_codebooks)


def _weight_sum(problem: Problem, valid: Tensor) -> Tensor | int:
    """What a mean divides by; 1 where all is ignored."""
    if problem.weights is None:
        return problem.targets.numel() if problem.certain else valid.sum().clamp(min=1)
    return nonzero(problem.weights.where(valid, 0).sum())


def _computed(problem: Problem, impl: Impl, reduction: Reduction, traced: bool, divisor: Tensor | float) -> tuple[Tensor, RowResults]:
    """The weighted losses, [N, K] or their sum over the divisor, and the results of every target."""
    if impl is Impl.reference:
        results = RowResults(*reference.losses(problem.hidden, problem.weight, problem.bias, problem.targets, problem.terms))
    elif reduction is Reduction.none:
        results = operators.each(problem, impl)
    elif traced:
        total, results = operators.summed(problem, impl)
        return total / divisor, results
    else:
        return eager.summed(problem, impl, divisor)
    weighted = results.losses if problem.weights is None else results.losses * problem.weights
    return weighted if reduction is Reduction.none else weighted.sum() / divisor, results
