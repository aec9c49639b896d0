"""Unit decoding in float64, row by row, with sorts and loops: what all faster paths are held to.

It is written to be read, from the same definitions and with the same random bits, and shares no step with the paths it judges.
"""

from __future__ import annotations

import torch
from torch import Tensor

from echox.kernels.unit_decode.codebooks import Codebooks
from echox.kernels.unit_decode.noise import random_bits
from echox.kernels.unit_decode.runs import Spellings
from echox.kernels.unit_decode.state import UnitHead, UnitParams, UnitState


def sample(hidden: Tensor, head: UnitHead, params: UnitParams, state: UnitState, forced: Tensor | None = None) -> Tensor:
    """Tokens [B, K], and the state advanced; see `sample_units`."""
    scores, noise = head_scores(hidden, head), gumbel_noise(state.seed, state.length, head.ids)
    rows = [_row(row, scores[row], noise[row], head, params, state, None if forced is None else forced[row]) for row in range(len(scores))]
    return torch.tensor(rows, device=hidden.device)


def head_scores(hidden: Tensor, head: UnitHead) -> Tensor:
    """[B, D] -> float64 [B, V]."""
    z = hidden.double() @ head.weight.double().T
    z = z if head.bias is None else z + head.bias.double()
    return head.softcap * torch.tanh(z / head.softcap) if head.softcap else z


def gumbel_noise(seed: Tensor, position: Tensor, ids: Tensor) -> Tensor:
    """As `noise.gumbel_noise`, in float64 from the same bits."""
    v = (random_bits(seed, position, ids).double() + 0.5) * 2.0**-31
    return -torch.log(-torch.log1p(-v))


def _row(row: int, scores: Tensor, noise: Tensor, head: UnitHead, params: UnitParams, state: UnitState, forced: Tensor | None) -> list[int]:
    if state.finished[row]:
        return [head.pad_id] * head.codebooks
    allowed = allowed_scores(row, scores, params, state)
    tokens, failed = [], False
    for k, (start, stop) in enumerate(zip(head.cuts, head.cuts[1:])):
        here = allowed[start:stop]
        failed = failed or not bool(torch.isfinite(here.max()))
        token = _token(here, noise[start:stop], support(here, row, params), float(params.temperature[row]))
        if forced is not None and forced[k] >= 0:
            token, failed = int(forced[k]), failed or int(forced[k]) >= stop - start
        tokens.append(token)
    return _advanced(row, tokens, failed, head, params, state)


def allowed_scores(row: int, scores: Tensor, params: UnitParams, state: UnitState) -> Tensor:
    """Scores [V] of a row after its penalties, -inf where nothing may be said."""
    factor, less = params.repetition_penalty[row].double(), params.presence_penalty[row].double()
    lower = torch.where(scores > 0, scores / factor, scores * factor) - less
    scores = torch.where(state.seen[row], lower, scores)
    barred = params.barred[row]
    if state.length[row] < params.min_length[row]:
        barred = barred | params.stops[row]
    return scores.masked_fill(barred, float("-inf"))


def support(scores: Tensor, row: int, params: UnitParams) -> Tensor:
    """Which entries of a codebook, scores [V_k], pass the filters of a row: bool [V_k]; a greedy row has none."""
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


def _token(scores: Tensor, noise: Tensor, keep: Tensor, temperature: float) -> int:
    return int((scores + temperature * noise).masked_fill(~keep, float("-inf")).argmax())


def _advanced(row: int, tokens: list[int], failed: bool, head: UnitHead, params: UnitParams, state: UnitState) -> list[int]:
    tokens = [head.pad_id] * len(tokens) if failed else tokens
    said = [start + token for start, token in zip(head.cuts, tokens)]
    state.length[row] += 1
    state.failed[row] = failed
    state.finished[row] = failed or any(params.stops[row, at] for at in said) or bool(state.length[row] >= params.max_length[row])
    state.seen[row, said] = True
    return tokens


def merged(units: list[int]) -> tuple[list[int], list[int]]:
    """Units of one row -> merged units and their durations."""
    values, counts = torch.unique_consecutive(torch.tensor(units, dtype=torch.int64), return_counts=True)
    return values.tolist(), counts.tolist()


def spelled(words: list[int], spellings: Spellings) -> list[int]:
    """Words of one row -> units; an id without a spelling spells nothing."""
    offsets = spellings.offsets.tolist()
    cuts = [slice(offsets[word], offsets[word + 1]) for word in words if 0 <= word < len(offsets) - 1]
    return [unit for cut in cuts for unit in spellings.units[cut].tolist()]


def lasting(units: list[int], durations: list[int]) -> list[int]:
    """Units of one row, each for its duration."""
    return torch.repeat_interleave(torch.tensor(units, dtype=torch.int64), torch.tensor(durations).clamp(min=0)).tolist()


def looked_up(codes: Tensor, books: Codebooks) -> Tensor:
    """Codes [K, T] of one row -> float64 [T, C]."""
    total = torch.zeros(codes.shape[1], books.channels, dtype=torch.float64)
    for row, first, count in zip(codes, books.firsts.tolist(), books.counts.tolist()):
        for t, code in enumerate(row.tolist()):
            if 0 <= code < count:
                total[t] += books.table[first + code].double()
    return total
