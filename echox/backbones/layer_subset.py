"""Running some of a language model's layers, to cache the states below the trained ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


def count_frozen_layers(body: nn.Module) -> int:
    """Count the layers below the first trained one, in a model laid out as Llama; else 0.

    Args:
        body: a transformers model whose `layers` end in a `norm`, or any other.
    """
    layers = _layers_of(body)
    if layers is None:
        return 0
    is_trained = [any(p.requires_grad for p in layer.parameters()) for layer in layers]
    # Without a trained layer nothing runs above the states, so caching them saves nothing.
    return is_trained.index(True) if any(is_trained) else 0


def _layers_of(body: nn.Module) -> nn.ModuleList | None:
    """The layers of a model laid out as Llama; None for others."""
    layers = getattr(body, "layers", None)
    return layers if isinstance(layers, nn.ModuleList) and hasattr(body, "norm") else None


@contextmanager
def only_layers(body: nn.Module, chosen: slice, *, norm: bool) -> Iterator[None]:
    """Replace all layers but the chosen ones by identities inside the block.

    Args:
        body: a transformers model laid out as Llama; changed in place, restored at the end.
        chosen: the layers to keep.
        norm: keep the final norm.
    """
    layers, final_norm = _layers_of(body), body.norm
    if layers is None:
        raise TypeError(f"{type(body).__name__} is not laid out as Llama")
    indices = range(len(layers))[chosen]
    # Identities instead of a shorter list: the library still makes the masks and positions of
    # every layer, so that both halves equal the whole model.
    body.layers = nn.ModuleList(
        layer if index in indices else _IdentityLayer() for index, layer in enumerate(layers)
    )
    body.norm = final_norm if norm else nn.Identity()
    try:
        yield
    finally:
        body.layers, body.norm = layers, final_norm


class _IdentityLayer(nn.Module):
    """A transformer layer that returns its input states [B, S, H]."""

    def forward(self, states: Tensor, *arguments: Any, **options: Any) -> Tensor:
        return states
