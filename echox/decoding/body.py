"""A Llama body for decoding: fused copies of its weights over a static key/value cache."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from echox.core.errors import ConfigError
from echox.decoding.matrices import Matrix, matrix_of


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer's weights, those that read the same input fused into one matrix.

    h query heads and k key/value heads of d channels; I channels inside the feed-forward block.
    """

    attention_norm: Tensor  # [C]
    qkv: Matrix  # C -> (h + 2k) d
    out: Matrix  # h d -> C
    feed_norm: Tensor  # [C]
    gate_up: Matrix  # C -> 2 I
    down: Matrix  # I -> C


@dataclass(frozen=True, slots=True)
class Places:
    """Where one step of A rows reads and writes; computed once a step and shared by all layers."""

    cells: Tensor  # [A k] rows of the cache, as [slots k capacity, d], that are written
    cosine: Tensor  # [A, 1, d]
    sine: Tensor  # [A, 1, d], its first half negative
    filled: int  # positions of the cache that attention reads
    mask: Tensor | None  # [A, 1, 1, filled] added to scores; None where every row has all of them


P = TypeVar("P")


class CachedBody(ABC, Generic[P]):
    """Decode steps of a `LlamaModel` for independent rows, each a slot of a static cache.

    A row's positions lie at the front of its slot, so a step writes one cell a row and reads the
    filled part of the cache alone. Weights are copied here: later training is not seen.
    """

    def __init__(
        self,
        body: transformers.LlamaModel,
        slots: int,
        capacity: int,
        dtype: torch.dtype,
        weight_of: Callable[[nn.Module], Tensor],
    ) -> None:
        """Copy the weights and allocate the cache.

        Args:
            body: the model to decode with.
            slots: rows that the cache holds.
            capacity: positions of a row.
            dtype: of weights, keys and values; the residual sum stays float32.
            weight_of: the weight [out, in] of one of the body's projections, adapters merged.

        Raises:
            ConfigError: the body has biases, which Llama's has not.
        """
        config = body.config
        if config.attention_bias or config.mlp_bias:
            raise ConfigError(
                "the decode engine reads Llama layers, and this body has biases "
                "(attention_bias, mlp_bias); build it without"
            )
        # The library fills in the two that a config may leave out.
        self.heads = config.num_key_value_heads or config.num_attention_heads
        self.groups = config.num_attention_heads // self.heads
        self.head_dim = config.head_dim or config.hidden_size // config.num_attention_heads
        self.width, self.eps = config.hidden_size, config.rms_norm_eps
        self.slots, self.capacity, self.dtype = slots, capacity, dtype
        self.norm = body.norm.weight.detach().float()
        self.activation: Callable[[Tensor], Tensor] = (
            body.layers[0].get_submodule("mlp.act_fn") if len(body.layers) else F.silu
        )
        self.layers = [self._fused_layer(layer, weight_of) for layer in body.layers]
        # Keys and values by layer: [layers, 2, slots, k, capacity, d]. Zeros, for cells that no
        # step has written are masked, yet 0 times NaN is NaN.
        shape = (len(self.layers), 2, slots, self.heads, capacity, self.head_dim)
        self.cache = lazy_zeros(*shape, dtype=dtype, device=self.norm.device)
        self._tabulate_positions(body)

    def _tabulate_positions(self, body: transformers.LlamaModel) -> None:
        """Tables over positions: the rotary embedding, and where a slot begins in the cache."""
        positions = torch.arange(self.capacity, device=self.norm.device)
        cosine, sine = body.rotary_emb(self.norm, positions[None])
        half = self.head_dim // 2
        # The sign of the rotation lies in the table, so that a step adds one product only.
        signed = torch.cat([-sine[0, :, :half], sine[0, :, half:]], dim=-1)
        self.cosine, self.sine = cosine[0].to(self.dtype), signed.to(self.dtype)
        self.positions = positions
        starts = torch.arange(self.slots * self.heads, device=self.norm.device) * self.capacity
        self.first_cells = starts.view(self.slots, self.heads)

    @abstractmethod
    def places(self, positions: Tensor, filled: int, uniform: bool) -> P:
        """Where a step reads and writes.

        Args:
            positions: [A] the position that each row writes.
            filled: the largest of them plus 1, or more.
            uniform: all of them are equal to filled - 1, so no mask is needed.
        """

    @abstractmethod
    def step(self, x: Tensor, places: P) -> Tensor:
        """Run one position of every row.

        Args:
            x: input vectors [A, C].
            places: of this step, as `places` returns them.

        Returns:
            hidden states [A, C] after the final norm, float32.
        """

    def _mask(self, positions: Tensor, filled: int) -> Tensor:
        """[A, 1, 1, filled] that hides the cells behind each row's position."""
        visible = self.positions[:filled] <= positions[:, None]
        return torch.where(visible, 0.0, float("-inf")).to(self.dtype)[:, None, None]

    def prefill(self, x: Tensor, first: int, begin: int = 0) -> None:
        """Fill positions begin .. begin+P-1 of slots first .. first+N-1 from prompts.

        Padding leaves cells that are masked until they are written over.

        Args:
            x: prompt vectors [N, P, C], right-padded.
            first: the first slot.
            begin: positions before them, which are filled already.
        """
        N, P, _ = x.shape
        keys = self.heads * self.groups
        x = x.reshape(N * P, -1).float()
        slots, filled = slice(first, first + N), begin + P
        mask = self._mask(self.positions[begin:filled], filled)[:, 0, 0] if begin else None
        for layer, cache in zip(self.layers, self.cache):
            qkv = layer.qkv.matmul(self._normed(x, layer.attention_norm))
            qkv = qkv.view(N, P, keys + 2 * self.heads, self.head_dim)
            rotated = self._rotated_from(begin, qkv[:, :, : keys + self.heads])
            new = torch.stack([rotated[:, :, keys:], qkv[:, :, keys + self.heads :]])
            new = new.transpose(2, 3)  # keys and values [2, N, k, P, d]
            cache[:, slots, :, begin:filled] = new
            if layer is self.layers[-1]:
                return  # the rest would only reach hidden states, and steps compute theirs
            queries = rotated[:, :, :keys].transpose(1, 2)
            past = cache[:, slots, :, :filled] if begin else new
            mixed = F.scaled_dot_product_attention(
                queries,
                past[0],
                past[1],
                attn_mask=mask,
                is_causal=mask is None,
                enable_gqa=self.groups > 1,
            )
            mixed = mixed.transpose(1, 2).reshape(N * P, -1)
            x = self._feed_forward(x + layer.out.matmul(mixed), layer)

    def move(self, source: int, target: int, filled: int) -> None:
        """Copy the first `filled` positions of a slot to another."""
        self.cache[:, :, target, :, :filled] = self.cache[:, :, source, :, :filled]

    def clear(self, slot: int) -> None:
        """Zero a slot whose keys and values are NaN or infinite.

        The mask would not protect the slot's next request: a score of -inf weighs a value by 0,
        and 0 times NaN is NaN.
        """
        self.cache[:, :, slot] = 0

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (self.width,), weight, self.eps).to(self.dtype)

    @staticmethod
    def _rotated(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """Rotary positions, the two halves of a head being the two parts of its pairs.

        Source: Su et al. 2021, arXiv:2104.09864, in Llama's layout.
        """
        return torch.addcmul(x * cosine, x.roll(x.shape[-1] // 2, -1), sine)

    def _rotated_from(self, begin: int, x: Tensor) -> Tensor:
        """Queries or keys [N, P, heads, d] rotated to positions begin .. begin+P-1."""
        places = slice(begin, begin + x.shape[1])
        return self._rotated(x, self.cosine[places, None], self.sine[places, None])

    def _feed_forward(self, x: Tensor, layer: Layer) -> Tensor:
        gate, up = layer.gate_up.matmul(self._normed(x, layer.feed_norm)).chunk(2, dim=-1)
        return x + layer.down.matmul(self.activation(gate).mul_(up))

    def _fused_layer(self, layer: nn.Module, weight_of: Callable[[nn.Module], Tensor]) -> Layer:
        def read(projection: str) -> Tensor:
            return weight_of(layer.get_submodule(projection)).detach().to(self.dtype)

        queries_keys = torch.cat([read("self_attn.q_proj"), read("self_attn.k_proj")])
        # Norms stay float32: they scale the residual sum, which is float32 too.
        return Layer(
            layer.get_parameter("input_layernorm.weight").detach().float(),
            matrix_of(torch.cat([self._rotary_order(queries_keys), read("self_attn.v_proj")])),
            matrix_of(read("self_attn.o_proj")),
            layer.get_parameter("post_attention_layernorm.weight").detach().float(),
            matrix_of(torch.cat([read("mlp.gate_proj"), read("mlp.up_proj")])),
            matrix_of(read("mlp.down_proj")),
        )

    def _rotary_order(self, weight: Tensor) -> Tensor:
        """Weights of queries and keys [heads d, C], channels in the order that `step` rotates."""
        return weight


class PlainBody(CachedBody[Places]):
    """A `CachedBody` in PyTorch's own operations, for every device and dtype."""

    def places(self, positions: Tensor, filled: int, uniform: bool) -> Places:
        """Where a step at `positions` [A] reads and writes; see `CachedBody.places`."""
        A = positions.shape[0]
        cells = (self.first_cells[:A] + positions[:, None]).view(-1)
        mask = None if uniform else self._mask(positions, filled)
        cosine, sine = self.cosine[positions][:, None], self.sine[positions][:, None]
        return Places(cells, cosine, sine, filled, mask)

    def step(self, x: Tensor, places: Places) -> Tensor:
        """Input vectors [A, C] -> hidden states [A, C] after the final norm, float32."""
        A = x.shape[0]
        keys = self.heads * self.groups
        x = x.float()
        for layer, cache in zip(self.layers, self.cache):
            qkv = layer.qkv.matmul(self._normed(x, layer.attention_norm))
            qkv = qkv.view(A, keys + 2 * self.heads, self.head_dim)
            rotated = self._rotated(qkv[:, : keys + self.heads], places.cosine, places.sine)
            _write_cells(cache[0], places.cells, rotated[:, keys:])
            _write_cells(cache[1], places.cells, qkv[:, keys + self.heads :])
            # Query heads of one key head as positions of it: grouped attention without a copy.
            queries = rotated[:, :keys].view(A, self.heads, self.groups, self.head_dim)
            past = cache[:, :A, :, : places.filled]  # [2, A, k, filled, d]
            mixed = F.scaled_dot_product_attention(queries, past[0], past[1], attn_mask=places.mask)
            x = self._feed_forward(x + layer.out.matmul(mixed.reshape(A, -1)), layer)
        return F.rms_norm(x, (self.width,), self.norm, self.eps)


def lazy_zeros(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros that take memory only where they are written.

    On a CPU `torch.zeros` writes all of them, while NumPy asks the system for zeroed pages.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # As bytes, for NumPy has no bfloat16.
    memory = np.zeros((*shape[:-1], shape[-1] * dtype.itemsize), np.uint8)
    return torch.from_numpy(memory).view(dtype)


def _write_cells(cache: Tensor, cells: Tensor, values: Tensor) -> None:
    """Write keys or values [A, k, d] to their cells of a layer's cache [slots, k, capacity, d]."""
    d = cache.shape[-1]
    cache.view(-1, d).index_copy_(0, cells, values.reshape(-1, d))
