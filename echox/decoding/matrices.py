"""Weights of the decode engine, laid out for the fastest products with few rows."""

from __future__ import annotations

import torch
from torch import Tensor

from echox.core.device import has_bf16_products


class Matrix:
    """A copy of a weight [O, I] for products with rows [A, I]; training the original continues."""

    def __init__(self, weight: Tensor) -> None:
        if weight.is_cuda:
            self._weight = weight.clone().T
        else:
            # Contiguous by inputs: a product of few rows then reads one stretch of memory.
            self._weight = weight.T.clone(memory_format=torch.contiguous_format)

    def matmul(self, x: Tensor) -> Tensor:
        """Rows [A, I] -> new rows [A, O], in the weight's precision."""
        return torch.mm(x, self._weight)

    def matmul_into(self, x: Tensor, out: Tensor) -> None:
        """Write the product of rows [A, I] to `out` [A, O]."""
        torch.mm(x, self._weight, out=out)

    def add_matmul(self, x: Tensor, total: Tensor) -> None:
        """Add the product of rows [A, I] to `total` [A, O], in place."""
        total.addmm_(x, self._weight)


class NarrowMatrix(Matrix):
    """A 16-bit weight on a CPU, whose products are written to float32 tensors."""

    # `torch.mm(out=)` and `addmm_` refuse an output of another dtype, hence the copies.

    def matmul_into(self, x: Tensor, out: Tensor) -> None:
        """Write the product of rows [A, I] to `out` [A, O], float32."""
        out.copy_(self.matmul(x))

    def add_matmul(self, x: Tensor, total: Tensor) -> None:
        """Add the product of rows [A, I] to `total` [A, O], float32, in place."""
        total.add_(self.matmul(x))


class PackedMatrix(NarrowMatrix):
    """A bfloat16 weight in oneDNN's own layout: packed once here instead of in every product."""

    def __init__(self, weight: Tensor) -> None:
        # The operations that torch.compile's inductor takes for frozen weights.
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())

    def matmul(self, x: Tensor) -> Tensor:
        """Rows [A, I] -> new rows [A, O] in bfloat16."""
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, None, "none", [], "")


def matrix_of(weight: Tensor) -> Matrix:
    """The fastest form of a weight [O, I] on its device and in its precision."""
    if weight.is_cuda or weight.dtype.itemsize > 2:
        return Matrix(weight)
    packs = (
        weight.dtype is torch.bfloat16
        and torch.backends.mkldnn.is_available()
        and has_bf16_products()
    )
    return PackedMatrix(weight) if packs else NarrowMatrix(weight)
