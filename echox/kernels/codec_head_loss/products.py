"""Matrix products that sum in a wider dtype than their factors have."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from echox.core.device import multiplies_bf16_fast


def product(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """Write a [M, K] times b [K, N] into out [M, N], summed and kept in out's dtype."""
    if a.dtype == out.dtype:
        return torch.mm(a, b, out=out)
    # `out_dtype` keeps 16-bit factors on a GPU's tensor cores; CPUs have no such product.
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=out.dtype, out=out)
    return torch.mm(a.to(out.dtype), b.to(out.dtype), out=out)


def add_product(total: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Add a [M, K] times b [K, N] to total [M, N], in total's dtype."""
    if a.dtype == total.dtype:
        return total.addmm_(a, b)
    if a.is_cuda:
        return torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    return total.addmm_(a.to(total.dtype), b.to(total.dtype))


def scaled_product(scale: float, a: Tensor, b: Tensor) -> Tensor:
    """Return scale * a [M, K] times b [K, N], in one pass over the result."""
    # With beta 0 the uninitialised memory is not read, whatever stands there.
    return a.new_empty(a.shape[0], b.shape[1]).addmm_(a, b, beta=0, alpha=scale)


@contextmanager
def cpu_products(dtype: torch.dtype) -> Iterator[None]:
    """Within, float32 products on a CPU multiply in bfloat16 and sum in float32.

    Nothing changes unless `dtype` is bfloat16 and the CPU multiplies it in hardware. It is what a
    GPU's tensor cores do, and takes no longer than bfloat16 products, whose sums are rounded to
    bfloat16. The setting is the process's: products that other threads compute in these
    milliseconds follow it too.
    """
    if dtype is not torch.bfloat16 or not multiplies_bf16_fast(torch.device("cpu")):
        yield
        return
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # set at import
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before
