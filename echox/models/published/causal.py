"""Causal transformers by explicit key masks, and greedy decoding with the states that predicted each token."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from echox.key_values import cached


@dataclass(frozen=True, slots=True)
class Prompt:
    """Embeddings that wait to be continued."""

    embeddings: Tensor  # [B, P, H] right-padded
    lengths: Tensor  # [B]
    visible: Tensor  # bool [B, P] keys that may be attended to; False at padding


@dataclass(frozen=True, slots=True)
class Generated:
    """What was decoded."""

    ids: Tensor  # [B, S], the end token included where it came, then repeated
    hidden: Tensor  # [B, S, H]: hidden[:, s] predicted ids[:, s]
    lengths: Tensor  # [B] tokens before the end
    ended: Tensor  # bool [B]: by the end token, not by the limit

    def row(self, index: int) -> list[int]:
        """The ids of one row, without the end token."""
        return self.ids[index, : int(self.lengths[index])].tolist()


class CausalModel(nn.Module, ABC):
    """A Llama body between an embedding and a head; positions count every token, whether it may be attended to or not."""

    body: transformers.LlamaModel

    @abstractmethod
    def embed(self, ids: Tensor) -> Tensor:
        """Ids [...] -> what the body takes [..., C]."""

    @abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., C] -> scores [..., V]."""

    def forward(self, embeddings: Tensor, visible: Tensor, positions: Tensor | None = None, cache: Any = None) -> Tensor:
        """States after the final norm.

        Args:
            embeddings: [B, Q, C]; with a cache, only what is new.
            visible: bool [B, K] keys that may be attended to, cached ones first.
            positions: [B, Q]; None counts from 0.
            cache: a `DynamicCache`, extended in place, or None.
        Returns:
            [B, Q, C].
        """
        if positions is None:
            positions = torch.arange(embeddings.shape[1], device=embeddings.device)[None]
        mask = causal_mask(visible, embeddings.shape[1], embeddings.dtype)
        return self.body(
            inputs_embeds=embeddings, attention_mask=mask, position_ids=positions, use_cache=cache is not None, **cached(self.body, cache)
        ).last_hidden_state


def causal_mask(visible: Tensor, queries: int, dtype: torch.dtype) -> Tensor:
    """What is added to attention scores: keys visible [B, K] and `queries` last positions Q -> [B, 1, Q, K].

    A finite minimum instead of -inf keeps rows that see nothing (padding) free of NaN.
    """
    K = visible.shape[1]
    at = torch.arange(K, device=visible.device)
    allowed = visible[:, None, None, :] & (at[None, :] <= at[K - queries :, None])
    return torch.zeros(allowed.shape, dtype=dtype, device=visible.device).masked_fill_(~allowed, torch.finfo(dtype).min)


@torch.no_grad()
def decode_steps(model: CausalModel, prompt: Prompt, end_id: int, max_tokens: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Greedy decoding, a step at a time, until every row has ended: yields tokens [B] and the states that predicted them [B, C].

    Rows never influence each other. A row that has ended goes on with end tokens.
    """
    from transformers.cache_utils import DynamicCache

    B = len(prompt.lengths)
    cache = DynamicCache(config=model.body.config)
    visible = prompt.visible
    hidden = model(prompt.embeddings, visible, cache=cache)
    last = hidden[torch.arange(B, device=hidden.device), prompt.lengths - 1]
    done = torch.zeros(B, dtype=torch.bool, device=hidden.device)
    for step in range(max_tokens):
        token = torch.where(done, end_id, model.logits(last).argmax(-1))
        done = done | (token == end_id)
        yield token, last
        if step + 1 == max_tokens or bool(done.all()):
            return
        visible = torch.cat([visible, visible.new_ones(B, 1)], dim=1)
        last = model(model.embed(token[:, None]), visible, (prompt.lengths + step)[:, None], cache)[:, 0]


def decode(model: CausalModel, prompt: Prompt, end_id: int, max_tokens: int) -> Generated:
    """Greedy decoding of a ragged batch; see `decode_steps`."""
    steps = list(decode_steps(model, prompt, end_id, max_tokens))
    ids = torch.stack([token for token, _ in steps], dim=1)
    ends = ids == end_id
    ended = ends.any(1)
    return Generated(ids, torch.stack([state for _, state in steps], dim=1), torch.where(ended, ends.long().argmax(1), ids.shape[1]), ended)


class LanguageModel(CausalModel):
    """The text model: a Llama with its own head."""

    def __init__(self, config: transformers.LlamaConfig) -> None:
        super().__init__()
        self.body = transformers.LlamaModel(config)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def embed(self, ids: Tensor) -> Tensor:
        return self.body.embed_tokens(ids)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.head(hidden)


def restore_rotary(body: transformers.LlamaModel) -> None:
    """Compute the rotary tables anew, in float32, on a body that was built without memory: no checkpoint holds them."""
    body.rotary_emb = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(body.config)
