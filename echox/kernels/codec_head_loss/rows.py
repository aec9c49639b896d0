"""The row step in plain PyTorch: scores of a chunk of rows in, losses out, gradients left in the scores' place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from echox.kernels.codec_head_loss.terms import Terms

ALL = slice(None)


@dataclass(frozen=True, slots=True)
class RowResults:
    """What is known of every target."""

    losses: Tensor  # [N, K], 0 where ignored, NaN where the target is out of range
    lse: Tensor  # [N, K]
    correct: Tensor  # [N, K] bool

    @classmethod
    def empty(cls, targets: Tensor, dtype: torch.dtype) -> RowResults:
        """Room for the results of targets [N, K]."""
        return cls(*(torch.empty(targets.shape, dtype=kind, device=targets.device) for kind in (dtype, dtype, torch.bool)))

    def __getitem__(self, rows: slice) -> RowResults:
        if rows.start == 0 and rows.stop == self.losses.shape[0]:
            return self  # every view is some microseconds of Python
        return RowResults(self.losses[rows], self.lse[rows], self.correct[rows])


@dataclass(frozen=True, slots=True)
class Partial:
    """Statistics of a part of a softmax; parts of one row are joined by `joined`."""

    top: Tensor  # [..., N, K] highest score
    best: Tensor  # [..., N, K] int64, which entry has it (the first of equals)
    total: Tensor  # [..., N, K] sum of exp(score - top)
    sum: Tensor  # [..., N, K] sum of the scores
    at_target: Tensor  # [..., N, K] the target's score, 0 in the parts that do not hold it


def row_losses(z: Tensor, bias: Tensor | None, targets: Tensor, terms: Terms, certain: bool, results: RowResults) -> None:
    """Write the results of rows z [R, V] (x W^T, overwritten) for targets [R, K]; `certain`: all of these are entries."""
    for k, block in _codebooks(z, bias, terms):
        _to_scores(block, terms, keep_slopes=False)
        _finish(block, _places(targets[:, k], block, terms, certain), terms, _in(results, k))


def row_gradients(
    z: Tensor, bias: Tensor | None, targets: Tensor, weights: Tensor | None, terms: Terms, certain: bool, results: RowResults, lse: Tensor | None
) -> Tensor:
    """Turn rows z [R, V] (x W^T) into the gradient of the weighted sum of their losses, in place.

    Args:
        weights: [R, K] of the targets, or None for 1.
        certain: all targets are entries of their codebooks.
        results: written, unless `lse` [R, K] is given: then the softmax takes it, and nothing else is computed.
    """
    for k, block in _codebooks(z, bias, terms):
        slopes = _to_scores(block, terms, keep_slopes=True)
        places = _places(targets[:, k], block, terms, certain)
        if lse is None:
            _finish(block, places, terms, _in(results, k))
            known = results.lse[:, k, None]
        else:
            known = lse[:, k, None]
            block.sub_(known)
        _to_gradient(block.exp_(), known, places, None if weights is None else weights[:, k, None], terms)
        if slopes is not None:
            block.mul_(slopes)
    return z


def row_statistics(z: Tensor, bias: Tensor | None, targets: Tensor, terms: Terms) -> Partial:
    """Statistics of rows z [R, V], a part of the vocabulary; targets [R, K] that lie outside the part count as elsewhere."""
    parts = []
    for k, block in _codebooks(z, bias, terms):
        _to_scores(block, terms, keep_slopes=False)
        places = _places(targets[:, k], block, terms, certain=False)
        top, best = block.max(-1)
        at_target = block.gather(-1, places.index)[..., 0].where(places.inside, 0)
        total = block.sum(-1)
        parts.append((top, best, block.sub_(top[..., None]).exp_().sum(-1), total, at_target))
    return Partial(*(torch.cat(columns, dim=1) for columns in zip(*parts)))


def joined(parts: Partial, targets: Tensor, terms: Terms) -> RowResults:
    """The results of rows whose softmax was computed in parts [P, N, K]; `best` must count from the codebook's start.

    Args:
        targets: [N, K] entries of the whole codebook; terms: their `whole` is its size.
    """
    top, part = parts.top.max(0)
    total = (parts.total * (parts.top - top).exp()).sum(0)
    best = parts.best.gather(0, part[None])[0]
    lse = top + total.log()
    value = _loss(lse, parts.at_target.sum(0), parts.sum.sum(0) / terms.whole, terms)
    valid = targets != terms.ignore_index
    inside = (targets >= 0) & (targets < terms.whole)
    return RowResults(value.where(inside, float("nan")).where(valid, 0), lse, (best == targets) & valid)


def _codebooks(z: Tensor, bias: Tensor | None, terms: Terms) -> Iterator[tuple[slice, Tensor]]:
    """Codebooks and their columns as contiguous blocks [R, k, V]; what is done to a block is done to z."""
    if bias is not None:
        z.add_(bias)
    if len(set(terms.sizes)) == 1:
        yield ALL, z.view(len(z), terms.codebooks, terms.sizes[0])
        return
    for k, columns in enumerate(z.split(terms.sizes, dim=1)):
        block = columns.contiguous()  # row kernels are several times slower on strided rows
        yield slice(k, k + 1), block[:, None]
        columns.copy_(block)


def _in(results: RowResults, k: slice) -> RowResults:
    if k == ALL:
        return results
    return RowResults(results.losses[:, k], results.lse[:, k], results.correct[:, k])


def _to_scores(block: Tensor, terms: Terms, keep_slopes: bool) -> Tensor | float | None:
    """z -> s in place, and ds/dz where it is not 1."""
    slopes = None
    if terms.softcap:
        block.div_(terms.softcap).tanh_()
        slopes = (1 - block * block).div_(terms.temperature) if keep_slopes else None
        block.mul_(terms.softcap / terms.temperature)
    elif terms.temperature != 1:
        block.div_(terms.temperature)
        slopes = 1 / terms.temperature if keep_slopes else None
    return slopes


@dataclass(frozen=True, slots=True)
class _Places:
    """Where the targets of a block [R, k, V] stand."""

    index: Tensor  # [R, k, 1] the entry, 0 where there is none
    valid: Tensor | None  # [R, k] not ignored; None where all are entries
    inside: Tensor | None  # [R, k] an entry of the codebook; None where all are


def _places(targets: Tensor, block: Tensor, terms: Terms, certain: bool) -> _Places:
    if certain:
        return _Places(targets[..., None], None, None)
    inside = (targets >= 0) & (targets < block.shape[-1])
    return _Places(targets.where(inside, 0)[..., None], targets != terms.ignore_index, inside)


def _finish(block: Tensor, places: _Places, terms: Terms, results: RowResults) -> None:
    """Write the results of scores [R, k, V], which become logarithms of probabilities."""
    at_target = block.gather(-1, places.index)
    _judge(block, places.index, at_target, results.correct)
    torch.log_softmax(block, -1, out=block)
    loss = torch.neg(block.gather(-1, places.index)[..., 0], out=results.losses)
    torch.add(loss, at_target[..., 0], out=results.lse)
    if terms.label_smoothing:
        loss.lerp_(block.mean(-1).neg_(), terms.label_smoothing)
    if terms.z_loss:
        loss.addcmul_(results.lse, results.lse, value=terms.z_loss)
    if places.valid is not None:
        loss.masked_fill_(~places.inside, float("nan")).masked_fill_(~places.valid, 0)
        results.correct.logical_and_(places.valid & places.inside)


def _judge(block: Tensor, index: Tensor, at_target: Tensor, correct: Tensor) -> None:
    """`correct` [R, k] becomes whether the entries at `index` [R, k, 1] have the highest scores, as the first of equals."""
    if block.is_cuda:
        torch.eq(block.max(-1, keepdim=True)[1], index, out=correct[..., None])
        return
    # On a CPU the maximum takes a quarter of the time without its place, and only equals must be looked at again.
    others = block.scatter_(-1, index, float("-inf")).amax(-1, keepdim=True)
    block.scatter_(-1, index, at_target)
    torch.gt(at_target, others, out=correct[..., None])
    equal = (at_target == others)[..., 0]
    if equal.any():
        correct[equal] = block[equal].max(-1)[1] == index[equal][:, 0]


def _loss(lse: Tensor, at_target: Tensor, mean: Tensor | None, terms: Terms) -> Tensor:
    loss = lse - at_target
    if terms.label_smoothing:
        loss = loss + terms.label_smoothing * (at_target - mean)
    return loss + terms.z_loss * lse * lse if terms.z_loss else loss


def _to_gradient(block: Tensor, lse: Tensor, places: _Places, weights: Tensor | None, terms: Terms) -> None:
    """Probabilities [R, k, V] -> gradient with respect to the scores, in place; lse and weights are [R, k, 1]."""
    weight = 1.0 if weights is None else weights
    if terms.z_loss:
        block.mul_((1 + 2 * terms.z_loss * lse) * weight)
    elif weights is not None:
        block.mul_(weights)
    if terms.label_smoothing:
        block.sub_(weight * (terms.label_smoothing / (terms.whole or block.shape[-1])))
    hit = lse.new_full((), terms.label_smoothing - 1) if weights is None else weights * (terms.label_smoothing - 1)
    hit = hit.expand_as(lse)
    if places.inside is not None:
        hit = hit.where(places.inside[..., None], 0.0 if terms.whole else float("nan"))
    block.scatter_add_(-1, places.index, hit)
    if places.valid is not None:
        block.masked_fill_(~places.valid[..., None], 0)
