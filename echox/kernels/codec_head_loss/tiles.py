"""Tile shapes of the Triton kernels by size and dtype, and the tables of columns they read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import torch
import triton
from torch import Tensor

INTERPRET = triton.knobs.runtime.interpret
# Above this many entries a row is read twice, the second time from the cache: faster than
# registers for all of it (see the README).
REGISTER_ROW = 4096
# Elements of a gradient that a program of `scale_kernel` scales. The interpreter pays 0.1 ms an
# operation whatever its size, so there few large blocks are fastest.
SCALE_BLOCK = 1 << 20 if INTERPRET else 4096


@dataclass(frozen=True, slots=True)
class Shape:
    """Tile of a kernel and resources of a program."""

    rows: int
    columns: int
    warps: int
    depth: int = 0  # channels of the matrix product at a time
    stages: int = 1


def ceil_div(a: int, b: int) -> int:
    """Return a / b, rounded up (Triton's own function takes ten times as long)."""
    return -(-a // b)


@lru_cache(maxsize=64)
def row_shape(largest: int, rows: int) -> Shape:
    """Return the tile of `row_kernel`: 16 scores per thread, or 32 of a very long row.

    Args:
        largest: entries of the largest codebook.
        rows: rows of the chunk, of which the interpreter takes as many at once as it can.
    """
    if largest <= REGISTER_ROW:
        block = triton.next_power_of_2(largest)
    else:
        block = 4096 if largest <= 16384 else 16384
    if INTERPRET:  # an operation costs 0.1 ms, whatever its size
        return Shape(min(triton.next_power_of_2(rows), (1 << 19) // block), block, 1)
    rows_at_once = max(1, 1024 // block)
    return Shape(rows_at_once, block, min(16, max(1, rows_at_once * block // 512)))


def tile_shape(dtype: torch.dtype, D: int, align: int, hopper: bool) -> Shape:
    """Return the tile of the `tile_*` kernels.

    Args:
        dtype: factors of the product.
        align: divides the first column of every codebook.
        hopper: whether the GPU is of generation 9.0 or later.
    """
    if INTERPRET:
        return Shape(128, 2048, 1, max(16, min(256, triton.next_power_of_2(D))))
    if dtype.itemsize == 2:
        # The addresses of columns that cannot be stored in wide pieces take the registers of half
        # a tile; a fourth stage spills on sm_80.
        return Shape(128, 128 if align >= 8 else 64, 8, 64, 4 if hopper else 3)
    # Exact float32 products use no tensor core, and registers are what limits their tiles.
    return Shape(64, 64, 4, 32, 3)


@dataclass(frozen=True, slots=True)
class Splits:
    """Columns in pieces, one for a program, none across two codebooks."""

    table: Tensor  # [S, 3] int32: codebook, first and last + 1 column
    firsts: Tensor  # [K + 1] int32: first split of each codebook


# The tables below are kept per device: a copy in every call would wait for the GPU, and none could
# be captured into a CUDA graph.


@lru_cache(maxsize=64)
def cut_table(cuts: tuple[int, ...], device: torch.device) -> Tensor:
    """Return the cuts as an int32 tensor [K + 1] on the device."""
    return torch.tensor(cuts, dtype=torch.int32, device=device)


@lru_cache(maxsize=64)
def split_table(cuts: tuple[int, ...], columns: int, device: torch.device) -> Splits:
    """Split every codebook into pieces of `columns` columns, the last one shorter.

    Args:
        cuts: [K + 1] rising columns of the codebooks.
    """
    pieces = [
        [(k, first, min(first + columns, stop)) for first in range(start, stop, columns)]
        for k, (start, stop) in enumerate(zip(cuts, cuts[1:]))
    ]
    table = [piece for codebook in pieces for piece in codebook]
    firsts = [0, *accumulate(map(len, pieces))]
    return Splits(
        torch.tensor(table, dtype=torch.int32, device=device),
        torch.tensor(firsts, dtype=torch.int32, device=device),
    )


def alignment(cuts: tuple[int, ...]) -> int:
    """Return the largest power of 2 up to 16 that divides every cut; loads count on it."""
    return math.gcd(16, *cuts)


@lru_cache(maxsize=8)
def is_hopper(device: torch.device) -> bool:
    """Return whether a GPU is of NVIDIA's generation 9.0 or later."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


@lru_cache(maxsize=8)
def processors(device: torch.device) -> int:
    """Return the number of multiprocessors of a GPU; a CPU counts as one."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count
