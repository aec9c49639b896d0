"""Text from a backbone, greedy or sampled, with the hidden state that predicted each token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from echox.backbones.base import Backbone, Turn
from echox.core.signals import valid_mask
from echox.decoding import Completion, DecodeEngine
from echox.decoding.text import continue_prompts


@dataclass(frozen=True, slots=True)
class GeneratedText:
    """A batch of generated texts."""

    ids: Tensor  # [B, S] int64, end token excluded, padded with pad_id
    hidden: Tensor  # [B, S, H]: hidden[:, s] is the state that predicted ids[:, s]
    lengths: Tensor  # [B] tokens
    ended: Tensor  # [B] bool: the model ended the text, not the limit


@torch.no_grad()
def greedy_text(
    backbone: Backbone,
    embeddings: Tensor,
    mask: Tensor,
    max_tokens: int,
    temperature: float = 0.0,
    seed: int | None = None,
    engine: DecodeEngine | None = None,
) -> GeneratedText:
    """Generate text from prompts of different lengths; rows never influence each other.

    Args:
        backbone: the language model.
        embeddings: prompts [B, P, H], right-padded.
        mask: bool [B, P], True at real positions.
        max_tokens: text tokens at most, the end token included.
        temperature: 0 is greedy; above, tokens are sampled with `seed`.
        seed: of the samples; None takes the global generator, or 0 in an engine.
        engine: `text_decode_engine` of the backbone, which is faster and generates the same
            greedy text; a batch that is too long for it goes without.

    Raises:
        SignalError: scores in the engine are NaN or infinite.
    """
    if engine is not None and int(mask.sum(1).max()) + max_tokens <= engine.capacity:
        completions = continue_prompts(
            engine, embeddings, mask.sum(1).tolist(), max_tokens, temperature, seed or 0
        )
        return _text_of(completions, backbone)
    return _stepwise_text(backbone, embeddings, mask, max_tokens, temperature, seed)


def _stepwise_text(
    backbone: Backbone,
    embeddings: Tensor,
    mask: Tensor,
    max_tokens: int,
    temperature: float,
    seed: int | None,
) -> GeneratedText:
    """Text by the backbone's own forward, token by token; arguments as in `greedy_text`."""
    B = embeddings.shape[0]
    generator = None if seed is None else torch.Generator(embeddings.device).manual_seed(seed)
    state = backbone(embeddings, mask, use_cache=True)
    # Prompts are right-padded: the last real position predicts, whatever the padding holds.
    last = state.hidden[torch.arange(B, device=mask.device), mask.sum(1) - 1][:, None]
    done = torch.zeros(B, dtype=torch.bool, device=mask.device)
    other_ends = torch.tensor(backbone.other_end_ids, dtype=torch.int64, device=mask.device)
    ids, hidden = [], []
    for _ in range(max_tokens):
        token = _choose(backbone.logits(last)[:, 0].float(), temperature, generator)  # [B]
        token = torch.where(done | torch.isin(token, other_ends), backbone.end_id, token)
        done = done | (token == backbone.end_id)
        ids.append(token)
        hidden.append(last[:, 0])
        if bool(done.all()):
            break
        # The padding between prompt and text stays masked; positions count real tokens only.
        mask = torch.cat([mask, mask.new_ones(B, 1)], dim=1)
        embedded = backbone.embed(token[:, None]).to(embeddings.dtype)
        state = backbone(embedded, mask, state.cache, use_cache=True)
        last = state.hidden
    return _until_end(torch.stack(ids, 1), torch.stack(hidden, 1), done, backbone)


def _choose(scores: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    """Scores [B, V] -> tokens [B]."""
    if temperature == 0.0:
        return scores.argmax(-1)
    return torch.multinomial((scores / temperature).softmax(-1), 1, generator=generator)[:, 0]


def _text_of(completions: list[Completion], backbone: Backbone) -> GeneratedText:
    """The engine's completions, which lie on the host, as a batch on the backbone's device."""
    device, end_id = backbone.head_rows().device, backbone.end_id
    tokens = [completion.tokens[:, 0] for completion in completions]
    ids = pad_sequence(tokens, batch_first=True, padding_value=end_id)
    hidden = pad_sequence([completion.states for completion in completions], batch_first=True)
    other_ends = torch.tensor(backbone.other_end_ids, dtype=torch.int64)
    ids = torch.where(torch.isin(ids, other_ends), end_id, ids)
    # Padding is the end token too, so only a row's own last token tells whether it ended.
    ended = [int(row[len(own) - 1]) == end_id for row, own in zip(ids, tokens)]
    done = torch.tensor(ended)
    return _until_end(ids.to(device), hidden.to(device), done.to(device), backbone)


def _until_end(ids: Tensor, hidden: Tensor, done: Tensor, backbone: Backbone) -> GeneratedText:
    """Rows [B, S] without their end tokens and what follows them."""
    is_end = ids == backbone.end_id
    lengths = torch.where(is_end.any(1), is_end.long().argmax(1), ids.shape[1])
    # At least one column: later layers take no empty sequences.
    size = max(1, int(lengths.max()))
    padding = ~valid_mask(lengths, size)
    ids = ids[:, :size].masked_fill(padding, backbone.pad_id)
    return GeneratedText(ids, hidden[:, :size], lengths, done)


@torch.no_grad()
def answer_typed(
    backbone: Backbone,
    questions: list[str],
    max_tokens: int = 40,
    temperature: float = 0.0,
    seed: int | None = None,
    engine: DecodeEngine | None = None,
) -> list[str]:
    """The language model's answers to typed questions, in one batch.

    Arguments and errors are those of `greedy_text`.
    """
    answers = answers_and_ends(backbone, questions, max_tokens, temperature, seed, engine)
    return [text for text, _ in answers]


def answers_and_ends(
    backbone: Backbone,
    questions: list[str],
    max_tokens: int = 40,
    temperature: float = 0.0,
    seed: int | None = None,
    engine: DecodeEngine | None = None,
) -> list[tuple[str, bool]]:
    """Answers to typed questions, each with whether it ended before `max_tokens`.

    Arguments and errors are those of `greedy_text`.
    """
    prompts = [
        torch.tensor(backbone.prompt([Turn("user", question)])[0], dtype=torch.int64)
        for question in questions
    ]
    device = backbone.head_rows().device
    ids = pad_sequence(prompts, batch_first=True, padding_value=backbone.pad_id).to(device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    mask = valid_mask(lengths, ids.shape[1])
    generated = greedy_text(
        backbone, backbone.embed(ids), mask, max_tokens, temperature, seed, engine
    )
    rows = zip(generated.ids.tolist(), generated.lengths.tolist(), generated.ended.tolist())
    return [(backbone.detokenize(ids[:length]), ended) for ids, length, ended in rows]
