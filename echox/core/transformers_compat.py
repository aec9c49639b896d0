"""Differences between releases of the transformers library: the name of the key-value cache."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


def cache_kwargs(model: nn.Module, cache: Any) -> dict[str, Any]:
    """Return the key-value cache as the keyword argument that `model` takes.

    The keyword is `cache` from transformers 5.24 on. It is `past_key_values` in earlier
    releases, and in models whose code came with their weights.
    """
    return {_cache_keyword(type(model).forward): cache}


# By signature, not by version: models ignore keywords that they do not know, and would then
# compute as if there were no cache. Cached, because this is asked for every generated token.
@functools.cache
def _cache_keyword(forward: Callable[..., Any]) -> str:
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"


def on_device(model: M, device: torch.device, dtype: torch.dtype | None = None) -> M:
    """Move a model, in place, and return it.

    Its own `to` is wrapped by the library, and has lost its types.
    """
    module: nn.Module = model
    module.to(device, dtype)
    return model
