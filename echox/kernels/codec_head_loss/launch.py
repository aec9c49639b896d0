"""Launches of the Triton kernels: their scratch, and the two paths that use them.

Nothing here waits for the GPU, and all memory comes from PyTorch's allocator, so a CUDA graph can capture a step after one warm-up
(which compiles the kernels and copies the small tables of codebooks to the device).
"""

from __future__ import annotations

import torch
from torch import Tensor

from echox.errors import ConfigError
from echox.kernels.codec_head_loss import kernel
from echox.kernels.codec_head_loss.passes import GRADIENT_BYTES, SCRATCH_BYTES, Path, Problem, part, rows_that_fit
from echox.kernels.codec_head_loss.products import product
from echox.kernels.codec_head_loss.rows import Partial, RowResults, row_statistics
from echox.kernels.codec_head_loss.tiles import INTERPRET, SCALED, alignment, ceil_div, cut_table, is_hopper, processors, row_shape, split_table, tile_shape


def scaled(gradient: Tensor, upstream: Tensor, count: Tensor | float, dtype: torch.dtype) -> Tensor:
    """A float32 gradient times upstream [] over the count, rounded once: one pass where PyTorch takes two, the first of them slow."""
    made = torch.empty_like(gradient, dtype=dtype)
    size = gradient.numel()
    on_device = isinstance(count, Tensor)
    kernel.scale_kernel[(ceil_div(size, SCALED),)](
        gradient, upstream, count, made, size, BLOCK=SCALED, COUNT_ON_DEVICE=on_device, INTERPRET=INTERPRET, num_warps=8
    )
    return made


class TritonPath(Path):
    """What the paths over Triton kernels share."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        if not (problem.hidden.is_cuda or INTERPRET):
            raise ConfigError("impl=chunked and impl=fused run on a GPU; use impl=auto, torch or reference on a CPU (or set TRITON_INTERPRET=1 to try kernels)")
        if problem.wide is torch.float64:
            raise ConfigError("impl=chunked and impl=fused compute in float32; use impl=torch or reference for float64")
        self.x, self.w = (_with_unit_stride(tensor.to(problem.dtype)) for tensor in (self.x, self.w))
        self.cuts = cut_table(problem.terms.cuts, self.x.device)
        self._gradients: Tensor | None = None
        self._scores: Tensor | None = None

    @property
    def step(self) -> int:
        return max(64, GRADIENT_BYTES // (self.problem.terms.width * self.problem.dtype.itemsize) // 64 * 64)

    def statistics(self, rows: slice) -> Partial:
        p = self.problem
        parts = [row_statistics(self._products(inner).contiguous(), p.bias, p.targets[inner], p.terms) for inner in self._inner(rows)]
        return Partial(*(torch.cat([getattr(part, name) for part in parts]) for name in Partial.__dataclass_fields__))

    def _inner(self, rows: slice) -> list[slice]:
        step = rows_that_fit(SCRATCH_BYTES["cuda"], self.problem) // 64 * 64
        return [slice(start, min(start + step, rows.stop)) for start in range(rows.start, rows.stop, step)]

    def _products(self, rows: slice) -> Tensor:
        """x W^T of an inner chunk, in float32."""
        if self._scores is None:
            most = rows.stop - rows.start
            self._scores = self._room(most, torch.float32)
        return product(part(self.x, rows), self.w.T, out=part(self._scores, slice(0, rows.stop - rows.start)))

    def _gradient_room(self, rows: slice) -> Tensor:
        if self._gradients is None:
            self._gradients = self._room(rows.stop - rows.start, self.problem.dtype)
        return part(self._gradients, slice(0, rows.stop - rows.start))

    def _room(self, rows: int, dtype: torch.dtype) -> Tensor:
        """[R, V] whose rows start at multiples of 16 elements, as wide loads and tensor cores want."""
        V = self.problem.terms.width
        room = self.x.new_empty(rows, ceil_div(V, 16) * 16, dtype=dtype)
        return room if V % 16 == 0 else room[:, :V]

    def _flags(self) -> dict[str, bool]:
        p = self.problem
        return {
            "HAS_BIAS": p.bias is not None,
            "HAS_SMOOTHING": bool(p.terms.label_smoothing),
            "HAS_SOFTCAP": bool(p.terms.softcap),
            "INTERPRET": INTERPRET,
        }


def _with_unit_stride(matrix: Tensor) -> Tensor:
    return matrix if matrix.stride(1) == 1 else matrix.contiguous()


class ChunkedPath(TritonPath):
    """Library products into a scratch the cache can hold, and one row kernel over it.

    Source: the two sizes of chunk are ours; gradients in the forward pass as in Liger-Kernel (arXiv:2410.10989).
    """

    def losses(self, rows: slice) -> None:
        for inner in self._inner(rows):
            self._launch(self._products(inner), inner, self.results[inner], None, None)

    def gradients(self, rows: slice, lse: Tensor | None) -> Tensor:
        made = self._gradient_room(rows)
        for inner in self._inner(rows):
            here = part(made, slice(inner.start - rows.start, inner.stop - rows.start))
            self._launch(self._products(inner), inner, self.results[inner], None if lse is None else lse[inner], here)
        return made

    def _launch(self, z: Tensor, rows: slice, results: RowResults, lse: Tensor | None, made: Tensor | None) -> None:
        p, terms = self.problem, self.problem.terms
        largest = max(terms.sizes)
        N = z.shape[0]
        shape = row_shape(largest, N)
        kernel.row_kernel[(ceil_div(N, shape.rows), terms.codebooks)](
            z,
            z.stride(0),
            p.bias,
            part(p.targets, rows),
            None if p.weights is None else part(p.weights, rows),
            self.cuts,
            results.losses,
            results.lse if lse is None else lse,
            results.correct.view(torch.int8),
            z if made is None else made,
            z.stride(0) if made is None else made.stride(0),
            N,
            terms.ignore_index,
            terms.label_smoothing,
            terms.z_loss,
            terms.softcap,
            1 / terms.temperature,
            terms.whole,
            K=terms.codebooks,
            ROWS=shape.rows,
            BLOCK=shape.columns,
            ALIGN=alignment(terms.cuts),
            ONE_BLOCK=largest <= shape.columns,
            LSE_KNOWN=lse is not None,
            WANTS_GRADIENT=made is not None,
            HAS_WEIGHTS=p.weights is not None,
            HAS_Z=bool(terms.z_loss),
            PART=bool(terms.whole),
            num_warps=shape.warps,
            **self._flags(),
        )


class FusedPath(TritonPath):
    """Scores in tiles that are never written: a softmax's statistics by splits of the vocabulary, then the splits joined."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.shape = tile_shape(problem.dtype, self.x.shape[1], alignment(problem.terms.cuts), is_hopper(self.x.device))

    def losses(self, rows: slice) -> None:
        p, terms, shape = self.problem, self.problem.terms, self.shape
        x, targets, results = self.x[rows], p.targets[rows], self.results[rows]
        N, D = x.shape
        splits = split_table(terms.cuts, self._split_columns(N), x.device)
        S = len(splits.table)
        statistics = x.new_empty(4, S, N, dtype=torch.float32)
        best = x.new_empty(S, N, dtype=torch.int32)
        kernel.tile_statistics_kernel[(ceil_div(N, shape.rows), S)](
            x,
            x.stride(0),
            self.w,
            self.w.stride(0),
            p.bias,
            targets,
            splits.table,
            self.cuts,
            statistics,
            best,
            N,
            D,
            S * N,
            terms.softcap,
            1 / terms.temperature,
            K=terms.codebooks,
            **self._tile(),
        )
        kernel.combine_kernel[(ceil_div(N, 128), terms.codebooks)](
            statistics,
            best,
            targets,
            splits.firsts,
            self.cuts,
            results.losses,
            results.lse,
            results.correct.view(torch.int8),
            N,
            S * N,
            terms.ignore_index,
            terms.label_smoothing,
            terms.z_loss,
            K=terms.codebooks,
            ROWS=128,
            HAS_SMOOTHING=bool(terms.label_smoothing),
            HAS_Z=bool(terms.z_loss),
        )

    def gradients(self, rows: slice, lse: Tensor | None) -> Tensor:
        if lse is None:
            self.losses(rows)
            lse = self.results.lse
        p, terms, shape = self.problem, self.problem.terms, self.shape
        x, made = self.x[rows], self._gradient_room(rows)
        tiles = split_table(terms.cuts, shape.columns, x.device).table
        kernel.tile_gradient_kernel[(ceil_div(len(x), shape.rows), len(tiles))](
            x,
            x.stride(0),
            self.w,
            self.w.stride(0),
            p.bias,
            p.targets[rows],
            None if p.weights is None else p.weights[rows],
            tiles,
            self.cuts,
            lse[rows],
            made,
            made.stride(0),
            len(x),
            x.shape[1],
            terms.ignore_index,
            terms.label_smoothing,
            terms.z_loss,
            terms.softcap,
            1 / terms.temperature,
            terms.whole,
            K=terms.codebooks,
            HAS_WEIGHTS=p.weights is not None,
            HAS_Z=bool(terms.z_loss),
            PART=bool(terms.whole),
            **self._tile(),
        )
        return made

    def _split_columns(self, N: int) -> int:
        """Columns of a split: as many as leave every multiprocessor two programs."""
        row_blocks = ceil_div(N, self.shape.rows)
        wanted = max(1, 2 * processors(self.x.device) // row_blocks)
        return ceil_div(ceil_div(self.problem.terms.width, wanted), self.shape.columns) * self.shape.columns

    def _tile(self) -> dict[str, object]:
        shape = self.shape
        return {
            "ROWS": shape.rows,
            "COLUMNS": shape.columns,
            "DEPTH": shape.depth,
            "EVEN_DEPTH": self.x.shape[1] % shape.depth == 0,
            "ALIGN": alignment(self.problem.terms.cuts),
            "num_warps": shape.warps,
            "num_stages": shape.stages,
            **self._flags(),
        }
