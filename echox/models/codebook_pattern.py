"""The delay pattern: how codes of K codebooks are arranged in a decoder's steps.

A row is a frame of K codes, or a mark of the first codebook beside which the other codebooks are
silent. In the decoder's steps, codebook k lags its row by `delays[k]`.

Source: Copet et al. 2023, arXiv:2306.05284, section 2.2.
"""

from __future__ import annotations

from collections.abc import Sequence


def delays_of(codebooks: int, delay: int) -> tuple[int, ...]:
    """The delay of each codebook [K] in steps.

    Args:
        codebooks: K.
        delay: steps that a codebook lags the one before; 0 is the parallel pattern.
    """
    return tuple(delay * k for k in range(codebooks))


def staggered(
    rows: Sequence[Sequence[int]], delays: Sequence[int], silence: int
) -> list[list[int]]:
    """Apply the delays: rows [R, K] -> steps [R + max(delays), K].

    Args:
        rows: frames and marks.
        delays: [K] in steps.
        silence: what a codebook holds before its first row and after its last.
    """
    R = len(rows)
    return [
        [rows[t - delay][k] if 0 <= t - delay < R else silence for k, delay in enumerate(delays)]
        for t in range(R + max(delays))
    ]


def aligned(steps: Sequence[Sequence[int]], delays: Sequence[int]) -> list[list[int]]:
    """Undo the delays: steps [T, K] -> the complete rows in them [T - max(delays), K].

    It is the inverse of `staggered`.
    """
    return [
        [steps[row + delay][k] for k, delay in enumerate(delays)]
        for row in range(len(steps) - max(delays))
    ]


def frames_of(codes: Sequence[int], codebooks: int) -> list[list[int]]:
    """Codes frame after frame [F * K] -> [F, K]."""
    return [list(codes[start : start + codebooks]) for start in range(0, len(codes), codebooks)]
