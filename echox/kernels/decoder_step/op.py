"""Launches of the kernels of a decoding step. Nothing waits for the GPU: a CUDA graph can capture them after one warm-up."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from echox.kernels.decoder_step import kernel

INTERPRET = triton.knobs.runtime.interpret


def added_norm(x: Tensor, more: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The sum of rows and its root-mean-square norm (Zhang and Sennrich 2019, arXiv:1910.07467).

    Args:
        x: float32 [A, C]; more: [A, C] what is added to it, None is nothing; weight: float32 [C].
        dtype: of the norm.
    Returns:
        x + more in float32 (x itself where nothing is added), and its norm.
    """
    A, C = x.shape
    total = x if more is None else torch.empty_like(x)
    normed = torch.empty_like(x, dtype=dtype)
    block = triton.next_power_of_2(C)
    kernel.norm_kernel[(A,)](
        x, more, weight, total, normed, C, eps, BLOCK=block, HAS_MORE=more is not None, INTERPRET=INTERPRET, num_warps=min(8, max(1, block // 256))
    )
    return total, normed


def turned(qkv: Tensor, at: Tensor, cosine: Tensor, sine: Tensor, cache: Tensor, heads: int) -> Tensor:
    """Turn queries and keys to their positions (Su et al. 2021, arXiv:2104.09864, in Llama's layout), and put keys and values away.

    Args:
        qkv: [A, (h + 2 k) d]; at: int64 [A] positions; heads: h.
        cosine, sine: [P, d]; the first half of a sine is negative.
        cache: [2, slots, k, P, d] of this layer; row a writes the cell of slot a at its position.
    Returns:
        queries [A, h, d].
    """
    _, slots, groups, positions, d = cache.shape
    queries = qkv.new_empty(len(qkv), heads, d)
    kernel.turn_kernel[(len(qkv), heads + 2 * groups)](
        qkv,
        at,
        cosine,
        sine,
        queries,
        cache,
        slots,
        positions,
        H=heads,
        K=groups,
        D=d,
        BLOCK=triton.next_power_of_2(d),
        INTERPRET=INTERPRET,
        num_warps=1,
    )
    return queries


def gated(gate_up: Tensor) -> Tensor:
    """silu(gate) * up: [A, 2 I] -> [A, I] (Shazeer 2020, arXiv:2002.05202)."""
    A, width = gate_up.shape
    fed = gate_up.new_empty(A, width // 2)
    block = min(1024, triton.next_power_of_2(width // 2))
    kernel.gate_kernel[(A, triton.cdiv(width // 2, block))](gate_up, fed, width // 2, BLOCK=block, INTERPRET=INTERPRET, num_warps=max(1, block // 256))
    return fed
