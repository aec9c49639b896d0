"""The Llama body on a CPU, where a step of few rows costs as many microseconds in calls as in products: few calls, no new memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from echox.models.unit_loop.body import CachedBody


@dataclass(frozen=True, slots=True)
class CpuPlaces:
    """Where one step of A rows stands; made once a step and read by every layer."""

    turns: Tensor  # complex64 [A, 1, d/2]
    keys_values: tuple[Tensor, ...]  # keys, values of the first layer, of the second ...: [A, k, filled, d]
    written: tuple[Tensor, ...] | None  # of each layer, [2, A, k, d] of the cache, where all rows write one position
    cells: Tensor | None  # [2 A k] rows of a layer's cache, as [2 slots k capacity, d], elsewhere
    mask: Tensor | None  # [A, 1, 1, filled] added to scores; None where every row has all of them


class Room:
    """What a step of A rows writes, and views into it, made once."""

    def __init__(self, body: CpuBody, A: int) -> None:
        heads, groups, d = body.heads, body.groups, body.head_dim
        wide, keys = body.wide, body.heads * body.groups
        self.x = torch.empty(A, body.width, dtype=wide)
        self.size = torch.empty(A, 1, dtype=wide)
        self.direction = torch.empty_like(self.x)
        self.normed = self.direction if wide is body.dtype else torch.empty_like(self.x, dtype=body.dtype)
        self.qkv = torch.empty(A, (keys + 2 * heads) * d, dtype=wide)
        by_head = self.qkv.view(A, keys + 2 * heads, d)
        self.turned = torch.view_as_complex(by_head.unflatten(2, (d // 2, 2)))[:, : keys + heads]
        self.asked = by_head[:, :keys].unflatten(1, (heads, groups))
        self.queries = self.asked if wide is body.dtype else torch.empty(A, heads, groups, d, dtype=body.dtype)
        self.fresh = by_head[:, keys:].unflatten(1, (2, heads)).transpose(0, 1)
        self.scattered = torch.empty(2, A, heads, d, dtype=body.dtype)
        self.scattered_rows = self.scattered.view(-1, d)
        self.gate_up = torch.empty(A, 2 * body.inside, dtype=wide)
        self.gate, self.up = self.gate_up.chunk(2, dim=1)
        self.fed = torch.empty(A, body.inside, dtype=body.dtype)


class CpuBody(CachedBody):
    """A `CachedBody` whose queries and keys have the two channels of a pair side by side, so that turning them is one product."""

    def __init__(self, body: transformers.LlamaModel, slots: int, capacity: int, dtype: torch.dtype, weight_of: Callable[[nn.Linear], Tensor]) -> None:
        super().__init__(body, slots, capacity, dtype, weight_of)
        self.wide = torch.promote_types(dtype, torch.float32)
        self.inside = body.config.intermediate_size
        half = self.head_dim // 2
        cosine, sine = (table[0, :, :half].to(self.wide) for table in body.rotary_emb(self.norm, self.positions[None]))
        self.turns = torch.complex(cosine, sine)
        # x / sqrt(mean x^2 + eps) = sqrt(C) x / sqrt(|x|^2 + C eps)
        self.least = torch.tensor((self.width * self.eps) ** 0.5, dtype=self.wide)
        self.scales = [(self._scale(layer.attention_norm), self._scale(layer.feed_norm)) for layer in self.layers]
        self.last_scale = self._scale(self.norm)
        self.rows_of_layers = [cache.view(-1, self.head_dim) for cache in self.cache]
        halves = torch.arange(2)[:, None, None] * (slots * self.heads * capacity)
        self.first_cells = halves + self.first_cells  # [2, slots, k]
        self._rooms: dict[int, Room] = {}

    def places(self, at: Tensor, filled: int, level: bool) -> CpuPlaces:
        A = len(at)
        turns = self.turns[filled - 1].expand(A, 1, -1) if level else self.turns[at][:, None]
        keys_values = self.cache[:, :, :A, :, :filled].flatten(0, 1).unbind(0)
        if level:
            return CpuPlaces(turns, keys_values, self.cache[:, :, :A, :, filled - 1].unbind(0), None, None)
        return CpuPlaces(turns, keys_values, None, (self.first_cells[:, :A] + at[:, None]).view(-1), self._mask(at, filled))

    def step(self, x: Tensor, places: CpuPlaces) -> Tensor:
        room = self._room(len(x))
        x = room.x.copy_(x)
        for number, (layer, (attention_scale, feed_scale)) in enumerate(zip(self.layers, self.scales)):
            layer.qkv.into(self._scaled(x, attention_scale, room), room.qkv)
            room.turned.mul_(places.turns)
            self._keep(number, places, room)
            layer.out.onto(self._mixed(number, places, room), x)
            layer.gate_up.into(self._scaled(x, feed_scale, room), room.gate_up)
            torch.mul(self.activation(room.gate), room.up, out=room.fed)
            layer.down.onto(room.fed, x)
        return self._direction(x, room) * self.last_scale

    def _keep(self, number: int, places: CpuPlaces, room: Room) -> None:
        """Write this step's keys and values into a layer's cache."""
        if places.written is not None:
            places.written[number].copy_(room.fresh)
            return
        room.scattered.copy_(room.fresh)
        self.rows_of_layers[number].index_copy_(0, places.cells, room.scattered_rows)

    def _mixed(self, number: int, places: CpuPlaces, room: Room) -> Tensor:
        """Values [A, h d] as a layer's attention mixes them."""
        if room.queries is not room.asked:
            room.queries.copy_(room.asked)
        keys, values = places.keys_values[2 * number : 2 * number + 2]
        return F.scaled_dot_product_attention(room.queries, keys, values, attn_mask=places.mask).reshape(len(room.x), -1)

    def _scaled(self, x: Tensor, scale: Tensor, room: Room) -> Tensor:
        """What a projection reads: `x` [A, C] after its norm, in the loop's precision."""
        return torch.mul(self._direction(x, room), scale, out=room.normed)

    def _direction(self, x: Tensor, room: Room) -> Tensor:
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True, out=room.size)
        return torch.div(x, torch.hypot(size, self.least, out=size), out=room.direction)

    def _scale(self, weight: Tensor) -> Tensor:
        return weight.to(self.wide) * self.width**0.5

    def _room(self, A: int) -> Room:
        if A not in self._rooms:
            self._rooms[A] = Room(self, A)
        return self._rooms[A]

    def _turned_from_0(self, x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.to(self.wide).unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * self.turns[: x.shape[1], None]).flatten(-2).to(self.dtype)

    def _channels(self, turned: Tensor) -> Tensor:
        half = self.head_dim // 2
        return turned.unflatten(0, (-1, 2, half)).transpose(1, 2).flatten(0, 2)
