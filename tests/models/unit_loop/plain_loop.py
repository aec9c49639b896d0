"""Unit decoding as one would first write it: everything anew at every step, one loop, no cache of ours. The loop is held to it."""

from __future__ import annotations

import torch
from transformers.cache_utils import DynamicCache

from echox.key_values import cached
from echox.kernels.unit_decode import GREEDY, gumbel_noise, mixed_seed
from echox.signals import valid_mask


@torch.no_grad()
def plain_targets(decoder, text, text_lengths, max_words=1024, sampling=GREEDY):
    """What `UnitDecoder.generate_targets` must give, row by row."""
    prefix, spoken = decoder.read_text(text, text_lengths)
    B, S, C = prefix.shape
    mask = valid_mask(text_lengths, S)
    cache = DynamicCache(config=decoder.body.config)
    token = torch.full((B, 1), decoder.begin_id)
    passed = torch.zeros_like(token)
    run = torch.zeros_like(token)
    done = text_lengths[:, None] == 0
    outputs = []
    embeddings = torch.cat([prefix, stepped(decoder, token, spoken, passed)], dim=1)
    for step in range(max_words):
        mask = torch.cat([mask, mask.new_ones(B, 1)], dim=1)
        positions = (mask.long().cumsum(1) - 1).clamp(min=0)[:, -embeddings.shape[1] :]
        state = decoder.body(
            inputs_embeds=embeddings, attention_mask=mask.long(), position_ids=positions, use_cache=True, **cached(decoder.body, cache)
        )
        token = chosen(decoder, decoder.logits(state.last_hidden_state[:, -1:]).float(), passed, run, text_lengths[:, None], step, sampling)
        token = torch.where(done, decoder.end_id, token)
        outputs.append(token)
        is_next = token == decoder.next_id
        embeddings = stepped(decoder, token, spoken, passed)
        passed, run = passed + is_next, torch.where(is_next, 0, run + 1)
        done = done | (token == decoder.end_id)
        if bool(done.all()):
            break
    table = torch.cat(outputs, dim=1).tolist()
    return [row[: row.index(decoder.end_id) + 1] if decoder.end_id in row else [*row, decoder.end_id] for row in table]


def chosen(decoder, scores, passed, run, text_lengths, step, sampling):
    """The choice [B, 1] among what may stand here: scores [B, 1, words + 3]."""
    scores = scores[:, 0].clone()
    scores[:, decoder.begin_id] = float("-inf")
    scores[:, decoder.end_id if decoder.config.monotonic else decoder.next_id] = float("-inf")
    token = drawn(scores, step, sampling)
    if not decoder.config.monotonic:
        return token
    token = torch.where(run >= decoder.config.max_words_per_token, decoder.next_id, token)
    return torch.where(passed >= text_lengths, decoder.end_id, token)


def drawn(scores, step, sampling):
    """The likeliest, or the largest sum of scores and the request's own noise: scores [B, V] -> [B, 1]."""
    if sampling.temperature == 0:
        return scores.argmax(-1, keepdim=True)
    if sampling.top_k:
        scores = scores.masked_fill(scores < scores.topk(sampling.top_k).values[:, -1:], float("-inf"))
    B, V = scores.shape
    seeds = torch.tensor([mixed_seed(sampling.seed + row) for row in range(B)])
    noise = gumbel_noise(seeds, torch.full((B,), step), torch.arange(V, dtype=torch.int32))
    return (scores / sampling.temperature + noise).argmax(-1, keepdim=True)


def stepped(decoder, token, spoken, passed):
    """Tokens said [B, 1] -> what the body reads next [B, 1, C]; `passed` counts the marks before them."""
    words = decoder.words(token)
    if not decoder.config.monotonic:
        return words
    at = ((token == decoder.next_id) + passed).clamp(max=spoken.shape[1] - 1)
    return words + spoken.gather(1, at[..., None].expand(-1, -1, spoken.shape[2]))
