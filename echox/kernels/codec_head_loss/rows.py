"""Softmax, loss and gradient of a chunk of rows in plain PyTorch, in the place of its scores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from echox.kernels.codec_head_loss.terms import Terms

ALL = slice(None)


@dataclass(frozen=True, slots=True)
class RowResults:
    """Loss, log-sum-exp and correctness of every target [N, K]."""

    losses: Tensor  # [N, K], 0 where ignored, NaN where the target is out of range
    lse: Tensor  # [N, K]
    correct: Tensor  # [N, K] bool

    @classmethod
    def empty(cls, targets: Tensor, dtype: torch.dtype) -> RowResults:
        """Allocate the results of targets [N, K], uninitialised."""
        shape, device = targets.shape, targets.device
        dtypes = (dtype, dtype, torch.bool)
        return cls(*(torch.empty(shape, dtype=kind, device=device) for kind in dtypes))

    def __getitem__(self, rows: slice) -> RowResults:
        if rows.start == 0 and rows.stop == self.losses.shape[0]:
            return self  # every view is some microseconds of Python
        return RowResults(self.losses[rows], self.lse[rows], self.correct[rows])


def row_losses(
    z: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    terms: Terms,
    all_valid: bool,
    results: RowResults,
) -> None:
    """Compute the losses of a chunk of rows and write them into `results`.

    Args:
        z: products x W^T [R, V], overwritten.
        bias: [V]; targets: [R, K].
        all_valid: whether every target is known to be an entry of its codebook.
    """
    for books, block in _codebook_blocks(z, bias, terms):
        _to_scores(block, terms, with_slope=False)
        lookup = _look_up(targets[:, books], block, terms, all_valid)
        _write_results(block, lookup, terms, _codebook_results(results, books))


def row_gradients(
    z: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    weights: Tensor | None,
    terms: Terms,
    all_valid: bool,
    results: RowResults,
    lse: Tensor | None,
) -> Tensor:
    """Turn products z [R, V] into the gradient of the weighted sum of their losses, in place.

    Args:
        z: products x W^T [R, V]; the gradient is with respect to them.
        bias: [V]; targets: [R, K]; weights: [R, K] of the targets, None for 1.
        all_valid: whether every target is known to be an entry of its codebook.
        results: overwritten, unless `lse` is given.
        lse: [R, K] log-sum-exp where it is known: the softmax uses it, no loss is computed.
    """
    for books, block in _codebook_blocks(z, bias, terms):
        slope = _to_scores(block, terms, with_slope=True)
        lookup = _look_up(targets[:, books], block, terms, all_valid)
        if lse is None:
            _write_results(block, lookup, terms, _codebook_results(results, books))
            block_lse = results.lse[:, books, None]
        else:
            block_lse = lse[:, books, None]
            block.sub_(block_lse)
        # Either way the block holds logarithms of probabilities now.
        block_weights = None if weights is None else weights[:, books, None]
        _to_gradient(block.exp_(), block_lse, lookup, block_weights, terms)
        if slope is not None:
            block.mul_(slope)
    return z


def _codebook_blocks(
    z: Tensor, bias: Tensor | None, terms: Terms
) -> Iterator[tuple[slice, Tensor]]:
    """Yield codebooks with their columns as contiguous blocks [R, k, V].

    What the caller does to a block is done to z.
    """
    if bias is not None:
        z.add_(bias)
    if len(set(terms.sizes)) == 1:
        yield ALL, z.view(len(z), terms.codebooks, terms.sizes[0])
        return
    for k, columns in enumerate(z.split(terms.sizes, dim=1)):
        block = columns.contiguous()  # row operations are several times slower on strided rows
        yield slice(k, k + 1), block[:, None]
        columns.copy_(block)


def _codebook_results(results: RowResults, books: slice) -> RowResults:
    if books == ALL:
        return results
    return RowResults(results.losses[:, books], results.lse[:, books], results.correct[:, books])


def _to_scores(block: Tensor, terms: Terms, with_slope: bool) -> Tensor | float | None:
    """Apply softcap and temperature in place, z -> s; return ds/dz, None where it is 1."""
    slope: Tensor | float | None = None
    if terms.softcap:
        block.div_(terms.softcap).tanh_()
        # The derivative of tanh is a function of its value, so it must be taken here.
        slope = (1 - block * block).div_(terms.temperature) if with_slope else None
        block.mul_(terms.softcap / terms.temperature)
    elif terms.temperature != 1:
        block.div_(terms.temperature)
        slope = 1 / terms.temperature if with_slope else None
    return slope


@dataclass(frozen=True, slots=True)
class _TargetLookup:
    """Positions of the targets in a block [R, k, V]."""

    index: Tensor  # [R, k, 1] the entry, 0 where there is none
    valid: Tensor | None  # [R, k] not ignored; None where all are entries
    inside: Tensor | None  # [R, k] an entry of the codebook; None where all are


def _look_up(targets: Tensor, block: Tensor, terms: Terms, all_valid: bool) -> _TargetLookup:
    if all_valid:
        return _TargetLookup(targets[..., None], None, None)
    inside = (targets >= 0) & (targets < block.shape[-1])
    # 0 keeps gather and scatter within the block; what they yield there is masked later.
    index = targets.where(inside, 0)[..., None]
    return _TargetLookup(index, targets != terms.ignore_index, inside)


def _write_results(block: Tensor, lookup: _TargetLookup, terms: Terms, results: RowResults) -> None:
    """Write the results of scores [R, k, V], which become logarithms of probabilities."""
    target_score = block.gather(-1, lookup.index)  # [R, k, 1], before it is overwritten
    _write_correct(block, lookup.index, target_score, results.correct)
    torch.log_softmax(block, -1, out=block)
    losses = torch.neg(block.gather(-1, lookup.index)[..., 0], out=results.losses)
    # -log p = lse - score, so the log-sum-exp costs no further pass over the scores.
    torch.add(losses, target_score[..., 0], out=results.lse)
    if terms.label_smoothing:
        # (1 - e) * -log p_target + e * the mean of -log p over the entries.
        losses.lerp_(block.mean(-1).neg_(), terms.label_smoothing)
    if terms.z_loss:
        losses.addcmul_(results.lse, results.lse, value=terms.z_loss)
    if lookup.valid is not None and lookup.inside is not None:
        losses.masked_fill_(~lookup.inside, float("nan")).masked_fill_(~lookup.valid, 0)
        results.correct.logical_and_(lookup.valid & lookup.inside)


def _write_correct(block: Tensor, index: Tensor, target_score: Tensor, correct: Tensor) -> None:
    """Write whether entries have the highest scores of [R, k, V], as the first of equals.

    Args:
        index: [R, k, 1] entries; target_score: [R, k, 1] their scores.
        correct: [R, k] bool, overwritten.
    """
    if block.is_cuda:
        torch.eq(block.max(-1, keepdim=True)[1], index, out=correct[..., None])
        return
    # On a CPU the maximum is several times faster without its position: the target's score is
    # hidden for a moment and compared with the highest other one.
    others = block.scatter_(-1, index, float("-inf")).amax(-1, keepdim=True)
    block.scatter_(-1, index, target_score)
    torch.gt(target_score, others, out=correct[..., None])
    # Only equals need the position, as the first of them is the winner.
    equal = (target_score == others)[..., 0]
    if equal.any():
        correct[equal] = block[equal].max(-1)[1] == index[equal][:, 0]


def _to_gradient(
    block: Tensor, lse: Tensor, lookup: _TargetLookup, weights: Tensor | None, terms: Terms
) -> None:
    """Turn probabilities [R, k, V] into the gradient with respect to the scores, in place.

    Args:
        lse: [R, k, 1]; weights: [R, k, 1], None for 1.
    """
    weight = 1.0 if weights is None else weights
    if terms.z_loss:
        block.mul_((1 + 2 * terms.z_loss * lse) * weight)
    elif weights is not None:
        block.mul_(weights)
    if terms.label_smoothing:
        block.sub_(weight * (terms.label_smoothing / block.shape[-1]))
    block.scatter_add_(-1, lookup.index, _target_gradient(lse, lookup, weights, terms))
    if lookup.valid is not None:
        block.masked_fill_(~lookup.valid[..., None], 0)


def _target_gradient(
    lse: Tensor, lookup: _TargetLookup, weights: Tensor | None, terms: Terms
) -> Tensor:
    """Return what the target's own score adds to the gradient, [R, k, 1]."""
    share = terms.label_smoothing - 1
    gradient = lse.new_full((), share) if weights is None else weights * share
    gradient = gradient.expand_as(lse)
    if lookup.inside is None:
        return gradient
    # A target out of range is an error, which NaN shows without a wait for the GPU.
    return gradient.where(lookup.inside[..., None], float("nan"))
