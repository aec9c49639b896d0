"""Differences between releases of the transformers library: the name of the key-value cache."""

from __future__ import annotations

import functools
import inspect
from typing import Any

from torch import nn


def cache_kwargs(model: nn.Module, cache: Any) -> dict[str, Any]:
    """Return the key-value cache as the keyword argument that `model` takes.

    The keyword is `cache` from transformers 5.24 on. It is `past_key_values` in earlier
    releases, and in models whose code came with their weights.
    """
    return {_cache_keyword(type(model)): cache}


# By signature, not by version: models ignore keywords that they do not know, and would then
# compute as if there were no cache. Cached, because this is asked for every generated token.
@functools.cache
def _cache_keyword(model: type[nn.Module]) -> str:
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
