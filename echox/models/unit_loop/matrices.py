"""Weights of a decode loop in the form in which products of few rows read them fastest."""

from __future__ import annotations

import torch
from torch import Tensor

from echox.device import has_bf16_products


class Matrix:
    """A weight [O, I] that rows [A, I] are multiplied with, as a copy: training goes on beside it."""

    def __init__(self, weight: Tensor) -> None:
        # On a CPU by inputs: a product of few rows then reads one stretch of memory.
        self._weight = weight.clone().T if weight.is_cuda else weight.T.clone(memory_format=torch.contiguous_format)

    def times(self, x: Tensor) -> Tensor:
        """Rows [A, I] -> [A, O], in the weight's precision."""
        return torch.mm(x, self._weight)

    def into(self, x: Tensor, out: Tensor) -> None:
        """Write the product of rows [A, I] to `out` [A, O]."""
        torch.mm(x, self._weight, out=out)

    def onto(self, x: Tensor, total: Tensor) -> None:
        """Add the product of rows [A, I] to `total` [A, O]."""
        total.addmm_(x, self._weight)


class NarrowMatrix(Matrix):
    """A weight of 16 bits on a CPU, whose products go to float32 tensors."""

    def into(self, x: Tensor, out: Tensor) -> None:
        out.copy_(self.times(x))

    def onto(self, x: Tensor, total: Tensor) -> None:
        total.add_(self.times(x))


class PackedMatrix(NarrowMatrix):
    """A bfloat16 weight as oneDNN's products want it: laid out once here, and not again in every product."""

    def __init__(self, weight: Tensor) -> None:
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())

    def times(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, None, "none", [], "")


def matrix_of(weight: Tensor) -> Matrix:
    """The fastest form of a weight [O, I] on its device and in its precision."""
    if weight.is_cuda or weight.dtype.itemsize > 2:
        return Matrix(weight)
    packs = weight.dtype is torch.bfloat16 and torch.backends.mkldnn.is_available() and has_bf16_products()
    return PackedMatrix(weight) if packs else NarrowMatrix(weight)
