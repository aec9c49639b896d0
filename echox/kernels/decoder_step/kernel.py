"""Triton kernels of a decoding step.

A step has few rows, so a kernel takes as long as its launch, and what counts is how few there are.
Everything is computed in float32 and rounded once. INTERPRET is set under Triton's interpreter on a
CPU, whose casts to bfloat16 are wrong. Letters of shapes are those of `op`.
"""

import triton
import triton.language as tl

from echox.kernels.arithmetic import narrow


@triton.jit
def norm_kernel(
    x_ptr,  # [A, C] float32
    more_ptr,  # [A, C]
    weight_ptr,  # [C] float32
    total_ptr,  # [A, C] float32: x + more
    normed_ptr,  # [A, C]
    C,
    eps,
    BLOCK: tl.constexpr,
    HAS_MORE: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Sum of one row [C], and its root-mean-square norm.

    Grid: [A].
    """
    # 64 bits, for rows times channels may pass 2^31.
    row = tl.program_id(0).to(tl.int64)
    channels = tl.arange(0, BLOCK)
    inside = channels < C
    at = row * C + channels
    x = tl.load(x_ptr + at, mask=inside, other=0.0)
    if HAS_MORE:
        x += tl.load(more_ptr + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(total_ptr + at, x, mask=inside)
    # Channels past C are 0 and add nothing to the sum of squares.
    scale = 1.0 / tl.sqrt(tl.sum(x * x, axis=0) / C + eps)
    normed = x * scale * tl.load(weight_ptr + channels, mask=inside, other=0.0)
    tl.store(normed_ptr + at, narrow(normed, normed_ptr.dtype.element_ty, INTERPRET), mask=inside)


@triton.jit
def turn_kernel(
    qkv_ptr,  # [A, h + 2 k, d]: queries, keys, values
    at_ptr,  # [A] int64 position of each row
    cosine_ptr,  # [P, d]
    sine_ptr,  # [P, d], its first half negative
    queries_ptr,  # [A, h, d]
    cache_ptr,  # [2, slots, k, P, d]: keys, values
    slots,
    P,
    H: tl.constexpr,
    K: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,  # power of 2 that holds d
    INTERPRET: tl.constexpr,
):
    """Rotate one head of one row by its position, and write keys and values into the cache.

    Grid: [A, h + 2 k]: query heads, then key heads, then value heads, which are not rotated.
    """
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    position = tl.load(at_ptr + row)
    channels = tl.arange(0, BLOCK)
    inside = channels < D
    source = qkv_ptr + (row * (H + 2 * K) + head) * D
    x = tl.load(source + channels, mask=inside, other=0.0).to(tl.float32)
    if head < H + K:
        # Llama's layout pairs channel c with c + d / 2; the table of sines holds the sign.
        opposite = tl.load(source + (channels + D // 2) % D, mask=inside, other=0.0).to(tl.float32)
        turn = position * D + channels
        cosine = tl.load(cosine_ptr + turn, mask=inside, other=0.0).to(tl.float32)
        x = x * cosine + opposite * tl.load(sine_ptr + turn, mask=inside, other=0.0).to(tl.float32)
    x = narrow(x, queries_ptr.dtype.element_ty, INTERPRET)
    if head < H:
        tl.store(queries_ptr + (row * H + head) * D + channels, x, mask=inside)
    else:
        # half is 0 for keys, 1 for values.
        half, group = (head - H) // K, (head - H) % K
        cell = ((half * slots + row) * K + group) * P + position
        tl.store(cache_ptr + cell * D + channels, x, mask=inside)


@triton.jit
def gate_kernel(
    gate_up_ptr,  # [A, 2 I]: gate, up
    fed_ptr,  # [A, I]
    I,  # noqa: E741
    BLOCK: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """silu(gate) * up of BLOCK channels of one row.

    Grid: [A, ceil(I / BLOCK)].
    """
    row = tl.program_id(0).to(tl.int64)
    channels = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = channels < I
    gate = tl.load(gate_up_ptr + row * 2 * I + channels, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + row * 2 * I + I + channels, mask=inside, other=0.0).to(tl.float32)
    tl.store(
        fed_ptr + row * I + channels,
        narrow(gate * tl.sigmoid(gate) * up, fed_ptr.dtype.element_ty, INTERPRET),
        mask=inside,
    )
