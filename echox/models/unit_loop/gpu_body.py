"""The Llama body on a GPU, where a step of few rows costs what its launches cost: four products a layer, attention, and four kernels."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from echox.kernels.decoder_step import added_norm, gated, turned
from echox.models.unit_loop.body import CachedBody


@dataclass(frozen=True, slots=True)
class GpuPlaces:
    """Where one step of A rows stands; made once a step and read by every layer."""

    at: Tensor  # int64 [A] position each row writes
    filled: int  # positions of the cache that are looked at
    mask: Tensor | None  # [A, 1, 1, filled] added to scores; None where every row has all of them


class GpuBody(CachedBody):
    """A `CachedBody` whose steps are few launches; its layers gate by SiLU, as Llama's do."""

    def places(self, at: Tensor, filled: int, level: bool) -> GpuPlaces:
        return GpuPlaces(at, filled, None if level else self._mask(at, filled))

    def step(self, x: Tensor, places: GpuPlaces) -> Tensor:
        A = len(x)
        keys = self.heads * self.groups
        x, fed = x.float(), None
        for layer, cache in zip(self.layers, self.cache):
            x, normed = added_norm(x, fed, layer.attention_norm, self.eps, self.dtype)
            queries = turned(layer.qkv.times(normed), places.at, self.cosine, self.sine, cache, keys)
            past = cache[:, :A, :, : places.filled]
            queries = queries.view(A, self.heads, self.groups, self.head_dim)
            mixed = F.scaled_dot_product_attention(queries, past[0], past[1], attn_mask=places.mask)
            x, normed = added_norm(x, layer.out.times(mixed.reshape(A, -1)), layer.feed_norm, self.eps, self.dtype)
            fed = layer.down.times(gated(layer.gate_up.times(normed)))
        return added_norm(x, fed, self.norm, self.eps, x.dtype)[1]
