"""Launches of the kernels of a decoding step.

Nothing waits for the GPU: a CUDA graph can capture them after one warm-up. Letters of shapes: A
rows (one token of each active slot), C channels, I channels of the feed-forward layer, h query
heads, k key and value heads, d channels of a head, P positions of the cache.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from echox.kernels.decoder_step import kernel

INTERPRET = triton.knobs.runtime.interpret


def fused_add_rmsnorm(
    x: Tensor, more: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Add to the residual stream and normalise the sum by its root mean square.

    Args:
        x: float32 [A, C].
        more: [A, C] what is added, None is nothing.
        weight: float32 [C].
        dtype: of the norm.

    Returns:
        x + more in float32 [A, C] (x itself where nothing is added), and its norm [A, C].

    Source: Zhang and Sennrich 2019, arXiv:1910.07467.
    """
    A, C = x.shape
    total = x if more is None else torch.empty_like(x)
    normed = torch.empty_like(x, dtype=dtype)
    block = triton.next_power_of_2(C)  # a program holds one row in registers
    tensors = (x, more, weight, total, normed)
    kernel.norm_kernel[(A,)](
        *tensors,
        C,
        eps,
        BLOCK=block,
        HAS_MORE=more is not None,
        INTERPRET=INTERPRET,
        num_warps=min(8, max(1, block // 256)),
    )
    return total, normed


def apply_rotary_and_cache(
    qkv: Tensor, at: Tensor, cosine: Tensor, sine: Tensor, cache: Tensor, heads: int
) -> Tensor:
    """Rotate queries and keys by their positions, and write keys and values into the cache.

    Args:
        qkv: [A, (h + 2 k) d].
        at: int64 [A] positions.
        cosine, sine: [P, d]; the first half of a sine is negative.
        cache: [2, slots, k, P, d] of this layer; row a writes the cell of slot a at its position.
        heads: h.

    Returns:
        Rotated queries [A, h, d].

    Source: Su et al. 2021, arXiv:2104.09864, in the layout of Llama (halves, not pairs).
    """
    _, slots, groups, positions, d = cache.shape
    queries = qkv.new_empty(len(qkv), heads, d)
    tensors = (qkv, at, cosine, sine, queries, cache)
    kernel.turn_kernel[(len(qkv), heads + 2 * groups)](
        *tensors,
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
    """Return silu(gate) * up [A, I] of both halves [A, 2 I].

    Source: Shazeer 2020, arXiv:2002.05202.
    """
    A, width = gate_up.shape
    output = gate_up.new_empty(A, width // 2)
    block = min(1024, triton.next_power_of_2(width // 2))
    kernel.gate_kernel[(A, triton.cdiv(width // 2, block))](
        gate_up,
        output,
        width // 2,
        BLOCK=block,
        INTERPRET=INTERPRET,
        num_warps=max(1, block // 256),
    )
    return output
