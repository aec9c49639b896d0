"""Launches of the Triton kernels: their scratch buffers, and the two paths that use them.

Nothing here waits for the GPU, and all memory comes from PyTorch's allocator, so a CUDA graph can
capture a step after one warm-up (which compiles the kernels and copies the small tables of
codebooks to the device).
"""

from __future__ import annotations

import torch
from torch import Tensor

from echox.core.errors import ConfigError
from echox.kernels.codec_head_loss import kernel
from echox.kernels.codec_head_loss.paths import (
    GRADIENT_BYTES,
    SCRATCH_BYTES,
    Path,
    Problem,
    row_view,
    rows_that_fit,
)
from echox.kernels.codec_head_loss.products import product
from echox.kernels.codec_head_loss.rows import RowResults
from echox.kernels.codec_head_loss.terms import Terms
from echox.kernels.codec_head_loss.tiles import (
    INTERPRET,
    SCALE_BLOCK,
    alignment,
    ceil_div,
    cut_table,
    is_hopper,
    processors,
    row_shape,
    split_table,
    tile_shape,
)


def scale_gradient(
    gradient: Tensor, upstream: Tensor, count: Tensor | float, dtype: torch.dtype
) -> Tensor:
    """Multiply a float32 gradient by upstream [] over the count, rounded once to `dtype`.

    It is one pass where PyTorch takes two, the first of them slow.
    """
    scaled = torch.empty_like(gradient, dtype=dtype)
    size = gradient.numel()
    kernel.scale_kernel[(ceil_div(size, SCALE_BLOCK),)](
        gradient,
        upstream,
        count,
        scaled,
        size,
        BLOCK=SCALE_BLOCK,
        COUNT_ON_DEVICE=isinstance(count, Tensor),
        INTERPRET=INTERPRET,
        num_warps=8,
    )
    return scaled


class TritonPath(Path):
    """Scratch buffers and launch options that the paths over Triton kernels share.

    Raises:
        ConfigError: the problem is on a CPU and Triton is not interpreted, or it is in float64.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        if not (problem.hidden.is_cuda or INTERPRET):
            raise ConfigError(
                "impl=chunked and impl=fused run on a GPU; use impl=auto, torch or reference "
                "on a CPU (or set TRITON_INTERPRET=1 to try kernels)"
            )
        if problem.wide is torch.float64:
            raise ConfigError(
                "impl=chunked and impl=fused compute in float32; "
                "use impl=torch or reference for float64"
            )
        self.x, self.w = (
            _with_unit_stride(tensor.to(problem.dtype)) for tensor in (self.x, self.w)
        )
        self.cuts = cut_table(problem.terms.cuts, self.x.device)
        # Allocated by the first chunk, the largest, and used again by the others.
        self._gradients: Tensor | None = None
        self._scores: Tensor | None = None

    @property
    def chunk_rows(self) -> int:
        """Rows of an outer chunk, a multiple of 64 so that tiles of rows are full."""
        row_bytes = self.problem.terms.width * self.problem.dtype.itemsize
        return max(64, GRADIENT_BYTES // row_bytes // 64 * 64)

    def _inner_chunks(self, rows: slice) -> list[slice]:
        size = rows_that_fit(SCRATCH_BYTES["cuda"], self.problem) // 64 * 64
        return [
            slice(start, min(start + size, rows.stop))
            for start in range(rows.start, rows.stop, size)
        ]

    def _products(self, rows: slice) -> Tensor:
        """Return x W^T [R, V] of an inner chunk, in float32."""
        count = rows.stop - rows.start
        if self._scores is None:
            self._scores = self._scratch(count, torch.float32)
        return product(
            row_view(self.x, rows), self.w.T, out=row_view(self._scores, slice(0, count))
        )

    def _gradient_scratch(self, rows: slice) -> Tensor:
        count = rows.stop - rows.start
        if self._gradients is None:
            self._gradients = self._scratch(count, self.problem.dtype)
        return row_view(self._gradients, slice(0, count))

    def _scratch(self, rows: int, dtype: torch.dtype) -> Tensor:
        """Allocate a matrix [R, V] whose rows start at multiples of 16 elements."""
        # Wide loads and tensor cores want them so.
        V = self.problem.terms.width
        buffer = self.x.new_empty(rows, ceil_div(V, 16) * 16, dtype=dtype)
        return buffer if V % 16 == 0 else buffer[:, :V]

    def _flags(self) -> dict[str, bool]:
        p = self.problem
        return {
            "HAS_BIAS": p.bias is not None,
            "HAS_SMOOTHING": bool(p.terms.label_smoothing),
            "HAS_SOFTCAP": bool(p.terms.softcap),
            "INTERPRET": INTERPRET,
        }

    def _gradient_flags(self) -> dict[str, bool]:
        p = self.problem
        return {
            "HAS_WEIGHTS": p.weights is not None,
            "HAS_Z": bool(p.terms.z_loss),
        }

    def _row_weights(self, rows: slice) -> Tensor | None:
        weights = self.problem.weights
        return None if weights is None else row_view(weights, rows)


def _with_unit_stride(matrix: Tensor) -> Tensor:
    # Kernels take one stride a matrix: that of its rows.
    return matrix if matrix.stride(1) == 1 else matrix.contiguous()


def _loss_numbers(terms: Terms) -> tuple[int, float, float]:
    """Return ignore_index, smoothing and z_loss, in the kernels' order."""
    return terms.ignore_index, terms.label_smoothing, terms.z_loss


def _gradient_numbers(terms: Terms) -> tuple[int, float, float, float, float]:
    """Return `_loss_numbers`, then softcap and scale, in the kernels' order."""
    return (*_loss_numbers(terms), terms.softcap, 1 / terms.temperature)


class ChunkedPath(TritonPath):
    """Library products into a scratch buffer of scores, and one row kernel over it.

    Raises:
        ConfigError: as `TritonPath`.

    Source: the two sizes of chunk are ours; gradients in the forward pass as in Liger-Kernel,
        Hsu et al. 2024, arXiv:2410.10989.
    """

    def losses(self, rows: slice) -> None:
        """Write the results [R, K] of some rows."""
        for inner in self._inner_chunks(rows):
            self._launch(self._products(inner), inner, self.results[inner], None, None)

    def gradients(self, rows: slice, lse: Tensor | None) -> Tensor:
        """Return the gradient [R, V] with respect to the scores of some rows."""
        d_scores = self._gradient_scratch(rows)
        for inner in self._inner_chunks(rows):
            d_inner = row_view(d_scores, slice(inner.start - rows.start, inner.stop - rows.start))
            inner_lse = None if lse is None else lse[inner]
            self._launch(self._products(inner), inner, self.results[inner], inner_lse, d_inner)
        return d_scores

    def _launch(
        self,
        z: Tensor,
        rows: slice,
        results: RowResults,
        lse: Tensor | None,
        d_scores: Tensor | None,
    ) -> None:
        """Run the row kernel over products z [R, V]; it writes `d_scores` where they are given."""
        p, terms = self.problem, self.problem.terms
        N, largest = z.shape[0], max(terms.sizes)
        shape = row_shape(largest, N)
        inputs = (z, z.stride(0), p.bias, row_view(p.targets, rows), self._row_weights(rows))
        lse_pointer = results.lse if lse is None else lse  # written, or read
        outputs = (results.losses, lse_pointer, results.correct.view(torch.int8))
        # The kernel computes addresses of gradients even where it writes none.
        d = z if d_scores is None else d_scores
        kernel.row_kernel[(ceil_div(N, shape.rows), terms.codebooks)](
            *inputs,
            self.cuts,
            *outputs,
            d,
            d.stride(0),
            N,
            *_gradient_numbers(terms),
            K=terms.codebooks,
            ROWS=shape.rows,
            BLOCK=shape.columns,
            ALIGN=alignment(terms.cuts),
            ONE_BLOCK=largest <= shape.columns,
            LSE_KNOWN=lse is not None,
            WANTS_GRADIENT=d_scores is not None,
            num_warps=shape.warps,
            **self._gradient_flags(),
            **self._flags(),
        )


class FusedPath(TritonPath):
    """Tiles of scores that are never written.

    Softmax statistics are computed by splits of the vocabulary, and the splits joined; gradients
    compute the scores again.

    Raises:
        ConfigError: as `TritonPath`.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        align = alignment(problem.terms.cuts)
        hopper = is_hopper(self.x.device)
        self.shape = tile_shape(problem.dtype, self.x.shape[1], align, hopper)

    def losses(self, rows: slice) -> None:
        """Write the results [R, K] of some rows."""
        terms, x, targets = self.problem.terms, self.x[rows], self.problem.targets[rows]
        N, D = x.shape
        splits = split_table(terms.cuts, self._split_columns(N), x.device)
        S = len(splits.table)
        statistics = x.new_empty(4, S, N, dtype=torch.float32)
        top_entries = x.new_empty(S, N, dtype=torch.int32)
        kernel.tile_statistics_kernel[(ceil_div(N, self.shape.rows), S)](
            *self._factors(x),
            targets,
            splits.table,
            self.cuts,
            statistics,
            top_entries,
            N,
            D,
            S * N,
            terms.softcap,
            1 / terms.temperature,
            K=terms.codebooks,
            **self._tile_options(),
        )
        self._combine(statistics, top_entries, targets, splits.firsts, self.results[rows])

    def _combine(
        self,
        statistics: Tensor,
        top_entries: Tensor,
        targets: Tensor,
        first_splits: Tensor,
        results: RowResults,
    ) -> None:
        """Join the statistics [4, S, R] of splits to results [R, K]."""
        terms = self.problem.terms
        S, N = top_entries.shape
        kernel.combine_kernel[(ceil_div(N, 128), terms.codebooks)](
            statistics,
            top_entries,
            targets,
            first_splits,
            self.cuts,
            results.losses,
            results.lse,
            results.correct.view(torch.int8),
            N,
            S * N,
            *_loss_numbers(terms),
            K=terms.codebooks,
            ROWS=128,
            HAS_SMOOTHING=bool(terms.label_smoothing),
            HAS_Z=bool(terms.z_loss),
        )

    def gradients(self, rows: slice, lse: Tensor | None) -> Tensor:
        """Return the gradient [R, V] with respect to the scores of some rows."""
        if lse is None:
            self.losses(rows)
            lse = self.results.lse
        p, terms = self.problem, self.problem.terms
        x, d_scores = self.x[rows], self._gradient_scratch(rows)
        N, D = x.shape
        tiles = split_table(terms.cuts, self.shape.columns, x.device).table
        kernel.tile_gradient_kernel[(ceil_div(N, self.shape.rows), len(tiles))](
            *self._factors(x),
            p.targets[rows],
            self._row_weights(rows),
            tiles,
            self.cuts,
            lse[rows],
            d_scores,
            d_scores.stride(0),
            N,
            D,
            *_gradient_numbers(terms),
            K=terms.codebooks,
            **self._gradient_flags(),
            **self._tile_options(),
        )
        return d_scores

    def _factors(self, x: Tensor) -> tuple[Tensor, int, Tensor, int, Tensor | None]:
        return x, x.stride(0), self.w, self.w.stride(0), self.problem.bias

    def _split_columns(self, N: int) -> int:
        """Return the columns of a split, so that every multiprocessor has two programs."""
        columns = self.shape.columns
        row_blocks = ceil_div(N, self.shape.rows)
        splits = max(1, 2 * processors(self.x.device) // row_blocks)
        return ceil_div(ceil_div(self.problem.terms.width, splits), columns) * columns

    def _tile_options(self) -> dict[str, object]:
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
