"""Unit decoding in float64, row by row, with sorts and loops; the faster paths are tested with it.

It is written to be read, from the same definitions and with the same random bits, and shares no
other step with the paths that it tests.
"""

from __future__ import annotations

import torch
from torch import Tensor

from echox.kernels.unit_decode.head import UnitHead
from echox.kernels.unit_decode.noise import random_bits
from echox.kernels.unit_decode.state import UnitParams, UnitState


def sample(
    hidden: Tensor,
    head: UnitHead,
    params: UnitParams,
    state: UnitState,
    forced: Tensor | None = None,
) -> Tensor:
    """Return tokens [B, K] for hidden states [B, D] and advance the state; see `sample_units`."""
    scores = head_scores(hidden, head)
    noise = gumbel_noise(state.seed, state.length, head.ids)
    tokens = []
    for row in range(len(scores)):
        forced_row = None if forced is None else forced[row]
        tokens.append(_sample_row(row, scores[row], noise[row], head, params, state, forced_row))
    return torch.tensor(tokens, device=hidden.device)


def head_scores(hidden: Tensor, head: UnitHead) -> Tensor:
    """Return float64 scores [B, V] of hidden states [B, D]."""
    z = hidden.double() @ head.weight.double().T
    z = z if head.bias is None else z + head.bias.double()
    return head.softcap * torch.tanh(z / head.softcap) if head.softcap else z


def gumbel_noise(seed: Tensor, position: Tensor, ids: Tensor) -> Tensor:
    """Return `noise.gumbel_noise` in float64 [B, V], from the same bits."""
    v = (random_bits(seed, position, ids).double() + 0.5) * 2.0**-31
    return -torch.log(-torch.log1p(-v))


def _sample_row(
    row: int,
    scores: Tensor,
    noise: Tensor,
    head: UnitHead,
    params: UnitParams,
    state: UnitState,
    forced: Tensor | None,
) -> list[int]:
    """Return the tokens, one of each of K codebooks, for scores [V] and noise [V] of a row."""
    if state.finished[row]:
        return [head.pad_id] * head.codebooks
    allowed = allowed_scores(row, scores, params, state)
    temperature = float(params.temperature[row])
    tokens, failed = [], False
    for k, (start, stop) in enumerate(zip(head.cuts, head.cuts[1:])):
        book = allowed[start:stop]
        failed = failed or not bool(torch.isfinite(book.max()))
        token = _best(book, noise[start:stop], support(book, row, params), temperature)
        if forced is not None and forced[k] >= 0:
            token = int(forced[k])
            failed = failed or token >= stop - start
        tokens.append(token)
    return _advance(row, tokens, failed, head, params, state)


def allowed_scores(row: int, scores: Tensor, params: UnitParams, state: UnitState) -> Tensor:
    """Return the scores [V] of a row after its penalties, -inf where no token may be chosen."""
    factor, less = params.repetition_penalty[row].double(), params.presence_penalty[row].double()
    # A factor must lower negative scores too, so those are multiplied.
    lower = torch.where(scores > 0, scores / factor, scores * factor) - less
    scores = torch.where(state.seen[row], lower, scores)
    barred = params.barred[row]
    if state.length[row] < params.min_length[row]:
        barred = barred | params.stops[row]
    return scores.masked_fill(barred, float("-inf"))


def support(scores: Tensor, row: int, params: UnitParams) -> Tensor:
    """Return which entries of a codebook pass the filters of a row; a greedy row has none.

    Args:
        scores: [V] of the codebook.

    Returns:
        bool [V].
    """
    temperature = float(params.temperature[row])
    keep = scores > float("-inf")
    if temperature == 0 or not keep.any():
        return keep
    k, p, least = int(params.top_k[row]), float(params.top_p[row]), float(params.min_p[row])
    if k < len(scores):
        keep &= scores >= scores.sort(descending=True).values[k - 1]
    masses = ((scores - scores.max()) / temperature).exp() * keep
    if p < 1:
        above = torch.stack([masses[scores > score].sum() for score in scores])
        keep &= above < p * masses.sum()
    return keep & (masses >= least)


def _best(scores: Tensor, noise: Tensor, keep: Tensor, temperature: float) -> int:
    """Return the entry of [V] with the largest score + temperature * noise among those to keep."""
    return int((scores + temperature * noise).masked_fill(~keep, float("-inf")).argmax())


def _advance(
    row: int, tokens: list[int], failed: bool, head: UnitHead, params: UnitParams, state: UnitState
) -> list[int]:
    tokens = [head.pad_id] * len(tokens) if failed else tokens
    chosen = [start + token for start, token in zip(head.cuts, tokens)]  # rows of the head
    state.length[row] += 1
    state.failed[row] = failed
    state.finished[row] = (
        failed
        or any(params.stops[row, at] for at in chosen)
        or bool(state.length[row] >= params.max_length[row])
    )
    state.seen[row, chosen] = True
    return tokens
