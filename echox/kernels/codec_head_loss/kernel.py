"""Triton kernels of the codec-head loss.

There are two kinds: `row_kernel` reads scores that a library's matrix product wrote; the `tile_*`
kernels compute the scores themselves and never write them. There are no atomics and no locks: every
number has one writer, so runs are equal bit for bit.

Conventions: scores are in float32 from the product to the softmax. A codebook's columns start at a
multiple of ALIGN, which lets loads be wide. INTERPRET is set under Triton's interpreter on a CPU,
whose bfloat16 products and casts are wrong. Sizes: N rows, K codebooks, V entries of all codebooks,
D channels, S splits of columns, T tiles of columns.
"""

import triton
import triton.language as tl

from echox.kernels.arithmetic import narrow, tanh


@triton.jit
def _scores(
    z, bias_ptr, columns, mask, softcap, scale, HAS_BIAS: tl.constexpr, HAS_SOFTCAP: tl.constexpr
):
    """Turn products z [R, C] into scores, -inf outside the mask; `scale` is 1 / temperature."""
    if HAS_BIAS:
        z += tl.load(bias_ptr + columns, mask=mask, other=0.0).to(tl.float32)[None, :]
    if HAS_SOFTCAP:
        z = softcap * tanh(z / softcap)
    # -inf adds nothing to a sum of exponentials and never wins a maximum.
    return tl.where(mask[None, :], z * scale, float("-inf"))


@triton.jit
def _no_statistics(ROWS: tl.constexpr):
    """Statistics [R] of rows before their first score.

    They are the top score, the sum of exponentials, the sum of scores, the target's score and the
    entry that has the top score.
    """
    zeros = tl.zeros((ROWS,), tl.float32)
    return (
        tl.full((ROWS,), float("-inf"), tl.float32),
        zeros,
        zeros,
        zeros,
        tl.zeros((ROWS,), tl.int32),
    )


@triton.jit
def _merge(y, columns, target, mask, top, total, all, at_target, best, HAS_SMOOTHING: tl.constexpr):
    """Add scores y [R, C] with column numbers within the codebook to the statistics [R] of rows.

    Source: online softmax, Milakov and Gimelshein 2018, arXiv:1805.02867.
    """
    new_top = tl.maximum(top, tl.max(y, axis=1))
    # Before the first score top is -inf, and -inf - -inf is NaN.
    total = total * tl.where(top == float("-inf"), 0.0, tl.exp(top - new_top)) + tl.sum(
        tl.exp(y - new_top[:, None]), axis=1
    )
    if HAS_SMOOTHING:
        all += tl.sum(tl.where(mask[None, :], y, 0.0), axis=1)
    # Columns outside the mask may have the target's number, since they belong to the next split;
    # their -inf would spoil the sum.
    at_target += tl.sum(
        tl.where((columns[None, :] == target[:, None]) & mask[None, :], y, 0.0), axis=1
    )
    # The first of equals within the block; an earlier block keeps its entry unless it is exceeded.
    first = tl.min(tl.where(y == new_top[:, None], columns[None, :], 2147483647), axis=1)
    best = tl.where(new_top > top, first, best)
    return new_top, total, all, at_target, best


@triton.jit
def _write_results(
    losses_ptr,
    lse_ptr,
    correct_ptr,
    at,
    rows_mask,
    target,
    size,
    ignore_index,
    lse,
    all,
    at_target,
    best,
    smoothing,
    z_loss,
    HAS_SMOOTHING: tl.constexpr,
    HAS_Z: tl.constexpr,
):
    """Write loss, log-sum-exp and correctness of rows [R] of a codebook from their statistics."""
    valid = target != ignore_index
    inside = (target >= 0) & (target < size)
    loss = lse - (1.0 - smoothing) * at_target
    if HAS_SMOOTHING:
        loss -= smoothing / size.to(tl.float32) * all
    if HAS_Z:
        loss += z_loss * lse * lse
    # Nothing on the device can raise an error: a target out of range makes the loss NaN.
    loss = tl.where(valid, tl.where(inside, loss, float("nan")), 0.0)
    tl.store(losses_ptr + at, loss, mask=rows_mask)
    tl.store(lse_ptr + at, lse, mask=rows_mask)
    tl.store(correct_ptr + at, (valid & (best == target)).to(tl.int8), mask=rows_mask)


@triton.jit
def _gradient(
    y,
    lse,
    columns,
    target,
    size,
    weight,
    ignore_index,
    smoothing,
    z_loss,
    softcap,
    scale,
    HAS_SMOOTHING: tl.constexpr,
    HAS_Z: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
):
    """Gradient of weight * loss with respect to products z [R, C], from their scores y [R, C].

    It is 0 where the target is ignored and NaN where it is out of range.
    """
    valid = target != ignore_index
    g = tl.exp(y - lse[:, None])
    if HAS_Z:
        g *= (1.0 + 2.0 * z_loss * lse)[:, None]
    # In float32: p - 1 of a likely target cancels, and would be lost in 16 bits.
    g -= tl.where(columns[None, :] == target[:, None], 1.0 - smoothing, 0.0)
    if HAS_SMOOTHING:
        g -= smoothing / tl.cast(size, tl.float32)
    outside = (target < 0) | (target >= size)
    factor = tl.where(valid & outside, float("nan"), weight * scale)
    g *= factor[:, None]
    if HAS_SOFTCAP:
        capped = tl.maximum(y / (scale * softcap), -1.0)  # outside the mask y is -inf
        # The derivative of c * tanh(z / c) by its value.
        g *= 1.0 - capped * capped
    return tl.where(valid[:, None], g, 0.0)


@triton.jit
def row_kernel(
    z_ptr,  # [N, V] float32: x W^T
    z_stride,
    bias_ptr,  # [V]
    targets_ptr,  # [N, K] int64
    weights_ptr,  # [N, K] float32
    cuts_ptr,  # [K + 1] int32
    losses_ptr,  # [N, K] float32
    lse_ptr,  # [N, K] float32; read if LSE_KNOWN
    correct_ptr,  # [N, K] bool
    d_ptr,  # [N, V]: gradient with respect to z
    d_stride,
    N,
    ignore_index,
    smoothing,
    z_loss,
    softcap,
    scale,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    ALIGN: tl.constexpr,
    ONE_BLOCK: tl.constexpr,  # the whole codebook is one block, and stays in registers
    LSE_KNOWN: tl.constexpr,
    WANTS_GRADIENT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
    HAS_SMOOTHING: tl.constexpr,
    HAS_Z: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Results and gradients of ROWS rows of one codebook, from products z in memory.

    Grid: [ceil(N / ROWS), K].
    """
    # 64 bits, for rows times columns passes 2^31.
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    rows_mask = rows < N
    k = tl.program_id(1)
    # The compiler cannot know the alignment of numbers that are loaded.
    start = tl.multiple_of(tl.load(cuts_ptr + k), ALIGN)
    size = tl.multiple_of(tl.load(cuts_ptr + k + 1) - start, ALIGN)
    at = rows * K + k
    target = tl.load(targets_ptr + at, mask=rows_mask, other=ignore_index)
    weight = tl.full((ROWS,), 1.0, tl.float32)
    if HAS_WEIGHTS:
        weight = tl.load(weights_ptr + at, mask=rows_mask, other=0.0).to(tl.float32)
    columns = tl.arange(0, BLOCK)
    z_rows = z_ptr + rows[:, None] * z_stride + start
    d_rows = d_ptr + rows[:, None] * d_stride + start

    if ONE_BLOCK:
        # One read: the scores stay in registers from the statistics to the gradient.
        mask = columns < size
        both = rows_mask[:, None] & mask[None, :]
        y = _scores(
            tl.load(z_rows + columns[None, :], mask=both, other=0.0),
            bias_ptr,
            start + columns,
            mask,
            softcap,
            scale,
            HAS_BIAS,
            HAS_SOFTCAP,
        )
        if LSE_KNOWN:
            lse = tl.load(lse_ptr + at, mask=rows_mask, other=0.0)
        else:
            top = tl.max(y, axis=1)
            lse = top + tl.log(tl.sum(tl.exp(y - top[:, None]), axis=1))
            all = tl.sum(tl.where(mask[None, :], y, 0.0), axis=1)
            at_target = tl.sum(tl.where(columns[None, :] == target[:, None], y, 0.0), axis=1)
            best = tl.min(tl.where(y == top[:, None], columns[None, :], 2147483647), axis=1)
            _write_results(
                losses_ptr,
                lse_ptr,
                correct_ptr,
                at,
                rows_mask,
                target,
                size,
                ignore_index,
                lse,
                all,
                at_target,
                best,
                smoothing,
                z_loss,
                HAS_SMOOTHING,
                HAS_Z,
            )
        if WANTS_GRADIENT:
            g = _gradient(
                y,
                lse,
                columns,
                target,
                size,
                weight,
                ignore_index,
                smoothing,
                z_loss,
                softcap,
                scale,
                HAS_SMOOTHING,
                HAS_Z,
                HAS_SOFTCAP,
            )
            tl.store(
                d_rows + columns[None, :], narrow(g, d_ptr.dtype.element_ty, INTERPRET), mask=both
            )
    else:
        # Two reads in blocks, the second one from the cache.
        if LSE_KNOWN:
            lse = tl.load(lse_ptr + at, mask=rows_mask, other=0.0)
        else:
            top, total, all, at_target, best = _no_statistics(ROWS)
            for first in range(0, size, BLOCK):
                here = first + columns
                mask = here < size
                z = tl.load(
                    z_rows + here[None, :], mask=rows_mask[:, None] & mask[None, :], other=0.0
                )
                y = _scores(z, bias_ptr, start + here, mask, softcap, scale, HAS_BIAS, HAS_SOFTCAP)
                top, total, all, at_target, best = _merge(
                    y, here, target, mask, top, total, all, at_target, best, HAS_SMOOTHING
                )
            lse = top + tl.log(total)
            _write_results(
                losses_ptr,
                lse_ptr,
                correct_ptr,
                at,
                rows_mask,
                target,
                size,
                ignore_index,
                lse,
                all,
                at_target,
                best,
                smoothing,
                z_loss,
                HAS_SMOOTHING,
                HAS_Z,
            )
        if WANTS_GRADIENT:
            for first in range(0, size, BLOCK):
                here = first + columns
                mask = here < size
                both = rows_mask[:, None] & mask[None, :]
                y = _scores(
                    tl.load(z_rows + here[None, :], mask=both, other=0.0),
                    bias_ptr,
                    start + here,
                    mask,
                    softcap,
                    scale,
                    HAS_BIAS,
                    HAS_SOFTCAP,
                )
                g = _gradient(
                    y,
                    lse,
                    here,
                    target,
                    size,
                    weight,
                    ignore_index,
                    smoothing,
                    z_loss,
                    softcap,
                    scale,
                    HAS_SMOOTHING,
                    HAS_Z,
                    HAS_SOFTCAP,
                )
                tl.store(
                    d_rows + here[None, :], narrow(g, d_ptr.dtype.element_ty, INTERPRET), mask=both
                )


@triton.jit
def scale_kernel(
    gradient_ptr,  # [size] float32
    upstream_ptr,  # []
    count,  # a number, or [] on the device
    out_ptr,  # [size]
    size,
    BLOCK: tl.constexpr,
    COUNT_ON_DEVICE: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Gradient times the upstream gradient over the count, rounded once.

    Grid: [ceil(size / BLOCK)].
    """
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    scale = tl.load(upstream_ptr).to(tl.float32)
    if COUNT_ON_DEVICE:
        scale /= tl.load(count).to(tl.float32)
    else:
        scale /= count
    scaled = tl.load(gradient_ptr + at, mask=inside, other=0.0) * scale
    tl.store(out_ptr + at, narrow(scaled, out_ptr.dtype.element_ty, INTERPRET), mask=inside)


@triton.jit
def _tile(
    x_ptr,
    x_stride,
    w_ptr,
    w_stride,
    rows,
    rows_mask,
    columns,
    columns_mask,
    D,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    EVEN_DEPTH: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Product of x[rows] and w[columns]^T, [ROWS, COLUMNS] float32."""
    depth = tl.arange(0, DEPTH)
    x_at = x_ptr + rows[:, None] * x_stride + depth[None, :]
    w_at = w_ptr + columns[None, :].to(tl.int64) * w_stride + depth[:, None]
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, D, DEPTH):
        # A mask over channels would break the loads into narrow pieces.
        if EVEN_DEPTH:
            x = tl.load(x_at + first, mask=rows_mask[:, None], other=0.0)
            w = tl.load(w_at + first, mask=columns_mask[None, :], other=0.0)
        else:
            x = tl.load(
                x_at + first, mask=rows_mask[:, None] & (first + depth < D)[None, :], other=0.0
            )
            w = tl.load(
                w_at + first, mask=columns_mask[None, :] & (first + depth < D)[:, None], other=0.0
            )
        if INTERPRET:
            x, w = x.to(tl.float32), w.to(tl.float32)
        # float32 factors must not be cut to TF32; 16-bit ones are not affected.
        sums = tl.dot(x, w, sums, input_precision="ieee")
    return sums


@triton.jit
def tile_statistics_kernel(
    x_ptr,  # [N, D]
    x_stride,
    w_ptr,  # [V, D]
    w_stride,
    bias_ptr,  # [V]
    targets_ptr,  # [N, K] int64
    splits_ptr,  # [S, 3] int32: codebook, first and last + 1 column
    cuts_ptr,  # [K + 1] int32
    statistics_ptr,  # [4, S, N] float32: top, total, sum of scores, score of the target
    best_ptr,  # [S, N] int32
    N,
    D,
    plane,  # S * N
    softcap,
    scale,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    EVEN_DEPTH: tl.constexpr,
    ALIGN: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SMOOTHING: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Softmax statistics of ROWS rows over one split of a codebook's columns.

    Grid: [ceil(N / ROWS), S]. The scores are never written.
    """
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    rows_mask = rows < N
    split = tl.program_id(1)
    k = tl.load(splits_ptr + split * 3)
    start = tl.multiple_of(tl.load(splits_ptr + split * 3 + 1), ALIGN)
    stop = tl.multiple_of(tl.load(splits_ptr + split * 3 + 2), ALIGN)
    base = tl.load(cuts_ptr + k)
    target = tl.load(targets_ptr + rows * K + k, mask=rows_mask, other=-1)
    top, total, all, at_target, best = _no_statistics(ROWS)
    for first in range(start, stop, COLUMNS):
        columns = first + tl.arange(0, COLUMNS)
        mask = columns < stop
        z = _tile(
            x_ptr,
            x_stride,
            w_ptr,
            w_stride,
            rows,
            rows_mask,
            columns,
            mask,
            D,
            ROWS,
            COLUMNS,
            DEPTH,
            EVEN_DEPTH,
            INTERPRET,
        )
        y = _scores(z, bias_ptr, columns, mask, softcap, scale, HAS_BIAS, HAS_SOFTCAP)
        top, total, all, at_target, best = _merge(
            y, columns - base, target, mask, top, total, all, at_target, best, HAS_SMOOTHING
        )
    at = split.to(tl.int64) * N + rows
    tl.store(statistics_ptr + at, top, mask=rows_mask)
    tl.store(statistics_ptr + plane + at, total, mask=rows_mask)
    tl.store(statistics_ptr + 2 * plane + at, all, mask=rows_mask)
    tl.store(statistics_ptr + 3 * plane + at, at_target, mask=rows_mask)
    tl.store(best_ptr + at, best, mask=rows_mask)


@triton.jit
def combine_kernel(
    statistics_ptr,  # [4, S, N] float32
    best_ptr,  # [S, N] int32
    targets_ptr,  # [N, K] int64
    firsts_ptr,  # [K + 1] int32: first split of each codebook
    cuts_ptr,  # [K + 1] int32
    losses_ptr,
    lse_ptr,
    correct_ptr,  # [N, K]
    N,
    plane,  # S * N
    ignore_index,
    smoothing,
    z_loss,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    HAS_SMOOTHING: tl.constexpr,
    HAS_Z: tl.constexpr,
):
    """Join the statistics of a codebook's splits, in their order.

    Grid: [ceil(N / ROWS), K].
    """
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    rows_mask = rows < N
    k = tl.program_id(1)
    size = tl.load(cuts_ptr + k + 1) - tl.load(cuts_ptr + k)
    top, total, all, at_target, best = _no_statistics(ROWS)
    first = tl.load(firsts_ptr + k)
    here = first.to(tl.int64) * N + rows
    for _ in range(first, tl.load(firsts_ptr + k + 1)):
        # 0 and 1 keep rows outside the mask finite.
        part_top = tl.load(statistics_ptr + here, mask=rows_mask, other=0.0)
        part_total = tl.load(statistics_ptr + plane + here, mask=rows_mask, other=1.0)
        all += tl.load(statistics_ptr + 2 * plane + here, mask=rows_mask, other=0.0)
        at_target += tl.load(statistics_ptr + 3 * plane + here, mask=rows_mask, other=0.0)
        part_best = tl.load(best_ptr + here, mask=rows_mask, other=0)
        # Splits come in the order of their columns, so equals keep the first entry.
        best = tl.where(part_top > top, part_best, best)
        new_top = tl.maximum(top, part_top)
        total = total * tl.where(
            top == float("-inf"), 0.0, tl.exp(top - new_top)
        ) + part_total * tl.exp(part_top - new_top)
        top = new_top
        here += N
    target = tl.load(targets_ptr + rows * K + k, mask=rows_mask, other=ignore_index)
    lse = top + tl.log(total)
    _write_results(
        losses_ptr,
        lse_ptr,
        correct_ptr,
        rows * K + k,
        rows_mask,
        target,
        size,
        ignore_index,
        lse,
        all,
        at_target,
        best,
        smoothing,
        z_loss,
        HAS_SMOOTHING,
        HAS_Z,
    )


@triton.jit
def tile_gradient_kernel(
    x_ptr,
    x_stride,
    w_ptr,
    w_stride,
    bias_ptr,
    targets_ptr,
    weights_ptr,
    tiles_ptr,  # [T, 3] int32: codebook, first and last + 1 column
    cuts_ptr,
    lse_ptr,  # [N, K] float32
    d_ptr,  # [N, V]
    d_stride,
    N,
    D,
    ignore_index,
    smoothing,
    z_loss,
    softcap,
    scale,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    EVEN_DEPTH: tl.constexpr,
    ALIGN: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
    HAS_SMOOTHING: tl.constexpr,
    HAS_Z: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Gradient with respect to one tile of products, which are computed again.

    Grid: [ceil(N / ROWS), T].
    """
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    rows_mask = rows < N
    tile = tl.program_id(1)
    k = tl.load(tiles_ptr + tile * 3)
    start = tl.multiple_of(tl.load(tiles_ptr + tile * 3 + 1), ALIGN)
    stop = tl.multiple_of(tl.load(tiles_ptr + tile * 3 + 2), ALIGN)
    base = tl.load(cuts_ptr + k)
    size = tl.load(cuts_ptr + k + 1) - base
    columns = start + tl.arange(0, COLUMNS)
    mask = columns < stop
    z = _tile(
        x_ptr,
        x_stride,
        w_ptr,
        w_stride,
        rows,
        rows_mask,
        columns,
        mask,
        D,
        ROWS,
        COLUMNS,
        DEPTH,
        EVEN_DEPTH,
        INTERPRET,
    )
    y = _scores(z, bias_ptr, columns, mask, softcap, scale, HAS_BIAS, HAS_SOFTCAP)
    at = rows * K + k
    target = tl.load(targets_ptr + at, mask=rows_mask, other=ignore_index)
    lse = tl.load(lse_ptr + at, mask=rows_mask, other=0.0)
    weight = tl.full((ROWS,), 1.0, tl.float32)
    if HAS_WEIGHTS:
        weight = tl.load(weights_ptr + at, mask=rows_mask, other=0.0).to(tl.float32)
    g = _gradient(
        y,
        lse,
        columns - base,
        target,
        size,
        weight,
        ignore_index,
        smoothing,
        z_loss,
        softcap,
        scale,
        HAS_SMOOTHING,
        HAS_Z,
        HAS_SOFTCAP,
    )
    tl.store(
        d_ptr + rows[:, None] * d_stride + columns[None, :],
        narrow(g, d_ptr.dtype.element_ty, INTERPRET),
        mask=rows_mask[:, None] & mask[None, :],
    )
