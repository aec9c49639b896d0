"""K codebooks in the engine, parallel or delayed, against a loop without a cache."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaModel

from echox.core.errors import ConfigError
from echox.decoding import DecodeEngine
from echox.decoding.codebooks import CodebookSteps
from echox.kernels.codec_head_loss import CodecHead
from echox.kernels.unit_decode import UnitRequest, gumbel_noise, mixed_seed

SIZES = [7, 9, 6]  # entries; the last of each codebook is no code
CUTS = [0, 7, 16, 22]
PATTERNS = {"parallel": [0, 0, 0], "delayed": [0, 1, 2], "uneven": [0, 3, 1]}


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(0)
    shape = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
    }
    body = LlamaModel(LlamaConfig(vocab_size=1, **shape)).eval()
    head = CodecHead(32, SIZES)
    torch.nn.init.normal_(head.weight, std=0.4)
    return body, head, torch.randn(sum(SIZES), 32)


def prompts():
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(length, 32, generator=generator) for length in (4, 1, 6)]


@torch.no_grad()
def plain_codes(parts, prompt, delays, steps, temperature, seed):
    """Codes by a loop that recomputes the whole sequence at every step."""
    body, head, vectors = parts
    inputs, tokens, ended = prompt, [], None
    for t in range(steps):
        scores = head(body(inputs_embeds=inputs[None], use_cache=False).last_hidden_state[0, -1])
        if temperature:
            noise = gumbel_noise(
                torch.tensor([mixed_seed(seed)]),
                torch.tensor([t]),
                torch.arange(CUTS[-1], dtype=torch.int32),
            )[0]
            scores = scores / temperature + noise
        frame = []
        for k, delay in enumerate(delays):
            no_code = SIZES[k] - 1
            free = scores[CUTS[k] : CUTS[k + 1]][: SIZES[k] if k == 0 else no_code]
            silent = t < delay or (ended is not None and t >= ended + delay)
            frame.append(no_code if silent else int(free.argmax()))
        tokens.append(frame)
        ended = t if ended is None and frame[0] == SIZES[0] - 1 else ended
        if ended is not None and t == ended + max(delays):
            break
        inputs = torch.cat(
            [inputs, sum(vectors[CUTS[k] + token] for k, token in enumerate(frame))[None]]
        )
    F = ended if ended is not None else len(tokens) - max(delays)
    return [[tokens[f + delay][k] for f in range(F)] for k, delay in enumerate(delays)]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_codes_are_those_of_the_plain_loop(parts, pattern, temperature):
    body, head, vectors = parts
    steps = CodebookSteps(body, head, vectors, PATTERNS[pattern])
    engine = DecodeEngine(steps, slots=2, capacity=48)
    requests = [
        steps.request_for(prompt, UnitRequest(max_length=24, temperature=temperature, seed=row))
        for row, prompt in enumerate(prompts())
    ]
    lengths = set()
    for row, (prompt, completion) in enumerate(zip(prompts(), engine.run(requests))):
        expected = plain_codes(parts, prompt, PATTERNS[pattern], 24, temperature, row)
        codes = steps.codes(completion.tokens)
        assert codes.tolist() == expected
        assert all(int(book.max()) < size - 1 for book, size in zip(codes, SIZES) if len(book))
        lengths.add(codes.shape[1])
    assert len(lengths) > 1 or not temperature  # some end on their own, some by the limit


@pytest.mark.parametrize("delays", [[0, 1], [1, 0, 0], [0, -1, 0]])
def test_delays_must_fit(parts, delays):
    with pytest.raises(ConfigError, match="delays"):
        CodebookSteps(*parts, delays)
