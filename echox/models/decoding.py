"""Greedy text from a backbone, with the hidden state that predicted each token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from echox.backbones.base import Backbone, Turn
from echox.models.text_loop import said_in
from echox.models.unit_loop import Spoken, UnitLoop


@dataclass(frozen=True, slots=True)
class SpokenText:
    """What a backbone answered."""

    ids: Tensor  # [B, S] int64, end token excluded, padded with pad_id
    hidden: Tensor  # [B, S, H]: hidden[:, s] is the state that predicted ids[:, s]
    lengths: Tensor  # [B]
    ended: Tensor  # [B] bool: the model ended by itself, not by the limit


@torch.no_grad()
def greedy_text(
    backbone: Backbone,
    embeddings: Tensor,
    mask: Tensor,
    max_tokens: int,
    temperature: float = 0.0,
    seed: int | None = None,
    loop: UnitLoop | None = None,
) -> SpokenText:
    """Decode from prompts of ragged length.

    Args:
        embeddings: [B, P, H] right-padded; mask: bool [B, P].
        max_tokens: answer tokens at most.
        temperature: 0 is greedy; above, tokens are drawn with `seed`.
        loop: `text_loop` of the backbone, which is faster and says the same; prompts too long for it go without.
    Rows never influence each other: padding inside the cache is masked and positions count real tokens only.
    """
    if loop is not None and int(mask.sum(1).max()) + max_tokens <= loop.capacity:
        return _of_loop(said_in(loop, embeddings, mask.sum(1).tolist(), max_tokens, temperature, seed or 0), backbone)
    B = embeddings.shape[0]
    generator = None if seed is None else torch.Generator(embeddings.device).manual_seed(seed)
    state = backbone(embeddings, mask, use_cache=True)
    last = state.hidden[torch.arange(B, device=mask.device), mask.sum(1) - 1][:, None]
    done = torch.zeros(B, dtype=torch.bool, device=mask.device)
    others = torch.tensor(backbone.other_end_ids, dtype=torch.int64, device=mask.device)
    ids, hidden = [], []
    for _ in range(max_tokens):
        token = _choose(backbone.logits(last)[:, 0].float(), temperature, generator)
        token = torch.where(done | torch.isin(token, others), backbone.end_id, token)
        done = done | (token == backbone.end_id)
        ids.append(token)
        hidden.append(last[:, 0])
        if bool(done.all()):
            break
        mask = torch.cat([mask, mask.new_ones(B, 1)], dim=1)
        state = backbone(backbone.embed(token[:, None]).to(embeddings.dtype), mask, state.cache, use_cache=True)
        last = state.hidden
    return _cut(torch.stack(ids, 1), torch.stack(hidden, 1), done, backbone)


def _choose(scores: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    if temperature == 0.0:
        return scores.argmax(-1)
    return torch.multinomial((scores / temperature).softmax(-1), 1, generator=generator)[:, 0]


def _of_loop(spoken: list[Spoken], backbone: Backbone) -> SpokenText:
    device = backbone.head_rows().device
    ids = torch.nn.utils.rnn.pad_sequence([found.tokens[:, 0] for found in spoken], batch_first=True, padding_value=backbone.end_id)
    hidden = torch.nn.utils.rnn.pad_sequence([found.states for found in spoken], batch_first=True)
    ids = torch.where(torch.isin(ids, torch.tensor(backbone.other_end_ids, dtype=torch.int64)), backbone.end_id, ids)
    done = torch.tensor([int(row[len(found.tokens) - 1]) == backbone.end_id for row, found in zip(ids, spoken)])
    return _cut(ids.to(device), hidden.to(device), done.to(device), backbone)


def _cut(ids: Tensor, hidden: Tensor, done: Tensor, backbone: Backbone) -> SpokenText:
    ends = ids == backbone.end_id
    lengths = torch.where(ends.any(1), ends.long().argmax(1), ids.shape[1])
    size = max(1, int(lengths.max()))
    past = torch.arange(size, device=ids.device)[None] >= lengths[:, None]
    return SpokenText(ids[:, :size].masked_fill(past, backbone.pad_id), hidden[:, :size], lengths, done)


@torch.no_grad()
def answer_typed(
    backbone: Backbone,
    questions: list[str],
    max_tokens: int = 40,
    temperature: float = 0.0,
    seed: int | None = None,
    loop: UnitLoop | None = None,
) -> list[str]:
    """The language model's answers to typed questions, in one batch; see `greedy_text`."""
    return [text for text, _ in answers_and_ends(backbone, questions, max_tokens, temperature, seed, loop)]


def answers_and_ends(
    backbone: Backbone,
    questions: list[str],
    max_tokens: int = 40,
    temperature: float = 0.0,
    seed: int | None = None,
    loop: UnitLoop | None = None,
) -> list[tuple[str, bool]]:
    """The same, and of each answer whether it came to its end before `max_tokens`."""
    prompts = [backbone.prompt([Turn("user", question)])[0] for question in questions]
    width = max(map(len, prompts))
    device = backbone.head_rows().device
    ids = torch.tensor([[*prompt, *[backbone.pad_id] * (width - len(prompt))] for prompt in prompts], device=device)
    mask = torch.arange(width, device=device)[None] < torch.tensor([len(prompt) for prompt in prompts], device=device)[:, None]
    said = greedy_text(backbone, backbone.embed(ids), mask, max_tokens, temperature, seed, loop)
    rows = zip(said.ids.tolist(), said.lengths.tolist(), said.ended.tolist())
    return [(backbone.detokenize(row[:length]), ended) for row, length, ended in rows]
