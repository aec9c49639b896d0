"""The Llama body on a GPU: one kernel for all that lies between two products, to launch less."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from echox.decoding.body import CachedBody
from echox.kernels.decoder_step import apply_rotary_and_cache, fused_add_rmsnorm, gated


@dataclass(frozen=True, slots=True)
class GpuPlaces:
    """Where one step of A rows reads and writes; the kernels find the cells by themselves."""

    positions: Tensor  # int64 [A] position each row writes
    filled: int  # positions of the cache that attention reads
    mask: Tensor | None  # [A, 1, 1, filled] added to scores; None where every row has all of them


class GpuBody(CachedBody[GpuPlaces]):
    """A `CachedBody` whose step is four products, attention and four kernels a layer.

    Its layers gate by SiLU, as Llama's do.
    """

    def places(self, positions: Tensor, filled: int, uniform: bool) -> GpuPlaces:
        """Where a step at `positions` [A] reads and writes; see `CachedBody.places`."""
        return GpuPlaces(positions, filled, None if uniform else self._mask(positions, filled))

    def step(self, x: Tensor, places: GpuPlaces) -> Tensor:
        """Input vectors [A, C] -> hidden states [A, C] after the final norm, float32."""
        A = len(x)
        keys = self.heads * self.groups
        # The sum with a block's output waits for the next norm, whose kernel adds it on the way.
        x, update = x.float(), None
        for layer, cache in zip(self.layers, self.cache):
            x, normed = fused_add_rmsnorm(x, update, layer.attention_norm, self.eps, self.dtype)
            queries = apply_rotary_and_cache(
                layer.qkv.matmul(normed), places.positions, self.cosine, self.sine, cache, keys
            )
            past = cache[:, :A, :, : places.filled]  # [2, A, k, filled, d]
            queries = queries.view(A, self.heads, self.groups, self.head_dim)
            mixed = F.scaled_dot_product_attention(queries, past[0], past[1], attn_mask=places.mask)
            update = layer.out.matmul(mixed.reshape(A, -1))
            x, normed = fused_add_rmsnorm(x, update, layer.feed_norm, self.eps, self.dtype)
            update = layer.down.matmul(gated(layer.gate_up.matmul(normed)))
        return fused_add_rmsnorm(x, update, self.norm, self.eps, x.dtype)[1]
