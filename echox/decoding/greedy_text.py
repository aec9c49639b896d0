"""Text from a backbone, greedy or sampled, with the hidden state that predicted each token."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from echox.backbones.base import Backbone, BackboneState, Turn
from echox.core.signals import last_positions, valid_mask
from echox.decoding import Completion, DecodeEngine
from echox.decoding.text import continue_prompts


@dataclass(frozen=True, slots=True)
class GeneratedText:
    """A batch of generated texts, or of other sequences of tokens."""

    ids: Tensor  # [B, S] int64, end token excluded, padded with pad_id
    hidden: Tensor  # [B, S, H]: hidden[:, s] is the state that predicted ids[:, s]
    lengths: Tensor  # [B] tokens
    ended: Tensor  # [B] bool: the model ended the text, not the limit

    def rows(self) -> list[list[int]]:
        """Return the ids of each row, without padding."""
        return [row[:length] for row, length in zip(self.ids.tolist(), self.lengths.tolist())]


class CausalModel(Protocol):
    """What decoding needs of a model: the methods of a `Backbone`."""

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids [...] -> input embeddings [..., H]."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., H] -> next-token logits [..., V]."""

    def __call__(
        self, embeddings: Tensor, mask: Tensor, cache: Any = None, use_cache: bool = False
    ) -> BackboneState:
        """Run all layers, as `Backbone.forward`."""


@torch.no_grad()
def greedy_text(
    backbone: Backbone,
    embeddings: Tensor,
    mask: Tensor,
    max_tokens: int,
    temperature: float = 0.0,
    seed: int | None = None,
    engine: DecodeEngine | None = None,
    parts: Sequence[tuple[int, ...]] | None = None,
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
        parts: of each prompt, as a `Request` has them, for the engine.

    Raises:
        SignalError: scores in the engine are NaN or infinite.
    """
    if engine is not None and int(mask.sum(1).max()) + max_tokens <= engine.capacity:
        completions = continue_prompts(
            engine, embeddings, mask.sum(1).tolist(), max_tokens, temperature, seed or 0, parts
        )
        ends = [backbone.end_id, *backbone.other_end_ids]
        return text_of_completions(completions, ends, backbone.pad_id, backbone.head_rows().device)
    generator = None if seed is None else torch.Generator(embeddings.device).manual_seed(seed)
    steps = decode_steps(
        backbone,
        embeddings,
        mask,
        [backbone.end_id, *backbone.other_end_ids],
        max_tokens,
        lambda scores: _choose(scores, temperature, generator),
    )
    return gathered(steps, backbone.end_id, backbone.pad_id)


@torch.no_grad()
def decode_steps(
    model: CausalModel,
    embeddings: Tensor,
    mask: Tensor,
    end_ids: Sequence[int],
    max_tokens: int,
    choose: Callable[[Tensor], Tensor] = lambda scores: scores.argmax(-1),
) -> Iterator[tuple[Tensor, Tensor]]:
    """Decode prompts by the model's own forward, one token at a time, until every row has ended.

    Rows never influence each other. A row that has ended goes on with end tokens. Autocast is
    that of whoever asks for the next step.

    Args:
        model: the model that is decoded.
        embeddings: prompts [B, P, H], right-padded.
        mask: bool [B, P], True at positions that may be attended to; a prompt's last one is.
        end_ids: tokens that end a row, which the first of them stands for.
        max_tokens: steps at most.
        choose: takes a token from float32 scores: [B, V] -> [B].

    Yields:
        tokens [B], and the hidden states that predicted them [B, H].
    """
    B, end_id = embeddings.shape[0], end_ids[0]
    state = model(embeddings, mask, use_cache=True)
    # Prompts are right-padded: the last real position predicts, whatever the padding holds.
    last = state.hidden[torch.arange(B, device=mask.device), last_positions(mask)][:, None]
    done = torch.zeros(B, dtype=torch.bool, device=mask.device)
    other_ends = torch.tensor(end_ids[1:], dtype=torch.int64, device=mask.device)
    for step in range(max_tokens):
        token = choose(model.logits(last)[:, 0].float())  # [B]
        token = torch.where(done | torch.isin(token, other_ends), end_id, token)
        done = done | (token == end_id)
        yield token, last[:, 0]
        # Asked before the next step, so that no state is computed that predicts nothing.
        if step + 1 == max_tokens or bool(done.all()):
            return
        # The padding between prompt and text stays masked; positions count real tokens only.
        mask = torch.cat([mask, mask.new_ones(B, 1)], dim=1)
        embedded = model.embed(token[:, None]).to(embeddings.dtype)
        state = model(embedded, mask, state.cache, use_cache=True)
        last = state.hidden


def _choose(scores: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    """Scores [B, V] -> tokens [B]."""
    if temperature == 0.0:
        return scores.argmax(-1)
    return torch.multinomial((scores / temperature).softmax(-1), 1, generator=generator)[:, 0]


def gathered(steps: Iterable[tuple[Tensor, Tensor]], end_id: int, pad_id: int) -> GeneratedText:
    """Collect the steps of `decode_steps` as a batch of texts.

    Args:
        steps: tokens [B] and states [B, H] of each step.
        end_id: the token that ends a row.
        pad_id: the padding of shorter rows.
    """
    ids, hidden = zip(*steps)
    # A row that has ended repeats the end token until the last step.
    return _until_end(
        torch.stack(ids, 1), torch.stack(hidden, 1), ids[-1] == end_id, end_id, pad_id
    )


def text_of_completions(
    completions: Sequence[Completion],
    end_ids: Sequence[int],
    pad_id: int,
    device: torch.device,
) -> GeneratedText:
    """Collect the engine's completions, which lie on the host, as a batch of texts on a device.

    Args:
        completions: of one codebook.
        end_ids: tokens that end a row, which the first of them stands for.
        pad_id: the padding of shorter rows.
        device: of the result.

    Returns:
        ids [B, S]; states [B, S, H], or [B, S, 0] where the engine does not keep them.
    """
    end_id = end_ids[0]
    tokens = [completion.tokens[:, 0] for completion in completions]
    states = [
        completion.tokens.new_empty(len(completion.tokens), 0)
        if completion.states is None
        else completion.states
        for completion in completions
    ]
    ids = pad_sequence(tokens, batch_first=True, padding_value=end_id)
    hidden = pad_sequence(states, batch_first=True)
    other_ends = torch.tensor(end_ids[1:], dtype=torch.int64)
    ids = torch.where(torch.isin(ids, other_ends), end_id, ids)
    # Padding is the end token too, so only a row's own last token tells whether it ended.
    ended = [int(row[len(own) - 1]) == end_id for row, own in zip(ids, tokens)]
    done = torch.tensor(ended)
    return _until_end(ids.to(device), hidden.to(device), done.to(device), end_id, pad_id)


def _until_end(
    ids: Tensor, hidden: Tensor, done: Tensor, end_id: int, pad_id: int
) -> GeneratedText:
    """Rows [B, S] without their end tokens and what follows them."""
    is_end = ids == end_id
    lengths = torch.where(is_end.any(1), is_end.long().argmax(1), ids.shape[1])
    # At least one column: later layers take no empty sequences.
    size = max(1, int(lengths.max()))
    padding = ~valid_mask(lengths, size)
    ids = ids[:, :size].masked_fill(padding, pad_id)
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
    rows = zip(generated.rows(), generated.ended.tolist())
    return [(backbone.detokenize(ids), ended) for ids, ended in rows]
