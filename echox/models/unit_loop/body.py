"""A Llama body for decoding: its own weights, fused, over a key/value cache that is there from the start and written in place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from echox.errors import ConfigError
from echox.models.unit_loop.matrices import Matrix, matrix_of


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer's weights, those that read the same input joined. h query heads, k key/value heads of d channels, I inside."""

    attention_norm: Tensor  # [C]
    qkv: Matrix  # C -> (h + 2k) d
    out: Matrix  # h d -> C
    feed_norm: Tensor  # [C]
    gate_up: Matrix  # C -> 2 I
    down: Matrix  # I -> C


@dataclass(frozen=True, slots=True)
class Places:
    """Where one step of A rows stands; made once a step and read by every layer."""

    cells: Tensor  # [A k] rows of the cache, as [slots k capacity, d], that are written
    cosine: Tensor  # [A, 1, d]
    sine: Tensor  # [A, 1, d], its first half negative
    filled: int  # positions of the cache that are looked at
    mask: Tensor | None  # [A, 1, 1, filled] added to scores; None where every row has all of them


class CachedBody:
    """Steps of a `LlamaModel` for up to `slots` independent rows of up to `capacity` positions.

    A row's positions lie at the front of its slot, so a step writes one cell a row and looks at the filled part alone. Weights are read
    once, here; what is trained afterwards is not seen.
    """

    def __init__(self, body: transformers.LlamaModel, slots: int, capacity: int, dtype: torch.dtype, weight_of: Callable[[nn.Linear], Tensor]) -> None:
        """
        Args:
            dtype: of weights, keys and values; the sum that layers add to stays float32.
            weight_of: the weight of one of the body's projections [out, in], which may be more than the module's own.
        Raises:
            ConfigError: the body has biases, which Llama's has not.
        """
        config = body.config
        if config.attention_bias or config.mlp_bias:
            raise ConfigError("the decode loop reads Llama layers, and this body has biases (attention_bias, mlp_bias); build it without")
        self.heads, self.groups = config.num_key_value_heads, config.num_attention_heads // config.num_key_value_heads
        self.head_dim = config.head_dim
        self.width, self.eps = config.hidden_size, config.rms_norm_eps
        self.slots, self.capacity, self.dtype = slots, capacity, dtype
        self.norm = body.norm.weight.detach().float()
        self.activation = body.layers[0].mlp.act_fn if len(body.layers) else F.silu
        self.layers = [self._joined(layer, weight_of) for layer in body.layers]
        device = self.norm.device
        # Zeros, for cells that no one has written are masked, yet 0 times NaN is NaN.
        self.cache = untouched(len(self.layers), 2, slots, self.heads, capacity, self.head_dim, dtype=dtype, device=device)
        positions = torch.arange(capacity, device=device)
        cosine, sine = body.rotary_emb(self.norm, positions[None])
        half = self.head_dim // 2
        self.cosine, self.sine = cosine[0].to(dtype), torch.cat([-sine[0, :, :half], sine[0, :, half:]], dim=-1).to(dtype)
        self.positions = positions
        self.first_cells = (torch.arange(slots * self.heads, device=device) * capacity).view(slots, self.heads)

    def places(self, at: Tensor, filled: int, level: bool) -> Places:
        """
        Args:
            at: [A] the position each row writes; filled: the largest of them plus 1, or more; level: all of them are equal to filled - 1.
        """
        A = at.shape[0]
        cells = (self.first_cells[:A] + at[:, None]).view(-1)
        mask = None if level else self._mask(at, filled)
        return Places(cells, self.cosine[at][:, None], self.sine[at][:, None], filled, mask)

    def step(self, x: Tensor, places: Places) -> Tensor:
        """One position of every row: inputs [A, C] -> hidden states [A, C] after the final norm, float32."""
        A = x.shape[0]
        keys = self.heads * self.groups
        x = x.float()
        for layer, cache in zip(self.layers, self.cache):
            qkv = layer.qkv.times(self._normed(x, layer.attention_norm)).view(A, keys + 2 * self.heads, self.head_dim)
            turned = self._turned(qkv[:, : keys + self.heads], places.cosine, places.sine)
            _write(cache[0], places.cells, turned[:, keys:])
            _write(cache[1], places.cells, qkv[:, keys + self.heads :])
            queries = turned[:, :keys].view(A, self.heads, self.groups, self.head_dim)
            past = cache[:, :A, :, : places.filled]
            mixed = F.scaled_dot_product_attention(queries, past[0], past[1], attn_mask=places.mask)
            x = self._fed(x + layer.out.times(mixed.reshape(A, -1)), layer)
        return F.rms_norm(x, (self.width,), self.norm, self.eps)

    def _mask(self, at: Tensor, filled: int) -> Tensor:
        """[A, 1, 1, filled] that hides what lies behind each row's position."""
        return torch.where(self.positions[:filled] <= at[:, None], 0.0, float("-inf")).to(self.dtype)[:, None, None]

    def prefill(self, x: Tensor, first: int) -> None:
        """Fill positions 0 .. P-1 of slots first .. first+N-1: inputs [N, P, C] right-padded.

        Padding leaves cells that are masked until they are written over.
        """
        N, P, _ = x.shape
        keys = self.heads * self.groups
        x = x.reshape(N * P, -1).float()
        for layer, cache in zip(self.layers, self.cache):
            qkv = layer.qkv.times(self._normed(x, layer.attention_norm)).view(N, P, keys + 2 * self.heads, self.head_dim)
            turned = self._turned_from_0(qkv[:, :, : keys + self.heads])
            fresh = torch.stack([turned[:, :, keys:], qkv[:, :, keys + self.heads :]]).transpose(2, 3)
            cache[:, first : first + N, :, :P] = fresh
            if layer is self.layers[-1]:
                return  # what follows would only reach hidden states, and steps compute theirs
            queries = turned[:, :, :keys].transpose(1, 2)
            mixed = F.scaled_dot_product_attention(queries, fresh[0], fresh[1], is_causal=True, enable_gqa=self.groups > 1)
            x = self._fed(x + layer.out.times(mixed.transpose(1, 2).reshape(N * P, -1)), layer)

    def move(self, source: int, target: int, filled: int) -> None:
        """Copy a row to another slot."""
        self.cache[:, :, target, :, :filled] = self.cache[:, :, source, :, :filled]

    def forget(self, slot: int) -> None:
        """Zero a slot whose keys and values are no numbers: masked, they would still make NaN of the next row's."""
        self.cache[:, :, slot] = 0

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (self.width,), weight, self.eps).to(self.dtype)

    @staticmethod
    def _turned(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """Rotary positions: halves of a head are a pair's two parts (Su et al. 2021, arXiv:2104.09864, in Llama's layout)."""
        return torch.addcmul(x * cosine, x.roll(x.shape[-1] // 2, -1), sine)

    def _turned_from_0(self, x: Tensor) -> Tensor:
        """Queries or keys [N, P, heads, d] of positions 0 .. P-1."""
        P = x.shape[1]
        return self._turned(x, self.cosine[:P, None], self.sine[:P, None])

    def _fed(self, x: Tensor, layer: Layer) -> Tensor:
        gate, up = layer.gate_up.times(self._normed(x, layer.feed_norm)).chunk(2, dim=-1)
        return x + layer.down.times(self.activation(gate).mul_(up))

    def _joined(self, layer: nn.Module, weight_of: Callable[[nn.Linear], Tensor]) -> Layer:
        attention, feed = layer.self_attn, layer.mlp

        def read(part: nn.Linear) -> Tensor:
            return weight_of(part).detach().to(self.dtype)

        turned = torch.cat([read(attention.q_proj), read(attention.k_proj)])
        return Layer(
            layer.input_layernorm.weight.detach().float(),
            matrix_of(torch.cat([self._channels(turned), read(attention.v_proj)])),
            matrix_of(read(attention.o_proj)),
            layer.post_attention_layernorm.weight.detach().float(),
            matrix_of(torch.cat([read(feed.gate_proj), read(feed.up_proj)])),
            matrix_of(read(feed.down_proj)),
        )

    def _channels(self, turned: Tensor) -> Tensor:
        """Weights of queries and keys [heads d, C], in the order in which this body turns their channels."""
        return turned


def untouched(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros that take memory only where they are written: on a CPU, `torch.zeros` would write them all."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.zeros((*shape[:-1], shape[-1] * dtype.itemsize), np.uint8)).view(dtype)


def _write(cache: Tensor, cells: Tensor, fresh: Tensor) -> None:
    """Keys or values [A, k, d] into their cells of a layer's cache [slots, k, capacity, d]."""
    d = cache.shape[-1]
    cache.view(-1, d).index_copy_(0, cells, fresh.reshape(-1, d))
