"""Llama bodies with explicit key masks, and greedy decoding that returns the hidden states.

The release hides keys in the middle of a prompt (see `Compatibility.hide_turn_ends`), which the
plain padding masks of `generate` cannot express together with positions that count them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from echox.core.transformers_compat import cache_kwargs


@dataclass(frozen=True, slots=True)
class Prompt:
    """A batch of prompts as embeddings."""

    embeddings: Tensor  # [B, P, H] right-padded
    lengths: Tensor  # [B] positions
    visible: Tensor  # bool [B, P] keys that may be attended to; False at padding


@dataclass(frozen=True, slots=True)
class Generated:
    """Tokens decoded after a batch of prompts, and the hidden states that predicted them."""

    ids: Tensor  # [B, S], the end token included where it came, then repeated
    hidden: Tensor  # [B, S, H]: hidden[:, s] predicted ids[:, s]
    lengths: Tensor  # [B] tokens before the end token
    ended: Tensor  # bool [B], True for the end token, False for the limit of tokens

    def row(self, index: int) -> list[int]:
        """Ids of one row, without the end token."""
        return self.ids[index, : int(self.lengths[index])].tolist()


class CausalModel(nn.Module, ABC):
    """A Llama body between an embedding and an output head.

    Positions count every token, whether it may be attended to or not.
    """

    body: transformers.LlamaModel

    @abstractmethod
    def embed(self, ids: Tensor) -> Tensor:
        """Embed token ids for the body: [...] -> [..., C]."""

    @abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """Score the vocabulary from hidden states: [..., C] -> [..., V]."""

    def forward(
        self,
        embeddings: Tensor,
        visible: Tensor,
        positions: Tensor | None = None,
        cache: Any = None,
    ) -> Tensor:
        """Hidden states after the final norm.

        Args:
            embeddings: [B, Q, C]; with a cache, of the new positions only.
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
            inputs_embeds=embeddings,
            attention_mask=mask,
            position_ids=positions,
            use_cache=cache is not None,
            **cache_kwargs(self.body, cache),
        ).last_hidden_state


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


@torch.no_grad()
def decode_steps(
    model: CausalModel, prompt: Prompt, end_id: int, max_tokens: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Greedy decoding, one step at a time, until every row has ended.

    Rows never influence each other. A row that has ended goes on with end tokens.

    Args:
        model: the model that is decoded.
        prompt: B prompts.
        end_id: the token that ends a row.
        max_tokens: steps at most.

    Yields:
        tokens [B] and the hidden states that predicted them [B, C].
    """
    # Imported here: transformers loads a module's code when it is asked for, which takes long.
    from transformers.cache_utils import DynamicCache

    B = len(prompt.lengths)
    cache = DynamicCache(config=model.body.config)
    visible = prompt.visible
    hidden = model(prompt.embeddings, visible, cache=cache)  # [B, P, C]
    # Prompts are right-padded, so each row's last state is at its own length.
    last = hidden[torch.arange(B, device=hidden.device), prompt.lengths - 1]
    done = torch.zeros(B, dtype=torch.bool, device=hidden.device)
    for step in range(max_tokens):
        token = torch.where(done, end_id, model.logits(last).argmax(-1))
        done = done | (token == end_id)
        yield token, last
        # Asked before the next step, so that no state is computed that predicts nothing.
        if step + 1 == max_tokens or bool(done.all()):
            return
        visible = torch.cat([visible, visible.new_ones(B, 1)], dim=1)
        # The padding of shorter prompts lies between, so positions follow from the lengths.
        positions = (prompt.lengths + step)[:, None]
        last = model(model.embed(token[:, None]), visible, positions, cache)[:, 0]


def decode(model: CausalModel, prompt: Prompt, end_id: int, max_tokens: int) -> Generated:
    """Greedy decoding of a ragged batch of prompts; see `decode_steps`."""
    steps = list(decode_steps(model, prompt, end_id, max_tokens))
    ids = torch.stack([token for token, _ in steps], dim=1)  # [B, S]
    ends = ids == end_id
    ended = ends.any(1)
    return Generated(
        ids,
        torch.stack([state for _, state in steps], dim=1),
        torch.where(ended, ends.long().argmax(1), ids.shape[1]),  # up to the first end token
        ended,
    )


class LanguageModel(CausalModel):
    """The release's text model: a Llama with an untied output head."""

    def __init__(self, config: transformers.LlamaConfig) -> None:
        super().__init__()
        self.body = transformers.LlamaModel(config)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def embed(self, ids: Tensor) -> Tensor:
        return self.body.embed_tokens(ids)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.head(hidden)


def restore_rotary(body: transformers.LlamaModel) -> None:
    """Compute the rotary tables of a body built on the meta device, in float32.

    They are buffers that no checkpoint holds, so loading weights leaves them on the meta device.
    """
    body.rotary_emb = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(body.config)
