"""Llama bodies with explicit key masks.

The release hides keys in the middle of a prompt (see `Compatibility.hide_turn_ends`), which the
padding masks of `transformers` cannot express together with positions that count them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import transformers
from torch import Tensor

from echox.backbones.base import BackboneState
from echox.core.signals import last_positions
from echox.core.transformers_compat import cache_kwargs

if TYPE_CHECKING:
    from transformers.cache_utils import DynamicCache


@dataclass(frozen=True, slots=True)
class Prompt:
    """A batch of prompts as embeddings."""

    embeddings: Tensor  # [B, P, H] right-padded
    lengths: Tensor  # [B] positions
    visible: Tensor  # bool [B, P] keys that may be attended to; False at padding


@dataclass(frozen=True, slots=True)
class PromptCache:
    """Keys and values of prompts and of the tokens behind them."""

    layers: DynamicCache
    lengths: Tensor  # [B] positions of each prompt
    width: int  # P, positions of the longest one


def forward_llama(
    body: transformers.LlamaModel,
    embeddings: Tensor,
    visible: Tensor,
    cache: PromptCache | None,
    use_cache: bool,
) -> BackboneState:
    """Run a Llama; the arguments are those of `Backbone.forward`.

    Positions count every token of a prompt up to the last visible one, hidden ones too.

    Args:
        body: without its output head.
        embeddings: [B, Q, C]; with a cache, of the new positions only.
        visible: bool [B, K] keys that may be attended to, cached ones first.
        cache: of the call before, extended in place.
        use_cache: return a cache for the next call.

    Returns:
        states [B, Q, C] after the final norm, and the cache.
    """
    # Imported here: transformers loads a module's code when it is asked for, which takes long.
    from transformers.cache_utils import DynamicCache

    Q, K = embeddings.shape[1], visible.shape[1]
    positions = torch.arange(K - Q, K, device=embeddings.device)[None]
    if cache is not None:
        # The padding of shorter prompts lies between, so positions follow from the lengths.
        positions = cache.lengths[:, None] + positions - cache.width
    elif use_cache:
        cache = PromptCache(DynamicCache(config=body.config), last_positions(visible) + 1, K)
    states = body(
        inputs_embeds=embeddings,
        attention_mask=causal_mask(visible, Q, embeddings.dtype),
        position_ids=positions,
        use_cache=cache is not None,
        **cache_kwargs(body, cache and cache.layers),
    )
    return BackboneState(states.last_hidden_state, cache)


def causal_mask(visible: Tensor, queries: int, dtype: torch.dtype) -> Tensor:
    """Additive attention mask of the last positions of a sequence.

    Args:
        visible: bool [B, K] keys that may be attended to.
        queries: number Q of last positions that attend.
        dtype: of the attention scores.

    Returns:
        [B, 1, Q, K], 0 where attention is allowed and the dtype's minimum elsewhere.
    """
    K = visible.shape[1]
    keys = torch.arange(K, device=visible.device)  # positions; the queries are the last Q of them
    allowed = visible[:, None, None, :] & (keys[None, :] <= keys[K - queries :, None])
    mask = torch.zeros(allowed.shape, dtype=dtype, device=visible.device)
    # A finite minimum, because rows that attend to nothing (padding) would be NaN with -inf.
    return mask.masked_fill_(~allowed, torch.finfo(dtype).min)


def restore_rotary(body: transformers.LlamaModel) -> None:
    """Compute the rotary tables of a body built on the meta device, in float32.

    They are buffers that no checkpoint holds, so loading weights leaves them on the meta device.
    """
    body.rotary_emb = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(body.config)
