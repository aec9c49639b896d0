"""The Llama body on a CPU: few calls, into preallocated memory; calls cost as much as products."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from echox.decoding.body import CachedBody


@dataclass(frozen=True, slots=True)
class CpuPlaces:
    """Where one step of A rows reads and writes; computed once a step and shared by all layers."""

    rotations: Tensor  # complex [A, 1, d/2]
    # Keys, values of the first layer, of the second ...: views [A, k, filled, d] of the cache.
    keys_values: tuple[Tensor, ...]
    # Where all rows write one position: of each layer, the view [2, A, k, d] of the cache.
    # Elsewhere `cells` instead: the [2 A k] rows of a layer's cache [2 slots k capacity, d].
    written: tuple[Tensor, ...] | None
    cells: Tensor | None
    mask: Tensor | None  # [A, 1, 1, filled] added to scores; None where every row has all of them


class ScratchBuffers:
    """Memory that a step of A rows writes, and views into it, allocated once for each A."""

    def __init__(self, body: CpuBody, A: int) -> None:
        k, groups, d = body.heads, body.groups, body.head_dim
        h = k * groups  # query heads
        accumulate, dtype = body.accumulate_dtype, body.dtype
        narrow = accumulate is not dtype
        self.x = torch.empty(A, body.width, dtype=accumulate)
        self.norms = torch.empty(A, 1, dtype=accumulate)
        self.directions = torch.empty_like(self.x)
        # In float32 one buffer serves both precisions, which saves a copy.
        self.normed = torch.empty_like(self.x, dtype=dtype) if narrow else self.directions
        self.qkv = torch.empty(A, (h + 2 * k) * d, dtype=accumulate)
        by_head = self.qkv.view(A, h + 2 * k, d)
        pairs = torch.view_as_complex(by_head.unflatten(2, (d // 2, 2)))
        self.rotated = pairs[:, : h + k]  # queries and keys, complex [A, h + k, d/2]
        self.wide_queries = by_head[:, :h].unflatten(1, (k, groups))
        self.queries = torch.empty(A, k, groups, d, dtype=dtype) if narrow else self.wide_queries
        self.new_keys_values = by_head[:, h:].unflatten(1, (2, k)).transpose(0, 1)  # [2, A, k, d]
        # Contiguous and in the cache's precision, for `index_copy_`.
        self.contiguous = torch.empty(2, A, k, d, dtype=dtype)
        self.contiguous_rows = self.contiguous.view(-1, d)
        self.gate_up = torch.empty(A, 2 * body.feed_forward, dtype=accumulate)
        self.gate, self.up = self.gate_up.chunk(2, dim=1)
        self.gated = torch.empty(A, body.feed_forward, dtype=dtype)


class CpuBody(CachedBody[CpuPlaces]):
    """A `CachedBody` that stores the two channels of a rotary pair side by side.

    Rotating queries and keys is then one complex product in place.
    """

    def __init__(
        self,
        body: transformers.LlamaModel,
        slots: int,
        capacity: int,
        dtype: torch.dtype,
        weight_of: Callable[[nn.Module], Tensor],
    ) -> None:
        super().__init__(body, slots, capacity, dtype, weight_of)
        self.accumulate_dtype = torch.promote_types(dtype, torch.float32)
        self.feed_forward = body.config.intermediate_size
        half = self.head_dim // 2
        cosine, sine = (
            table[0, :, :half].to(self.accumulate_dtype)
            for table in body.rotary_emb(self.norm, self.positions[None])
        )
        self.rotations = torch.complex(cosine, sine)  # [capacity, d/2]
        # The norm by calls that allocate nothing:
        # x / sqrt(mean x^2 + eps) = sqrt(C) x / hypot(|x|, sqrt(C eps)).
        self.norm_floor = torch.tensor((self.width * self.eps) ** 0.5, dtype=self.accumulate_dtype)
        self.scales = [
            (self._scale(layer.attention_norm), self._scale(layer.feed_norm))
            for layer in self.layers
        ]
        self.last_scale = self._scale(self.norm)
        self.layer_rows = [cache.view(-1, self.head_dim) for cache in self.cache]
        # Values lie behind all keys of their layer.
        halves = torch.arange(2)[:, None, None] * (slots * self.heads * capacity)
        self.first_cells = halves + self.first_cells  # [2, slots, k]
        self._buffers: dict[int, ScratchBuffers] = {}

    def places(self, positions: Tensor, filled: int, uniform: bool) -> CpuPlaces:
        """Where a step at `positions` [A] reads and writes; see `CachedBody.places`."""
        A = len(positions)
        keys_values = self.cache[:, :, :A, :, :filled].flatten(0, 1).unbind(0)
        if uniform:
            rotations = self.rotations[filled - 1].expand(A, 1, -1)
            written = self.cache[:, :, :A, :, filled - 1].unbind(0)
            return CpuPlaces(rotations, keys_values, written, None, None)
        rotations = self.rotations[positions][:, None]
        cells = (self.first_cells[:, :A] + positions[:, None]).view(-1)
        return CpuPlaces(rotations, keys_values, None, cells, self._mask(positions, filled))

    def step(self, x: Tensor, places: CpuPlaces) -> Tensor:
        """Input vectors [A, C] -> hidden states [A, C] after the final norm, at least float32."""
        buffers = self._buffers_for(len(x))
        x = buffers.x.copy_(x)
        for index, (layer, scales) in enumerate(zip(self.layers, self.scales)):
            attention_scale, feed_scale = scales
            layer.qkv.matmul_into(self._normed_into(x, attention_scale, buffers), buffers.qkv)
            buffers.rotated.mul_(places.rotations)
            self._write_cache(index, places, buffers)
            layer.out.add_matmul(self._attend(index, places, buffers), x)
            layer.gate_up.matmul_into(self._normed_into(x, feed_scale, buffers), buffers.gate_up)
            torch.mul(self.activation(buffers.gate), buffers.up, out=buffers.gated)
            layer.down.add_matmul(buffers.gated, x)
        # A product of its own, not a buffer: the caller keeps the result beyond the next step.
        return self._directions(x, buffers) * self.last_scale

    def _write_cache(self, index: int, places: CpuPlaces, buffers: ScratchBuffers) -> None:
        """Write this step's keys and values to the cache of layer `index`."""
        if places.written is not None:
            places.written[index].copy_(buffers.new_keys_values)
            return
        buffers.contiguous.copy_(buffers.new_keys_values)
        self.layer_rows[index].index_copy_(0, places.cells, buffers.contiguous_rows)

    def _attend(self, index: int, places: CpuPlaces, buffers: ScratchBuffers) -> Tensor:
        """The attention output [A, h d] of layer `index`, before its projection."""
        if buffers.queries is not buffers.wide_queries:
            buffers.queries.copy_(buffers.wide_queries)
        keys, values = places.keys_values[2 * index : 2 * index + 2]
        mixed = F.scaled_dot_product_attention(buffers.queries, keys, values, attn_mask=places.mask)
        return mixed.reshape(len(buffers.x), -1)

    def _normed_into(self, x: Tensor, scale: Tensor, buffers: ScratchBuffers) -> Tensor:
        """The RMS norm of `x` [A, C] in the engine's precision, in `buffers.normed`."""
        return torch.mul(self._directions(x, buffers), scale, out=buffers.normed)

    def _directions(self, x: Tensor, buffers: ScratchBuffers) -> Tensor:
        """Rows of `x` [A, C] by their length, up to the norm's epsilon, in `buffers.directions`."""
        norms = torch.linalg.vector_norm(x, dim=-1, keepdim=True, out=buffers.norms)
        return torch.div(x, torch.hypot(norms, self.norm_floor, out=norms), out=buffers.directions)

    def _scale(self, weight: Tensor) -> Tensor:
        return weight.to(self.accumulate_dtype) * self.width**0.5

    def _buffers_for(self, A: int) -> ScratchBuffers:
        if A not in self._buffers:
            self._buffers[A] = ScratchBuffers(self, A)
        return self._buffers[A]

    def _rotated_from(self, begin: int, x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.to(self.accumulate_dtype).unflatten(-1, (-1, 2)))
        rotated = torch.view_as_real(pairs * self.rotations[begin : begin + x.shape[1], None])
        return rotated.flatten(-2).to(self.dtype)

    def _rotary_order(self, weight: Tensor) -> Tensor:
        half = self.head_dim // 2
        # From all first parts of a head, then all second parts, to pairs side by side.
        return weight.unflatten(0, (-1, 2, half)).transpose(1, 2).flatten(0, 2)
