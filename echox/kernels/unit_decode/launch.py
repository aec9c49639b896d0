"""Launches of the Triton kernels: tile shapes, results, and the arguments of each kernel.

Nothing here waits for the GPU, and all memory comes from PyTorch's allocator, so a CUDA graph can
capture a step after one warm-up, which compiles the kernels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from echox.kernels.unit_decode import kernel
from echox.kernels.unit_decode.head import UnitHead
from echox.kernels.unit_decode.state import UnitParams, UnitState

INTERPRET = triton.knobs.runtime.interpret


@dataclass(frozen=True, slots=True)
class Shape:
    """Tile of `head_kernel` and resources of a program."""

    rows: int
    columns: int
    depth: int  # channels of the product at a time
    warps: int
    stages: int


def head_shape(B: int, V: int, D: int, dtype: torch.dtype) -> Shape:
    """Return the tile for B hidden states of D channels and V entries; chosen on an H200.

    Columns are few, so that a codec's small vocabulary reaches every multiprocessor.
    """
    rows = 16 if B <= 16 else 64
    if INTERPRET:  # an operation costs 0.1 ms, whatever its size
        columns = min(4096, triton.next_power_of_2(V))
        depth = max(16, min(1024, triton.next_power_of_2(D)))
        return Shape(rows, columns, depth, 1, 1)
    if dtype.itemsize == 4:
        return Shape(16, 16, 64, 4, 3)
    if rows == 64:
        return Shape(64, 16, 128, 2, 4) if V <= 4096 else Shape(64, 32, 128, 4, 3)
    return Shape(16, 16, 512, 2, 4) if D >= 2048 else Shape(16, 16, 128, 4, 3)


def row_warps(block: int) -> int:
    """Return the warps of `sample_kernel`: 16 scores per thread, but at least four warps."""
    return min(16, max(4, block // 512))


def sample(
    hidden: Tensor, head: UnitHead, params: UnitParams, state: UnitState, forced: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Choose tokens [B, K] for hidden states [B, D] and advance the state; see `sample_units`.

    Returns:
        Tokens [B, K], and the next step's vectors [B, E], None where the head has no table.
    """
    scores = head_scores(hidden, head)
    B, table = len(scores), head.embedding
    tokens = scores.new_empty(B, head.codebooks, dtype=torch.int64)
    vectors = None if table is None else table.new_empty(B, table.shape[1])
    _launch_sample(scores, head, params, state, forced, tokens, vectors)
    # With one codebook the same program advances its row. With several the row ends by all of its
    # tokens, so another launch waits for them.
    if head.codebooks > 1:
        _launch_advance(head, params, state, tokens, vectors)
    return tokens, vectors


def _launch_sample(
    scores: Tensor,
    head: UnitHead,
    params: UnitParams,
    state: UnitState,
    forced: Tensor | None,
    tokens: Tensor,
    vectors: Tensor | None,
) -> None:
    B, V = scores.shape
    p, block = params, triton.next_power_of_2(max(head.sizes))
    masks = (p.barred.view(torch.int8), p.stops.view(torch.int8))
    lengths = (p.min_length, p.max_length)
    filters = (p.temperature, p.top_k, p.top_p, p.min_p)
    kernel.sample_kernel[(B, head.codebooks)](
        scores,
        head.at,
        p.repetition_penalty,
        p.presence_penalty,
        *masks,
        *lengths,
        *filters,
        state.seed,
        *_state_pointers(state),
        forced,
        tokens,
        head.embedding,
        vectors,
        V,
        _embedding_channels(head),
        head.pad_id,
        BLOCK=block,
        HAS_FORCED=forced is not None,
        num_warps=row_warps(block),
        **_table_options(head),
    )


def _launch_advance(
    head: UnitHead, params: UnitParams, state: UnitState, tokens: Tensor, vectors: Tensor | None
) -> None:
    kernel.advance_kernel[(len(tokens),)](
        tokens,
        head.at,
        params.stops.view(torch.int8),
        params.max_length,
        *_state_pointers(state),
        head.embedding,
        vectors,
        len(head.weight),
        _embedding_channels(head),
        head.pad_id,
        BOOKS=triton.next_power_of_2(head.codebooks),
        INTERPRET=INTERPRET,
        num_warps=4,
        **_table_options(head),
    )


def _state_pointers(state: UnitState) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # Kernels read and write masks as bytes.
    masks = (state.finished, state.failed, state.seen)
    finished, failed, seen = (mask.view(torch.int8) for mask in masks)
    return state.length, finished, failed, seen


def _embedding_channels(head: UnitHead) -> int:
    return 0 if head.embedding is None else head.embedding.shape[1]


def _table_options(head: UnitHead) -> dict[str, object]:
    channels = max(_embedding_channels(head), 1)
    return {
        "K": head.codebooks,
        "CHANNELS": min(2048, triton.next_power_of_2(channels)),
        "HAS_TABLE": head.embedding is not None,
    }


def head_scores(hidden: Tensor, head: UnitHead) -> Tensor:
    """Return float32 scores [B, V] of hidden states [B, D]."""
    B, D = hidden.shape
    V = len(head.weight)
    hidden = hidden if hidden.stride(1) == 1 else hidden.contiguous()
    scores = hidden.new_empty(B, V, dtype=torch.float32)
    shape = head_shape(B, V, D, head.weight.dtype)
    kernel.head_kernel[(triton.cdiv(V, shape.columns), triton.cdiv(B, shape.rows))](
        hidden,
        hidden.stride(0),
        head.weight,
        *head.weight.stride(),
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
