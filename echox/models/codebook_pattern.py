"""How the codes of K codebooks stand side by side in the steps of a decoder.

Rows are what is said one after the other: frames of K codes, and marks of the first codebook beside which the others say nothing. In the
steps of a decoder codebook k stands `delays[k]` steps behind its row. Source: Copet et al. 2023, arXiv:2306.05284, section 2.2.
"""

from __future__ import annotations

from collections.abc import Sequence


def delays_of(codebooks: int, delay: int) -> tuple[int, ...]:
    """Steps that each codebook lags, `delay` behind the one before; 0 is the parallel pattern."""
    return tuple(delay * k for k in range(codebooks))


def staggered(rows: Sequence[Sequence[int]], delays: Sequence[int], nothing: int) -> list[list[int]]:
    """Rows [R][K] -> steps [R + max(delays)][K]; codebooks say `nothing` before their first row and after their last."""
    R = len(rows)
    return [[rows[t - delay][k] if 0 <= t - delay < R else nothing for k, delay in enumerate(delays)] for t in range(R + max(delays))]


def aligned(steps: Sequence[Sequence[int]], delays: Sequence[int]) -> list[list[int]]:
    """Steps [T][K] -> the rows that are whole in them [T - max(delays)][K]: the inverse of `staggered`."""
    return [[steps[row + delay][k] for k, delay in enumerate(delays)] for row in range(len(steps) - max(delays))]


def frames_of(codes: Sequence[int], codebooks: int) -> list[list[int]]:
    """Codes one frame after the other [F * K] -> [F][K]."""
    return [list(codes[start : start + codebooks]) for start in range(0, len(codes), codebooks)]
