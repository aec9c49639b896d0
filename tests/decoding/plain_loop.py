"""Reference unit decoding that the engine must equal: one loop, with the library's cache."""

from __future__ import annotations

import torch
from transformers.cache_utils import DynamicCache

from echox.core.signals import valid_mask
from echox.core.transformers_compat import cache_kwargs
from echox.kernels.unit_decode import GREEDY, gumbel_noise, mixed_seed


@torch.no_grad()
def plain_targets(decoder, text, text_lengths, max_steps=1024, sampling=GREEDY):
    """The expected result of `generate_targets`, row by row."""
    prefix, conditioning = decoder.read_text(text, text_lengths)
    B, S, C = prefix.shape
    mask = valid_mask(text_lengths, S)
    cache = DynamicCache(config=decoder.body.config)
    token = torch.full((B, 1), decoder.begin_id)
    passed = torch.zeros_like(token)
    run = torch.zeros_like(token)
    done = text_lengths[:, None] == 0
    outputs = []
    embeddings = torch.cat([prefix, step_input(decoder, token, conditioning, passed)], dim=1)
    for step in range(max_steps):
        mask = torch.cat([mask, mask.new_ones(B, 1)], dim=1)
        positions = (mask.long().cumsum(1) - 1).clamp(min=0)[:, -embeddings.shape[1] :]
        state = decoder.body(
            inputs_embeds=embeddings,
            attention_mask=mask.long(),
            position_ids=positions,
            use_cache=True,
            **cache_kwargs(decoder.body, cache),
        )
        token = chosen_token(
            decoder,
            decoder.logits(state.last_hidden_state[:, -1:]).float(),
            passed,
            run,
            text_lengths[:, None],
            step,
            sampling,
        )
        token = torch.where(done, decoder.end_id, token)
        outputs.append(token)
        is_next = token == decoder.next_id
        embeddings = step_input(decoder, token, conditioning, passed)
        passed, run = passed + is_next, torch.where(is_next, 0, run + 1)
        done = done | (token == decoder.end_id)
        if bool(done.all()):
            break
    table = torch.cat(outputs, dim=1).tolist()
    return [
        row[: row.index(decoder.end_id) + 1] if decoder.end_id in row else [*row, decoder.end_id]
        for row in table
    ]


def chosen_token(decoder, scores, passed, run, text_lengths, step, sampling):
    """The next token [B, 1], rules included: scores [B, 1, words + 3]."""
    scores = scores[:, 0].clone()
    scores[:, decoder.begin_id] = float("-inf")
    scores[:, decoder.end_id if decoder.config.monotonic else decoder.next_id] = float("-inf")
    token = sampled_token(scores, step, sampling)
    if not decoder.config.monotonic:
        return token
    token = torch.where(run >= decoder.config.max_words_per_token, decoder.next_id, token)
    return torch.where(passed >= text_lengths, decoder.end_id, token)


def sampled_token(scores, step, sampling):
    """Greedy, or Gumbel sampling with the request's own noise: scores [B, V] -> [B, 1]."""
    if sampling.temperature == 0:
        return scores.argmax(-1, keepdim=True)
    if sampling.top_k:
        scores = scores.masked_fill(
            scores < scores.topk(sampling.top_k).values[:, -1:], float("-inf")
        )
    B, V = scores.shape
    seeds = torch.tensor([mixed_seed(sampling.seed + row) for row in range(B)])
    noise = gumbel_noise(seeds, torch.full((B,), step), torch.arange(V, dtype=torch.int32))
    return (scores / sampling.temperature + noise).argmax(-1, keepdim=True)


def step_input(decoder, token, conditioning, passed):
    """Tokens [B, 1] -> the body's next input [B, 1, C]; `passed` counts the marks before them."""
    vectors = decoder.words(token)
    if not decoder.config.monotonic:
        return vectors
    index = ((token == decoder.next_id) + passed).clamp(max=conditioning.shape[1] - 1)
    return vectors + conditioning.gather(1, index[..., None].expand(-1, -1, conditioning.shape[2]))
