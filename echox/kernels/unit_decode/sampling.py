"""Head and sampling in plain PyTorch, for CPUs and for vocabularies too large for the kernels.

Nothing here reads a value off the device, and no row's result depends on another row.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from echox.kernels.unit_decode.head import UnitHead
from echox.kernels.unit_decode.noise import log_exponentials
from echox.kernels.unit_decode.state import UnitParams, UnitState

NEVER = float("-inf")


def sample(
    hidden: Tensor, head: UnitHead, params: UnitParams, state: UnitState, forced: Tensor | None
) -> Tensor:
    """Return tokens [B, K] for hidden states [B, D] and advance the state; see `sample_units`."""
    scores = head_scores(hidden, head)
    tokens, failed = choose_tokens(scores, head, params, state)
    if forced is not None:
        is_forced = forced >= 0
        tokens = torch.where(is_forced, forced, tokens)
        failed = failed | (is_forced & (forced >= head.at.diff())).any(1)
    return advance(tokens, failed, head, params, state)


def head_scores(hidden: Tensor, head: UnitHead) -> Tensor:
    """Return scores [B, V] of hidden states [B, D], float32 at least.

    Their bits do not depend on the batch.
    """
    B = len(hidden)
    x, w, b = hidden.to(head.weight.dtype), head.weight.T, head.bias
    if x.is_cuda:
        is_16_bit = x.dtype.itemsize == 2
        scores = torch.mm(x, w, out_dtype=torch.float32) if is_16_bit else torch.mm(x, w)
        scores = scores if b is None else scores + b
    else:
        # On a CPU, products of one row, and on some processors of any count but fours, take
        # another way and give other bits; so rows are filled up to fours.
        x = F.pad(x, (0, 0, 0, -B % 4))
        scores = (torch.mm(x, w) if b is None else torch.addmm(b, x, w))[:B]
    return torch.tanh_(scores.div_(head.softcap)).mul_(head.softcap) if head.softcap else scores


def choose_tokens(
    scores: Tensor, head: UnitHead, params: UnitParams, state: UnitState
) -> tuple[Tensor, Tensor]:
    """Choose a token of each row and codebook.

    Args:
        scores: [B, V], overwritten.

    Returns:
        Tokens [B, K] within their codebooks, and whether a row [B] cannot go on.
    """
    needs, K = params.needs, head.codebooks
    if needs.penalties:
        scores = _apply_penalties(scores, params, state)
    if needs.bars or needs.stops:
        scores = scores.masked_fill_(_barred_entries(params, state), NEVER)
    books = _by_codebook(scores, head)  # [B * K, C]
    top, tokens = books.max(1)  # NaN is the largest
    if needs.draws:
        tokens = _draw_tokens(books, top, head, params, state)
    # NaN, and infinity less infinity, differ from 0 both.
    failed = top - top != 0
    return tokens.view(-1, K), failed if K == 1 else failed.view(-1, K).any(1)


def _apply_penalties(scores: Tensor, params: UnitParams, state: UnitState) -> Tensor:
    factor = params.repetition_penalty[:, None]
    # A factor must lower negative scores too, so those are multiplied.
    lower = torch.where(scores > 0, scores / factor, scores * factor)
    return torch.where(state.seen, lower - params.presence_penalty[:, None], scores)


def _barred_entries(params: UnitParams, state: UnitState) -> Tensor:
    """Return the rows of the head [B, V] that may not be chosen in this step."""
    if not params.needs.stops:
        return params.barred
    return params.barred | (params.stops & (state.length < params.min_length)[:, None])


def _by_codebook(scores: Tensor, head: UnitHead, absent: float = NEVER) -> Tensor:
    """Reshape [B, V] to [B * K, C], of C the largest codebook.

    Args:
        absent: stands past the ends of the other codebooks.
    """
    if head.columns is None:
        return scores.reshape(-1, head.sizes[0])
    spread = scores[:, head.columns.clamp(min=0)].masked_fill_(head.columns < 0, absent)
    return spread.flatten(0, 1)


def _draw_tokens(
    books: Tensor, top: Tensor, head: UnitHead, params: UnitParams, state: UnitState
) -> Tensor:
    """Return a token of each row of scores [B * K, C].

    It has the largest sum of score and Gumbel noise among those that pass the filters, which is a
    draw from their softmax.
    """
    temperature = _per_codebook(params.temperature, head.codebooks)
    waits = _by_codebook(log_exponentials(state.seed, state.length, head.ids), head, 0.0)
    # Noise is scaled instead of scores, so that temperature 0 is the likeliest token.
    noisy = torch.addcmul(books, waits, temperature, value=-1)
    threshold = _filter_threshold(books, top[:, None], temperature, head.codebooks, params)
    if threshold is not None:
        noisy.masked_fill_(books < threshold, NEVER)
    return noisy.argmax(1)


def _per_codebook(setting: Tensor, K: int) -> Tensor:
    """Repeat a setting of every request [B] for every codebook, [B * K, 1]."""
    return setting[:, None] if K == 1 else setting.repeat_interleave(K)[:, None]


def _filter_threshold(
    books: Tensor, top: Tensor, temperature: Tensor, K: int, params: UnitParams
) -> Tensor | None:
    """Return the lowest score [R, 1] that passes top-k, top-p and min-p; None without filters.

    At temperature 0 it is the likeliest token's, or NaN, which holds nothing back; either leaves
    the choice as it is.
    """
    needs, thresholds = params.needs, []
    if needs.best:
        C = books.shape[1]
        best = books.topk(min(needs.best, C), dim=1)
        kth = None
        if needs.top_k:
            kth = _kth_score(best.values, _per_codebook(params.top_k, K), C)
            thresholds.append(kth)
        if needs.top_p:
            top_p = _per_codebook(params.top_p, K)
            thresholds.append(_nucleus_threshold(books, best, kth, temperature, top_p))
    if needs.min_p:
        # p >= min_p * p_top in logarithms.
        thresholds.append(top + temperature * _per_codebook(params.min_p, K).log())
    return functools.reduce(torch.maximum, thresholds) if thresholds else None


def _kth_score(best: Tensor, k: Tensor, C: int) -> Tensor:
    """Return the k-th [R, 1] of the best scores [R, M] of C, -inf where k is no limit."""
    return torch.where(k < C, best.gather(1, (k - 1).clamp(max=best.shape[1] - 1)), NEVER)


def _nucleus_threshold(
    books: Tensor, best: torch.return_types.topk, kth: Tensor | None, temperature: Tensor, p: Tensor
) -> Tensor:
    """Return the lowest [R, 1] of the best scores [R, M] that passes top-p.

    Those above it hold less than p of the mass from the k-th score up.
    """
    masses = (books / temperature).softmax(1)
    above = masses.gather(1, best.indices).cumsum(1)[:, :-1]
    share = p
    if kth is not None:
        # Scores equal to the k-th count too, though they may not be among the M. A running sum has
        # one order, whatever the batch.
        share = p * masses.masked_fill_(books < kth, 0).cumsum(1)[:, -1:]
    count = (above < share).sum(1, keepdim=True)
    return torch.where(p < 1, best.values.gather(1, count), NEVER)


def advance(
    tokens: Tensor, failed: Tensor, head: UnitHead, params: UnitParams, state: UnitState
) -> Tensor:
    """Write chosen tokens [B, K] into the state.

    Returns:
        Tokens [B, K] of the rows, `pad_id` where they had ended or have failed.
    """
    live = ~state.finished
    failed = failed & live
    state.length += live
    state.failed |= failed
    state.finished |= failed
    # Rows that end with this token keep it, so their ends are written after this.
    tokens = tokens.masked_fill(state.finished[:, None], head.pad_id)
    at = tokens if head.codebooks == 1 else tokens + head.at[:-1]  # [B, K] rows of the head
    state.finished |= state.length >= params.max_length
    if params.needs.stops:
        stopped = params.stops.gather(1, at)
        state.finished |= stopped.view(-1) if head.codebooks == 1 else stopped.any(1)
    if params.needs.penalties:
        state.seen.scatter_(1, at, True)
    return tokens


def next_embedding(tokens: Tensor, head: UnitHead) -> Tensor | None:
    """Sum the vectors of tokens [B, K] over codebooks, [B, E]; None if the head has no table."""
    if head.embedding is None:
        return None
    if head.codebooks == 1:
        return head.embedding[tokens[:, 0]]
    return head.embedding[tokens + head.at[:-1]].sum(1)
