"""Head and sampling in plain PyTorch: what runs on a CPU, and what a GPU runs where a vocabulary is too large for the kernels.

Nothing here reads a value off the device, and no row's result depends on another row.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from echox.kernels.unit_decode.noise import log_waits
from echox.kernels.unit_decode.state import UnitHead, UnitParams, UnitState

NEVER = float("-inf")


def sample(hidden: Tensor, head: UnitHead, params: UnitParams, state: UnitState, forced: Tensor | None) -> Tensor:
    """Tokens [B, K], and the state advanced; arguments as for `sample_units`."""
    scores = head_scores(hidden, head)
    tokens, failed = chosen(scores, head, params, state)
    if forced is not None:
        given = forced >= 0
        tokens = torch.where(given, forced, tokens)
        failed = failed | (given & (forced >= head.at.diff())).any(1)
    return advance(tokens, failed, head, params, state)


def head_scores(hidden: Tensor, head: UnitHead) -> Tensor:
    """Hidden states [B, D] -> scores [B, V], float32 at least.

    On a CPU, products of one row, and on some processors of any count but fours, go another way and give other bits; so rows are
    filled up to fours.
    """
    B = len(hidden)
    x, w, b = hidden.to(head.weight.dtype), head.weight.T, head.bias
    if x.is_cuda:
        scores = torch.mm(x, w, out_dtype=torch.float32) if x.dtype.itemsize == 2 else torch.mm(x, w)
        scores = scores if b is None else scores + b
    else:
        x = F.pad(x, (0, 0, 0, -B % 4))
        scores = (torch.mm(x, w) if b is None else torch.addmm(b, x, w))[:B]
    return torch.tanh_(scores.div_(head.softcap)).mul_(head.softcap) if head.softcap else scores


def chosen(scores: Tensor, head: UnitHead, params: UnitParams, state: UnitState) -> tuple[Tensor, Tensor]:
    """Scores [B, V], overwritten -> tokens [B, K] within their codebooks, and rows [B] that cannot go on."""
    needs, K = params.needs, head.codebooks
    if needs.penalties:
        scores = _penalised(scores, params, state)
    if needs.bars or needs.stops:
        scores = scores.masked_fill_(_barred(params, state), NEVER)
    rows = _by_codebook(scores, head)
    top, tokens = rows.max(1)  # NaN is the largest
    if needs.draws:
        tokens = _drawn(rows, top, head, params, state)
    # NaN, and infinity less infinity, differ from 0 both.
    failed = top - top != 0
    return tokens.view(-1, K), failed if K == 1 else failed.view(-1, K).any(1)


def _penalised(scores: Tensor, params: UnitParams, state: UnitState) -> Tensor:
    factor = params.repetition_penalty[:, None]
    lower = torch.where(scores > 0, scores / factor, scores * factor) - params.presence_penalty[:, None]
    return torch.where(state.seen, lower, scores)


def _barred(params: UnitParams, state: UnitState) -> Tensor:
    if not params.needs.stops:
        return params.barred
    return params.barred | (params.stops & (state.length < params.min_length)[:, None])


def _by_codebook(scores: Tensor, head: UnitHead, absent: float = NEVER) -> Tensor:
    """[B, V] -> [B * K, C], C entries of the largest codebook, `absent` past the others' ends."""
    if head.columns is None:
        return scores.reshape(-1, head.sizes[0])
    spread = scores[:, head.columns.clamp(min=0)].masked_fill_(head.columns < 0, absent)
    return spread.flatten(0, 1)


def _drawn(rows: Tensor, top: Tensor, head: UnitHead, params: UnitParams, state: UnitState) -> Tensor:
    """A token of each row [B * K]: the largest sum of score and noise among those that pass the filters."""
    temperature = _each(params.temperature, head.codebooks)
    waits = _by_codebook(log_waits(state.seed, state.length, head.ids), head, 0.0)
    # Noise is scaled instead of scores, so that temperature 0 is the likeliest token.
    noisy = torch.addcmul(rows, waits, temperature, value=-1)
    threshold = _threshold(rows, top[:, None], temperature, head.codebooks, params)
    if threshold is not None:
        noisy.masked_fill_(rows < threshold, NEVER)
    return noisy.argmax(1)


def _each(setting: Tensor, K: int) -> Tensor:
    """A setting of every request [B], for every codebook [B * K, 1]."""
    return setting[:, None] if K == 1 else setting.repeat_interleave(K)[:, None]


def _threshold(rows: Tensor, top: Tensor, temperature: Tensor, K: int, params: UnitParams) -> Tensor | None:
    """The lowest score [R, 1] that passes top-k, top-p and min-p; None where nobody filters.

    At temperature 0 it is the likeliest token's, or no number, which holds nothing back; either leaves the choice as it is.
    """
    needs, found = params.needs, []
    if needs.best:
        best = rows.topk(min(needs.best, rows.shape[1]), dim=1)
        kth = _kth(best.values, _each(params.top_k, K), rows.shape[1]) if needs.top_k else None
        found += [] if kth is None else [kth]
        found += [_nucleus(rows, best, kth, temperature, _each(params.top_p, K))] if needs.top_p else []
    if needs.min_p:
        found.append(top + temperature * _each(params.min_p, K).log())
    return functools.reduce(torch.maximum, found) if found else None


def _kth(best: Tensor, k: Tensor, C: int) -> Tensor:
    """The k-th of the best scores [R, M] of C, -inf where k is no limit."""
    return torch.where(k < C, best.gather(1, (k - 1).clamp(max=best.shape[1] - 1)), NEVER)


def _nucleus(rows: Tensor, best: torch.return_types.topk, kth: Tensor | None, temperature: Tensor, p: Tensor) -> Tensor:
    """The lowest of the best scores [R, M] such that those above hold less than p of the mass from `kth` up."""
    masses = (rows / temperature).softmax(1)
    above = masses.gather(1, best.indices).cumsum(1)[:, :-1]
    share = p
    if kth is not None:
        # Scores equal to the k-th count too, though they may not be among the M; a running sum has one order, whatever the batch.
        share = p * masses.masked_fill_(rows < kth, 0).cumsum(1)[:, -1:]
    count = (above < share).sum(1, keepdim=True)
    return torch.where(p < 1, best.values.gather(1, count), NEVER)


def advance(tokens: Tensor, failed: Tensor, head: UnitHead, params: UnitParams, state: UnitState) -> Tensor:
    """Write what was chosen into the state; tokens [B, K] -> what the rows say [B, K], `pad_id` where they have ended."""
    live = ~state.finished
    failed = failed & live
    state.length += live
    state.failed |= failed
    state.finished |= failed
    tokens = tokens.masked_fill(state.finished[:, None], head.pad_id)
    at = tokens if head.codebooks == 1 else tokens + head.at[:-1]
    state.finished |= state.length >= params.max_length
    if params.needs.stops:
        stopped = params.stops.gather(1, at)
        state.finished |= stopped.view(-1) if head.codebooks == 1 else stopped.any(1)
    if params.needs.penalties:
        state.seen.scatter_(1, at, True)
    return tokens


def next_embedding(tokens: Tensor, head: UnitHead) -> Tensor | None:
    """Tokens [B, K] -> the sum over codebooks of their vectors [B, E]."""
    if head.embedding is None:
        return None
    if head.codebooks == 1:
        return head.embedding[tokens[:, 0]]
    return head.embedding[tokens + head.at[:-1]].sum(1)
