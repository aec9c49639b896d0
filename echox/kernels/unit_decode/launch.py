"""Launches of the Triton kernels: tile shapes, results, and what each kernel is given.

Nothing here waits for the GPU, and all memory comes from PyTorch's allocator, so a CUDA graph can capture a step after one warm-up,
which compiles the kernels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from echox.kernels.unit_decode import assembly_kernel, kernel
from echox.kernels.unit_decode.codebooks import Codebooks
from echox.kernels.unit_decode.runs import Expansion, OpenRun, Runs, Spellings
from echox.kernels.unit_decode.state import UnitHead, UnitParams, UnitState

INTERPRET = triton.knobs.runtime.interpret
BLOCK = 1024  # items of a row at a time


@dataclass(frozen=True, slots=True)
class Shape:
    """The tile of `head_kernel` and the resources of a program."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


def head_shape(B: int, V: int, D: int, dtype: torch.dtype) -> Shape:
    """Few columns, so that a codec's small vocabulary reaches every multiprocessor."""
    rows = 16 if B <= 16 else 64
    if INTERPRET:  # an operation costs 0.1 ms, whatever its size
        return Shape(rows, min(4096, triton.next_power_of_2(V)), max(16, min(1024, triton.next_power_of_2(D))), 1, 1)
    if dtype.itemsize == 4:
        return Shape(16, 16, 64, 4, 3)
    if rows == 64:
        return Shape(64, 16, 128, 2, 4) if V <= 4096 else Shape(64, 32, 128, 4, 3)
    return Shape(16, 16, 512, 2, 4) if D >= 2048 else Shape(16, 16, 128, 4, 3)


def row_warps(block: int) -> int:
    """For `sample_kernel`: 16 scores per thread, but not fewer than four warps."""
    return min(16, max(4, block // 512))


def sample(hidden: Tensor, head: UnitHead, params: UnitParams, state: UnitState, forced: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Tokens [B, K] and the next step's vectors [B, E]; the state is advanced. Arguments as for `sample_units`."""
    scores = head_scores(hidden, head)
    B, V = scores.shape
    K, table = head.codebooks, head.embedding
    E = 0 if table is None else table.shape[1]
    tokens = scores.new_empty(B, K, dtype=torch.int64)
    vectors = None if table is None else table.new_empty(B, E)
    channels = min(2048, triton.next_power_of_2(max(E, 1)))
    block = triton.next_power_of_2(max(head.sizes))
    p, s = params, state
    kernel.sample_kernel[(B, K)](
        scores,
        head.at,
        p.repetition_penalty,
        p.presence_penalty,
        p.barred.view(torch.int8),
        p.stops.view(torch.int8),
        p.min_length,
        p.max_length,
        p.temperature,
        p.top_k,
        p.top_p,
        p.min_p,
        s.seed,
        s.length,
        s.finished.view(torch.int8),
        s.failed.view(torch.int8),
        s.seen.view(torch.int8),
        forced,
        tokens,
        table,
        vectors,
        V,
        E,
        head.pad_id,
        K=K,
        BLOCK=block,
        CHANNELS=channels,
        HAS_FORCED=forced is not None,
        HAS_TABLE=table is not None,
        num_warps=row_warps(block),
    )
    if K > 1:
        kernel.advance_kernel[(B,)](
            tokens,
            head.at,
            p.stops.view(torch.int8),
            p.max_length,
            s.length,
            s.finished.view(torch.int8),
            s.failed.view(torch.int8),
            s.seen.view(torch.int8),
            table,
            vectors,
            V,
            E,
            head.pad_id,
            K=K,
            BOOKS=triton.next_power_of_2(K),
            CHANNELS=channels,
            HAS_TABLE=table is not None,
            INTERPRET=INTERPRET,
            num_warps=4,
        )
    return tokens, vectors


def head_scores(hidden: Tensor, head: UnitHead) -> Tensor:
    """[B, D] -> float32 [B, V]."""
    B, D = hidden.shape
    V = len(head.weight)
    hidden = hidden if hidden.stride(1) == 1 else hidden.contiguous()
    scores = hidden.new_empty(B, V, dtype=torch.float32)
    shape = head_shape(B, V, D, head.weight.dtype)
    kernel.head_kernel[(triton.cdiv(V, shape.columns), triton.cdiv(B, shape.rows))](
        hidden,
        hidden.stride(0),
        head.weight,
        head.weight.stride(0),
        head.weight.stride(1),
        head.bias,
        scores,
        B,
        V,
        D,
        head.softcap,
        ROWS=shape.rows,
        COLUMNS=shape.columns,
        DEPTH=shape.depth,
        EVEN=D % shape.depth == 0,
        HAS_BIAS=head.bias is not None,
        HAS_SOFTCAP=bool(head.softcap),
        INTERPRET=INTERPRET,
        num_warps=shape.warps,
        num_stages=shape.stages,
    )
    return scores


def merged(units: Tensor, lengths: Tensor, open: OpenRun, last: Tensor) -> Runs:
    """See `runs.merged`."""
    B, T = units.shape
    R = T + 1
    found, durations = units.new_zeros(B, R), units.new_zeros(B, R)
    counts, unit, duration = (torch.empty_like(lengths) for _ in range(3))
    assembly_kernel.dedup_kernel[(B,)](
        units.contiguous(),
        lengths,
        open.unit,
        open.duration,
        last.view(torch.int8),
        found,
        durations,
        counts,
        unit,
        duration,
        T,
        R,
        BLOCK=min(BLOCK, triton.next_power_of_2(T)),
        num_warps=4,
    )
    return Runs(found, durations, counts, OpenRun(unit, duration))


def spelled(words: Tensor, lengths: Tensor, spellings: Spellings, capacity: int) -> Expansion:
    """See `runs.spelled`."""
    return _expanded(words, None, spellings, lengths, capacity)


def lasting(units: Tensor, durations: Tensor, lengths: Tensor, capacity: int) -> Expansion:
    """See `runs.lasting`."""
    return _expanded(units, durations, None, lengths, capacity)


def _expanded(items: Tensor, durations: Tensor | None, spellings: Spellings | None, lengths: Tensor, capacity: int) -> Expansion:
    B, U = items.shape
    out, wanted = items.new_zeros(B, capacity), torch.empty_like(lengths)
    assembly_kernel.expand_kernel[(B,)](
        items.contiguous(),
        None if durations is None else durations.contiguous(),
        None if spellings is None else spellings.offsets,
        None if spellings is None else spellings.units,
        lengths,
        out,
        wanted,
        U,
        capacity,
        0 if spellings is None else len(spellings.offsets) - 1,
        BLOCK=min(BLOCK, triton.next_power_of_2(U)),
        SPELLED=spellings is not None,
        num_warps=4,
    )
    return Expansion(out, wanted.clamp(max=capacity), wanted)


def looked_up(codes: Tensor, lengths: Tensor, books: Codebooks, channels_first: bool) -> Tensor:
    """[B, K, T] -> [B, T, C], or [B, C, T]."""
    B, K, T = codes.shape
    C = books.channels
    out = books.table.new_empty((B, C, T) if channels_first else (B, T, C))
    channels = min(128, triton.next_power_of_2(C))
    frames = triton.next_power_of_2(T) if INTERPRET else 16
    assembly_kernel.codebook_kernel[(B, triton.cdiv(T, frames), triton.cdiv(C, channels))](
        codes.contiguous(),
        lengths,
        books.firsts,
        books.counts,
        books.table,
        out,
        T,
        C,
        1 if channels_first else C,
        T if channels_first else 1,
        K,
        FRAMES=frames,
        CHANNELS=channels,
        INTERPRET=INTERPRET,
        num_warps=4,
    )
    return out
