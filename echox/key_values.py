"""The cache of keys and values, by the name that a release of the transformers library has for it."""

from __future__ import annotations

import functools
import inspect
from typing import Any

from torch import nn


def cached(model: nn.Module, cache: Any) -> dict[str, Any]:
    """`cache` as the keyword argument that `model` takes.

    It is `cache` from 5.24 on, and `past_key_values` before and in models that came with their weights. A model swallows keywords that it does
    not know, and would then compute as if there were no cache.
    """
    return {_keyword(type(model)): cache}


@functools.cache
def _keyword(model: type[nn.Module]) -> str:
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
