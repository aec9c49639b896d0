"""Triton kernels of a step of unit decoding: scores, draw, and the advance of the state.

There are no atomics and no locks: every number has one writer, so runs are equal bit for bit.
Scores are float32 from the product to the draw. INTERPRET is set under Triton's interpreter on a
CPU, whose 16-bit products and casts are wrong.
"""

import triton
import triton.language as tl

from echox.kernels.arithmetic import narrow, tanh
from echox.kernels.unit_decode import noise

STEP = tl.constexpr(noise.STEP - 2**64)  # as a signed number
FACTOR_0 = tl.constexpr(noise.FACTORS[0])
FACTOR_1 = tl.constexpr(noise.FACTORS[1])
LARGEST = tl.constexpr(noise.LARGEST)
NEVER = tl.constexpr(float("-inf"))
LOWEST = tl.constexpr(-2139095041)  # of keys: that of -inf


@triton.jit
def head_kernel(
    x_ptr,  # [B, D]
    x_stride,
    w_ptr,  # [V, D]
    w_stride,
    w_step,  # of a channel: 1 on a GPU
    bias_ptr,  # [V]
    scores_ptr,  # [B, V] float32
    B,
    V,
    D,
    softcap,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    EVEN: tl.constexpr,  # D is a multiple of DEPTH
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Scores of ROWS hidden states by COLUMNS rows of the weight.

    Grid: [ceil(V / COLUMNS), ceil(B / ROWS)]. The weight is the left factor: its tile is narrower
    than a warp group's, so that one instruction, and one order of summation, serves any number of
    hidden states.
    """
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    depth = tl.arange(0, DEPTH)
    w_at = w_ptr + columns[:, None].to(tl.int64) * w_stride + depth[None, :] * w_step
    x_at = x_ptr + rows[None, :].to(tl.int64) * x_stride + depth[:, None]
    inside_v, inside_b = columns < V, rows < B
    sums = tl.zeros((COLUMNS, ROWS), tl.float32)
    for first in range(0, D, DEPTH):
        # A mask over channels would break the loads into narrow pieces.
        if EVEN:
            w = tl.load(w_at + first * w_step, mask=inside_v[:, None], other=0.0)
            x = tl.load(x_at + first, mask=inside_b[None, :], other=0.0)
        else:
            inside_d = first + depth < D
            w = tl.load(
                w_at + first * w_step, mask=inside_v[:, None] & inside_d[None, :], other=0.0
            )
            x = tl.load(x_at + first, mask=inside_b[None, :] & inside_d[:, None], other=0.0)
        x = x.to(w.dtype)
        if INTERPRET:
            x, w = x.to(tl.float32), w.to(tl.float32)
        # float32 factors must not be cut to TF32; 16-bit ones are not affected.
        sums = tl.dot(w, x, sums, input_precision="ieee")
    if HAS_BIAS:
        sums += tl.load(bias_ptr + columns, mask=inside_v, other=0.0).to(tl.float32)[:, None]
    if HAS_SOFTCAP:
        sums = softcap * tanh(sums / softcap)
    tl.store(
        scores_ptr + rows[None, :].to(tl.int64) * V + columns[:, None],
        sums,
        mask=inside_v[:, None] & inside_b[None, :],
    )


@triton.jit
def _gumbel(seed, position, ids):
    """Gumbel noise [V] of ids [V], with the bits of `noise.gumbel_noise`."""
    keys = seed + position * STEP
    bits = ids ^ keys.to(tl.int32)
    bits = ((bits ^ (bits >> 16)) * FACTOR_0) ^ (keys >> 32).to(tl.int32)
    bits = (bits ^ (bits >> 15)) * FACTOR_1
    bits = (bits ^ (bits >> 16)) & 0x7FFFFFFF
    v = tl.minimum((bits.to(tl.float32) + 0.5) * (2.0**-31), LARGEST)
    # A GPU's logarithm is exact to an absolute error, too little near 1; there its series takes
    # over. Small v are the variates that win.
    near = v * (1.0 + v * (0.5 + v * (1.0 / 3 + v * (0.25 + v * 0.2))))
    return -tl.log(tl.where(v < 0.03125, near, -tl.log(1.0 - v)))


@triton.jit
def _order(y):
    """Map float32 to int32 keys of the same order."""
    # 0 is added because -0 is no less than 0, and its bits are others.
    bits = (y + 0.0).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _kth(keys, k, GROUPS: tl.constexpr):
    """Find a key that the k largest of keys [V] reach and, but for equals of the k-th, no other.

    It is a search by two bits a round. The k-th largest is no less than the least of the largest
    keys of k groups, however the keys are spread over them, so the search starts there.
    """
    # Any order will do, and one that is free needs no exchange between threads.
    largest = tl.max(tl.reshape(keys, (GROUPS, keys.shape[0] // GROUPS), can_reorder=True), axis=1)
    high = tl.max(largest, axis=0)
    low = tl.where(k <= GROUPS, tl.min(largest, axis=0), LOWEST)
    while low < high:
        # The mean rounded up, of numbers whose sum does not fit.
        middle = (low | high) - ((low ^ high) >> 1)
        lower = (low | middle) - ((low ^ middle) >> 1)
        upper = (middle | high) - ((middle ^ high) >> 1)
        # Three counts in one sum, 21 bits each.
        reached = (
            (keys >= lower).to(tl.int64)
            + ((keys >= middle).to(tl.int64) << 21)
            + ((keys >= upper).to(tl.int64) << 42)
        )
        counts = tl.sum(reached)
        of_lower, of_middle, of_upper = counts & 0x1FFFFF, (counts >> 21) & 0x1FFFFF, counts >> 42
        high = tl.where(
            of_upper >= k,
            high,
            tl.where(of_middle >= k, upper - 1, tl.where(of_lower >= k, middle - 1, lower - 1)),
        )
        low = tl.where(
            of_upper >= k,
            upper,
            tl.where(of_middle >= k, middle, tl.where(of_lower >= k, lower, low)),
        )
        # A key that exactly k of them reach is found long before the last bit.
        if (of_upper == k) | (of_middle == k) | (of_lower == k):
            low = tl.where(of_upper == k, upper, tl.where(of_middle == k, middle, lower))
            high = low
    return low


@triton.jit
def _mass(y, top, temperature):
    """Probabilities [V] relative to the likeliest one's, which is 1."""
    # Computed anew wherever it is wanted, which is cheaper than registers to keep it in.
    return tl.exp((y - top) / temperature)


@triton.jit
def _draw(y, ids, top, size, seed, position, first, temperature, k, p, least):
    """Choose the entry with the largest score plus noise among those that pass the filters.

    No threshold of top-p is computed. The winner of all entries is tested; if it does not pass,
    nothing below it passes either, and the winner of those above is tested: it takes one or two
    rounds. The winner that passes is that of all entries that do.

    Source: rejection as in FlashInfer's samplers (2025), with fixed noise in place of new draws.
    """
    GROUPS: tl.constexpr = min(64, y.shape[0])
    # min-p needs no search: its threshold is a share of the likeliest's probability.
    noisy = tl.where(
        (y > NEVER) & (_mass(y, top, temperature) >= least),
        y + temperature * _gumbel(seed, position, first + ids),
        NEVER,
    )
    limit = k.to(tl.float32)  # of what is above a winner: entries, or mass where top-p is set
    if p < 1.0:
        if k < size:  # top-p is a share of what top-k leaves, so that must be known
            keys = _order(y)
            y = tl.where(keys >= _kth(keys, k, GROUPS), y, NEVER)
            noisy = tl.where(y > NEVER, noisy, NEVER)
        limit = p * tl.sum(_mass(y, top, temperature), axis=0)
    token = tl.argmax(noisy, axis=0)
    asking = (k < size) | (p < 1.0)
    while asking:
        # The score of one entry, as a sum over registers.
        above = y > tl.sum(tl.where(ids == token, y, 0.0), axis=0)
        share = tl.where(p < 1.0, _mass(y, top, temperature), 1.0)
        asking = tl.sum(tl.where(above, share, 0.0), axis=0) >= limit
        if asking:
            noisy = tl.where(above, noisy, NEVER)
            token = tl.argmax(noisy, axis=0)
    return token


@triton.jit
def _allowed(
    z,
    row,
    at,
    inside,
    length,
    factor_ptr,
    less_ptr,
    barred_ptr,
    stops_ptr,
    seen_ptr,
    min_length_ptr,
):
    """Scores [V] of a row after its penalties, -inf where barred, inf where they are NaN."""
    # `tl.max` may ignore NaN, but not infinity, by which the row fails.
    y = tl.where(z == z, z, float("inf"))
    factor, less = tl.load(factor_ptr + row), tl.load(less_ptr + row)
    # A row without penalties does not read its V marks.
    if (factor != 1.0) | (less != 0.0):
        seen = tl.load(seen_ptr + at, mask=inside, other=0) != 0
        y = tl.where(seen, tl.where(y > 0, y / factor, y * factor) - less, y)
    barred = tl.load(barred_ptr + at, mask=inside, other=1) != 0
    if length < tl.load(min_length_ptr + row):
        barred = barred | (tl.load(stops_ptr + at, mask=inside, other=1) != 0)
    return tl.where(barred, NEVER, y)


@triton.jit
def _advance(row, length, failed, stopped, max_length_ptr, length_ptr, finished_ptr, failed_ptr):
    """Write the state of a row that has got a token."""
    tl.store(length_ptr + row, length + 1)
    tl.store(failed_ptr + row, failed.to(tl.int8))
    tl.store(
        finished_ptr + row,
        (failed | stopped | (length + 1 >= tl.load(max_length_ptr + row))).to(tl.int8),
    )


@triton.jit
def sample_kernel(
    scores_ptr,  # [B, V] float32
    cuts_ptr,  # [K + 1] int64
    factor_ptr,  # [B] repetition penalty
    less_ptr,  # [B] presence penalty
    barred_ptr,  # [B, V] int8
    stops_ptr,  # [B, V] int8
    min_length_ptr,  # [B]
    max_length_ptr,  # [B]
    temperature_ptr,  # [B]
    top_k_ptr,  # [B]
    top_p_ptr,  # [B]
    min_p_ptr,  # [B]
    seed_ptr,  # [B]
    length_ptr,  # [B]
    finished_ptr,  # [B] int8
    failed_ptr,  # [B] int8
    seen_ptr,  # [B, V] int8
    forced_ptr,  # [B, K]
    tokens_ptr,  # [B, K], -1 where a codebook fails its row and there are several
    table_ptr,  # [V, E]
    vectors_ptr,  # [B, E]
    V,
    E,
    pad,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
    CHANNELS: tl.constexpr,
    HAS_FORCED: tl.constexpr,
    HAS_TABLE: tl.constexpr,
):
    """Choose a token of one row and codebook.

    Grid: [B, K]. The row's state is advanced here where there is one codebook, else by
    `advance_kernel`, since a program does not see what the others of its row choose.
    """
    # 64 bits, for rows times entries may pass 2^31.
    row, k = tl.program_id(0).to(tl.int64), tl.program_id(1)
    first = tl.load(cuts_ptr + k)
    size = (tl.load(cuts_ptr + k + 1) - first).to(tl.int32)
    token = tl.full((), pad, tl.int32)
    if tl.load(finished_ptr + row) == 0:
        ids = tl.arange(0, BLOCK)
        inside = ids < size
        at = row * V + first + ids
        length = tl.load(length_ptr + row)
        z = tl.load(scores_ptr + at, mask=inside, other=0.0)
        y = _allowed(
            z,
            row,
            at,
            inside,
            length,
            factor_ptr,
            less_ptr,
            barred_ptr,
            stops_ptr,
            seen_ptr,
            min_length_ptr,
        )
        top = tl.max(y, axis=0)
        temperature = tl.load(temperature_ptr + row)
        # inf: a score was NaN or infinite; -inf: nothing is allowed.
        failed = tl.abs(top) == float("inf")
        if (temperature > 0.0) & (failed == 0):
            of_k = tl.minimum(tl.load(top_k_ptr + row), size).to(tl.int32)
            p, least, seed = (
                tl.load(top_p_ptr + row),
                tl.load(min_p_ptr + row),
                tl.load(seed_ptr + row),
            )
            token = _draw(
                y, ids, top, size, seed, length, first.to(tl.int32), temperature, of_k, p, least
            )
        else:
            token = tl.argmax(y, axis=0)
        # A forced id that does not exist must not become an address: the row fails instead.
        if HAS_FORCED:
            forced = tl.load(forced_ptr + row * K + k)
            failed = failed | (forced >= size)
            token = tl.where(forced >= 0, forced, token).to(tl.int32)
        if K == 1:
            token = tl.where(failed, pad, token)
            entry = row * V + token
            tl.store(seen_ptr + entry, tl.full((), 1, tl.int8))
            _advance(
                row,
                length,
                failed,
                tl.load(stops_ptr + entry) != 0,
                max_length_ptr,
                length_ptr,
                finished_ptr,
                failed_ptr,
            )
        else:
            token = tl.where(failed, -1, token)
    tl.store(tokens_ptr + row * K + k, token.to(tl.int64))
    if HAS_TABLE and K == 1:
        for start in range(0, E, CHANNELS):
            channels = start + tl.arange(0, CHANNELS)
            vector = tl.load(table_ptr + token.to(tl.int64) * E + channels, mask=channels < E)
            tl.store(vectors_ptr + row * E + channels, vector, mask=channels < E)


@triton.jit
def advance_kernel(
    tokens_ptr,  # [B, K], -1 where a codebook fails its row
    cuts_ptr,  # [K + 1] int64
    stops_ptr,  # [B, V] int8
    max_length_ptr,  # [B]
    length_ptr,  # [B]
    finished_ptr,  # [B] int8
    failed_ptr,  # [B] int8
    seen_ptr,  # [B, V] int8
    table_ptr,  # [V, E]
    vectors_ptr,  # [B, E]
    V,
    E,
    pad,
    K: tl.constexpr,
    BOOKS: tl.constexpr,  # power of 2 that holds K
    CHANNELS: tl.constexpr,
    HAS_TABLE: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Advance the state of a row by its tokens, one of each codebook, and sum their vectors.

    Grid: [B].
    """
    row = tl.program_id(0).to(tl.int64)
    books = tl.arange(0, BOOKS)
    inside = books < K
    tokens = tl.load(tokens_ptr + row * K + books, mask=inside, other=0)
    failed = tl.min(tokens, axis=0) < 0  # one codebook fails the row
    tokens = tl.where(failed, pad, tokens)
    at = tl.load(cuts_ptr + books, mask=inside, other=0) + tokens
    if tl.load(finished_ptr + row) == 0:
        stopped = tl.max(tl.load(stops_ptr + row * V + at, mask=inside, other=0), axis=0) != 0
        tl.store(seen_ptr + row * V + at, tl.full((BOOKS,), 1, tl.int8), mask=inside)
        _advance(
            row,
            tl.load(length_ptr + row),
            failed,
            stopped,
            max_length_ptr,
            length_ptr,
            finished_ptr,
            failed_ptr,
        )
    tl.store(tokens_ptr + row * K + books, tokens, mask=inside)
    if HAS_TABLE:
        for start in range(0, E, CHANNELS):
            channels = start + tl.arange(0, CHANNELS)
            total = tl.zeros((CHANNELS,), tl.float32)
            for k in range(K):
                # One number of a register vector: what other threads have stored cannot be read
                # back without a barrier.
                one = tl.sum(tl.where(books == k, at, 0), axis=0)
                total += tl.load(table_ptr + one * E + channels, mask=channels < E, other=0.0).to(
                    tl.float32
                )
            tl.store(
                vectors_ptr + row * E + channels,
                narrow(total, vectors_ptr.dtype.element_ty, INTERPRET),
                mask=channels < E,
            )
