"""Tiles of the Triton kernels by shape and type, and the tables of columns that they read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import torch
import triton
from torch import Tensor

INTERPRET = triton.knobs.runtime.interpret
# Above this many entries a row is read twice, the second time out of the cache: faster than registers for all of it (see the README).
REGISTER_ROW = 4096


# Elements of a gradient that a program of `scale_kernel` scales.
SCALED = 1 << 20 if INTERPRET else 4096


@dataclass(frozen=True, slots=True)
class Shape:
    """The tile of a kernel and the resources of a program."""

    rows: int
    columns: int
    warps: int
    depth: int = 0  # of the matrix product, channels
    stages: int = 1


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up (Triton's own is ten times as long)."""
    return -(-a // b)


@lru_cache(maxsize=64)
def row_shape(largest: int, rows: int) -> Shape:
    """For `row_kernel`, by the entries of the largest codebook: 16 scores per thread, or 32 of a very long row."""
    block = triton.next_power_of_2(largest) if largest <= REGISTER_ROW else 4096 if largest <= 16384 else 16384
    if INTERPRET:  # an operation costs 0.1 ms, whatever its size
        return Shape(min(triton.next_power_of_2(rows), (1 << 19) // block), block, 1)
    at_once = max(1, 1024 // block)
    return Shape(at_once, block, min(16, max(1, at_once * block // 512)))


def tile_shape(dtype: torch.dtype, D: int, align: int, hopper: bool) -> Shape:
    """For the `tile_*` kernels; `align` divides the first column of every codebook."""
    if INTERPRET:
        return Shape(128, 2048, 1, max(16, min(256, triton.next_power_of_2(D))))
    if dtype.itemsize == 2:
        # The addresses of columns that cannot be stored in wide pieces take the registers of half a tile.
        return Shape(128, 128 if align >= 8 else 64, 8, 64, 4 if hopper else 3)  # a fourth stage spills on sm_80
    return Shape(64, 64, 4, 32, 3)  # exact float32 products: no tensor core, registers count


@dataclass(frozen=True, slots=True)
class Splits:
    """Columns dealt out to programs, none across two codebooks."""

    table: Tensor  # [S, 3] int32: codebook, first and last + 1 column
    firsts: Tensor  # [K + 1] int32: first split of each codebook


@lru_cache(maxsize=64)
def cut_table(cuts: tuple[int, ...], device: torch.device) -> Tensor:
    """[K + 1] int32."""
    return torch.tensor(cuts, dtype=torch.int32, device=device)


@lru_cache(maxsize=64)
def split_table(cuts: tuple[int, ...], columns: int, device: torch.device) -> Splits:
    """Every codebook in pieces of `columns` columns, the last one shorter."""
    pieces = [[(k, at, min(at + columns, stop)) for at in range(start, stop, columns)] for k, (start, stop) in enumerate(zip(cuts, cuts[1:]))]
    table = torch.tensor([piece for codebook in pieces for piece in codebook], dtype=torch.int32, device=device)
    return Splits(table, torch.tensor([0, *accumulate(map(len, pieces))], dtype=torch.int32, device=device))


def alignment(cuts: tuple[int, ...]) -> int:
    """The largest power of 2 up to 16 that divides every cut: what loads may count on."""
    return math.gcd(16, *cuts)


@lru_cache(maxsize=8)
def is_hopper(device: torch.device) -> bool:
    """Whether a GPU is of NVIDIA's generation 9.0 or later."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


@lru_cache(maxsize=8)
def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; on a CPU there is one."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
