"""The row step in plain PyTorch: scores of a chunk of rows in, losses out, gradients left in the scores' place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from echox.kernels.codec_head_loss.terms import Terms


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
        return RowResults(self.losses[rows], self.lse[rows], self.correct[rows])


@dataclass(frozen=True, slots=True)
class Partial:
    """Statistics of a part of a softmax; parts of one row are joined by `joined`."""

    top: Tensor  # [..., N, K] highest score
    best: Tensor  # [..., N, K] int64, which entry has it (the first of equals)
    total: Tensor  # [..., N, K] sum of exp(score - top)
    sum: Tensor  # [..., N, K] sum of the scores
    at_target: Tensor  # [..., N, K] the target's score, 0 in the parts that do not hold it


def row_losses(z: Tensor, bias: Tensor | None, targets: Tensor, terms: Terms, results: RowResults) -> None:
    """Write the results of rows z [R, V] (x W^T, overwritten) for targets [R, K]."""
    for k, block in _codebooks(z, bias, terms):
        _to_scores(block, terms, keep_slopes=False)
        _finish(block, targets[:, k], _places(targets[:, k], block, terms), terms, _in(results, k))


def row_gradients(z: Tensor, bias: Tensor | None, targets: Tensor, weights: Tensor | None, terms: Terms, results: RowResults, lse: Tensor | None) -> Tensor:
    """Turn rows z [R, V] (x W^T) into the gradient of the weighted sum of their losses, in place.

    Args:
        weights: [R, K] of the targets, or None for 1.
        results: written, unless `lse` [R, K] is given: then the softmax takes it, and nothing else is computed.
    """
    for k, block in _codebooks(z, bias, terms):
        slopes = _to_scores(block, terms, keep_slopes=True)
        places = _places(targets[:, k], block, terms)
        if lse is None:
            _finish(block, targets[:, k], places, terms, _in(results, k))
            total = results.lse[:, k]
        else:
            total = lse[:, k]
            block.sub_(total[..., None]).exp_()
        _to_gradient(block, places, None if weights is None else weights[:, k], total, terms)
        if slopes is not None:
            block.mul_(slopes)
    return z


def row_statistics(z: Tensor, bias: Tensor | None, targets: Tensor, terms: Terms) -> Partial:
    """Statistics of rows z [R, V], a part of the vocabulary; targets [R, K] that lie outside the part count as elsewhere."""
    parts = []
    for k, block in _codebooks(z, bias, terms):
        _to_scores(block, terms, keep_slopes=False)
        places = _places(targets[:, k], block, terms)
        top, best = block.max(-1)
        at_target = block.gather(-1, places.index[..., None])[..., 0].where(places.inside, 0)
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
        yield slice(None), z.view(len(z), terms.codebooks, terms.sizes[0])
        return
    for k, columns in enumerate(z.split(terms.sizes, dim=1)):
        block = columns.contiguous()  # row kernels are several times slower on strided rows
        yield slice(k, k + 1), block[:, None]
        columns.copy_(block)


def _in(results: RowResults, k: slice) -> RowResults:
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

    valid: Tensor  # [R, k] not ignored
    inside: Tensor  # [R, k] an entry of the codebook
    index: Tensor  # [R, k] the entry, 0 where there is none
    certain: bool  # that every target is one


def _places(targets: Tensor, block: Tensor, terms: Terms) -> _Places:
    valid = targets != terms.ignore_index
    inside = (targets >= 0) & (targets < block.shape[-1])
    # On a CPU looking is free, and mostly nothing is ignored.
    if not block.is_cuda and bool((inside & valid).all()):
        return _Places(valid, inside, targets, True)
    return _Places(valid, inside, targets.where(inside, 0), False)


def _finish(block: Tensor, targets: Tensor, places: _Places, terms: Terms, results: RowResults) -> None:
    """Scores -> probabilities in place, and the results of their rows."""
    at_target = block.gather(-1, places.index[..., None])[..., 0]
    mean = block.mean(-1) if terms.label_smoothing else None
    top, best = block.max(-1)
    torch.softmax(block, -1, out=block)
    # The highest probability is exp(top - lse) and at least 1 / V, so its logarithm is exact where that of others may not be.
    torch.sub(top, block.gather(-1, best[..., None])[..., 0].log_(), out=results.lse)
    loss = _loss(results.lse, at_target, mean, terms)
    results.losses.copy_(loss if places.certain else loss.where(places.inside, float("nan")).where(places.valid, 0))
    torch.logical_and(best == targets, places.valid, out=results.correct)


def _loss(lse: Tensor, at_target: Tensor, mean: Tensor | None, terms: Terms) -> Tensor:
    loss = lse - (1 - terms.label_smoothing) * at_target
    if terms.label_smoothing:
        loss = loss - terms.label_smoothing * mean
    return loss + terms.z_loss * lse * lse if terms.z_loss else loss


def _to_gradient(block: Tensor, places: _Places, weights: Tensor | None, lse: Tensor, terms: Terms) -> None:
    """Probabilities -> gradient with respect to the scores, in place."""
    if terms.z_loss:
        block.mul_((1 + 2 * terms.z_loss * lse)[..., None])
    if terms.label_smoothing:
        block.sub_(terms.label_smoothing / (terms.whole or block.shape[-1]))
    hit = lse.new_full(lse.shape, terms.label_smoothing - 1)
    block.scatter_add_(-1, places.index[..., None], hit.where(places.inside, 0.0 if terms.whole else float("nan"))[..., None])
    if weights is not None:
        block.mul_(weights[..., None])
    if not places.certain:
        block.masked_fill_(~places.valid[..., None], 0)
