"""Triton kernels that make a vocoder's input of what was said: merging, expansion, codebook look-up. No atomics: every number has one writer.

INTERPRET is set under Triton's interpreter on a CPU, whose 16-bit casts are wrong.
"""

import triton
import triton.language as tl

from echox.kernels.arithmetic import narrow


@triton.jit
def dedup_kernel(
    units_ptr,  # [B, T]
    lengths_ptr,  # [B]
    open_unit_ptr,  # [B]
    open_duration_ptr,  # [B]
    last_ptr,  # [B] int8
    runs_ptr,  # [B, R] zeros
    durations_ptr,  # [B, R] zeros
    counts_ptr,  # [B]
    new_unit_ptr,  # [B]
    new_duration_ptr,  # [B]
    T,
    R,
    BLOCK: tl.constexpr,
):
    """Merge the repeats of one row. The open run counts as frames before the first, at negative places."""
    row = tl.program_id(0).to(tl.int64)
    length = tl.load(lengths_ptr + row).to(tl.int32)
    unit, duration = tl.load(open_unit_ptr + row), tl.load(open_duration_ptr + row)
    held = tl.load(last_ptr + row) == 0
    begin = -duration.to(tl.int32)  # where the run that is going on began
    runs = (duration > 0).to(tl.int32)  # begun so far
    follower = tl.load(units_ptr + row * T, mask=length > 0, other=-1)
    if (duration > 0) & (follower != unit) & ((length > 0) | (held == 0)):
        tl.store(runs_ptr + row * R, unit)
        tl.store(durations_ptr + row * R, duration)
    for start in range(0, length, BLOCK):
        frames = start + tl.arange(0, BLOCK)
        real = frames < length
        here = tl.load(units_ptr + row * T + frames, mask=real, other=-1)
        before = tl.load(units_ptr + row * T + frames - 1, mask=real & (frames > 0), other=-1)
        after = tl.load(units_ptr + row * T + frames + 1, mask=frames + 1 < length, other=-1)
        before = tl.where(frames == 0, unit, before)
        starts = real & (here != before)
        begins = tl.maximum(begin, tl.associative_scan(tl.where(starts, frames, -2147483648), 0, _later))
        number = runs + tl.cumsum(starts.to(tl.int32), 0) - 1
        ends = real & (here != after) & ((frames + 1 < length) | (held == 0))
        tl.store(runs_ptr + row * R + number, here, mask=ends)
        tl.store(durations_ptr + row * R + number, (frames + 1 - begins).to(tl.int64), mask=ends)
        begin = tl.max(begins, axis=0)
        runs += tl.sum(starts.to(tl.int32), axis=0)
    final = tl.load(units_ptr + row * T + length - 1, mask=length > 0, other=0)
    final = tl.where(length > 0, final, unit)
    keeps = held & (runs > 0)
    tl.store(counts_ptr + row, (runs - keeps.to(tl.int32)).to(tl.int64))
    tl.store(new_unit_ptr + row, tl.where(keeps, final, -1))
    tl.store(new_duration_ptr + row, tl.where(keeps, length - begin, 0).to(tl.int64))


@triton.jit
def _later(a, b):
    return tl.maximum(a, b)


@triton.jit
def expand_kernel(
    items_ptr,  # [B, U] words or units
    durations_ptr,  # [B, U] frames of units
    offsets_ptr,  # [W + 1] of words
    spellings_ptr,  # [N] of words
    lengths_ptr,  # [B]
    out_ptr,  # [B, F] zeros
    wanted_ptr,  # [B]
    U,
    F,
    W,
    BLOCK: tl.constexpr,
    SPELLED: tl.constexpr,  # words by their spellings, or units by their durations
):
    """Every item writes what it stands for, one place after the other; a row ends where its table does."""
    row = tl.program_id(0).to(tl.int64)
    length = tl.load(lengths_ptr + row)
    filled = tl.zeros((), tl.int64)
    for start in range(0, U, BLOCK):
        at = start + tl.arange(0, BLOCK)
        real = at < tl.minimum(length, U)
        item = tl.load(items_ptr + row * U + at, mask=real, other=0)
        if SPELLED:
            known = real & (item >= 0) & (item < W)
            source = tl.load(offsets_ptr + item, mask=known, other=0)
            size = tl.load(offsets_ptr + item + 1, mask=known, other=0) - source
        else:
            size = tl.maximum(tl.load(durations_ptr + row * U + at, mask=real, other=0), 0)
        place = filled + tl.cumsum(size, 0) - size
        for step in range(0, tl.max(size, axis=0)):
            writes = (step < size) & (place + step < F)
            if SPELLED:
                tl.store(out_ptr + row * F + place + step, tl.load(spellings_ptr + source + step, mask=writes, other=0), mask=writes)
            else:
                tl.store(out_ptr + row * F + place + step, item, mask=writes)
        filled += tl.sum(size, axis=0)
    tl.store(wanted_ptr + row, filled)


@triton.jit
def codebook_kernel(
    codes_ptr,  # [B, K, T]
    lengths_ptr,  # [B]
    firsts_ptr,  # [K]
    counts_ptr,  # [K]
    table_ptr,  # [sum of V_k, C]
    out_ptr,  # [B, T, C] in either order
    T,
    C,
    frame_stride,
    channel_stride,
    K,
    FRAMES: tl.constexpr,
    CHANNELS: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """The sum over codebooks, in their order, of the entries that FRAMES frames name."""
    row = tl.program_id(0).to(tl.int64)
    frames = tl.program_id(1) * FRAMES + tl.arange(0, FRAMES)
    channels = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    real = frames < tl.minimum(tl.load(lengths_ptr + row), T)
    inside = channels < C
    total = tl.zeros((FRAMES, CHANNELS), tl.float32)
    for k in range(0, K):
        code = tl.load(codes_ptr + (row * K + k) * T + frames, mask=real, other=-1)
        known = (code >= 0) & (code < tl.load(counts_ptr + k))
        entry = (tl.load(firsts_ptr + k) + code) * C
        total += tl.load(table_ptr + entry[:, None] + channels[None, :], mask=known[:, None] & inside[None, :], other=0.0).to(tl.float32)
    out = out_ptr + row * T * C + frames[:, None].to(tl.int64) * frame_stride + channels[None, :] * channel_stride
    tl.store(out, narrow(total, out_ptr.dtype.element_ty, INTERPRET), mask=(frames < T)[:, None] & inside[None, :])
