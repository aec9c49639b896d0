"""The decode loop says what the plain loop says, whoever else is seated, and whenever a request comes."""

import pytest
import torch
from plain_loop import plain_targets

from echox.errors import ConfigError, SignalError
from echox.kernels.unit_decode import UnitRequest
from echox.models.unit_decoder import UnitDecoder, UnitDecoderConfig
from echox.models.unit_loop import Ask, Impl, Steps, UnitLoop, seats
from echox.models.unit_loop.gpu_body import GpuBody
from echox.models.unit_loop.graphs import buckets
from echox.models.unit_loop.text_speech import UnitDecoderSteps, decoder_loop, speak_targets
from echox.models.unit_loop.watching import Parcel, PinnedWatch

LENGTHS = torch.tensor([7, 0, 3, 1, 5, 2])
MANNERS = {
    "greedy": UnitRequest(),
    "drawn": UnitRequest(temperature=1.3, seed=5),
    "drawn from the best": UnitRequest(temperature=1.3, seed=5, top_k=4),
}


def decoder(monotonic=True, **changes):
    torch.manual_seed(0)
    config = UnitDecoderConfig(layers=2, width=32, heads=2, feed_forward=64, monotonic=monotonic, max_words_per_token=6, **changes)
    return UnitDecoder(config, text_width=16, word_count=20).eval()


def texts():
    return torch.randn(len(LENGTHS), 7, 16, generator=torch.Generator().manual_seed(1))


def asks(loop, model, max_words=40, **how):
    """One request for each text that has tokens."""
    with torch.no_grad():
        prefix, spoken = model.read_text(texts(), LENGTHS)
    request = UnitRequest(stop_ids=[model.end_id], max_length=max_words, **how)
    return [
        loop.steps.ask(prefix[row, :length], spoken[row, : length + 1], request) for row, length in enumerate(LENGTHS.tolist()) if length
    ]


@pytest.mark.parametrize("manner", MANNERS)
@pytest.mark.parametrize("monotonic", [True, False])
def test_it_says_what_the_plain_loop_says(monotonic, manner):
    model, sampling = decoder(monotonic), MANNERS[manner]
    expected = plain_targets(model, texts(), LENGTHS, 40, sampling)
    assert speak_targets(model, texts(), LENGTHS, 40, sampling=sampling) == expected
    assert len(set(map(tuple, expected))) > 3 and any(len(row) > 20 for row in expected) or (not monotonic and manner == "greedy")


def test_a_gpus_body_says_the_same(monkeypatch):
    """Its kernels are interpreted; rows move to other slots and come into used ones."""
    model = decoder()
    expected = speak_targets(model, texts(), LENGTHS, 12)
    monkeypatch.setattr(seats, "_body_for", lambda steps, dtype: GpuBody)
    loop = decoder_loop(model, slots=2, capacity=32)
    assert type(loop._seats.body) is GpuBody
    assert speak_targets(model, texts(), LENGTHS, 12, loop=loop) == expected


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_fewer_slots_than_requests_change_nothing(slots):
    model = decoder()
    loop = decoder_loop(model, slots=slots, capacity=64)
    expected = speak_targets(model, texts(), LENGTHS, 40)
    for _ in range(2):  # the second time in slots that have been used
        assert speak_targets(model, texts(), LENGTHS, 40, loop=loop) == expected


def test_a_request_draws_the_same_in_any_batch():
    model, sampling = decoder(), MANNERS["drawn"]
    together = speak_targets(model, texts(), LENGTHS, 40, sampling=sampling)
    for row, length in enumerate(LENGTHS.tolist()):
        alone = UnitRequest(temperature=1.3, seed=5 + row)
        assert speak_targets(model, texts()[row : row + 1, : max(1, length)], LENGTHS[row : row + 1], 40, sampling=alone) == [together[row]]


def test_requests_enter_while_others_speak():
    model = decoder()
    loop = decoder_loop(model, slots=3, capacity=64)
    expected = [row[:40] for row in speak_targets(model, texts(), LENGTHS, 40) if len(row) > 1]
    coming, tickets = asks(loop, model), []
    for ask in coming:  # one every five steps, more than there are slots
        tickets.append(loop.add(ask))
        for _ in range(5):
            assert loop.advance()
    last_first = loop.wait(tickets[::-1])[::-1]
    assert [found.tokens[:, 0].tolist() for found in last_first] == expected
    assert not loop.advance()
    with pytest.raises(KeyError, match="ticket 0 is of no request"):
        loop.wait([0])


def test_mixed_requests_share_the_loop():
    """One drawn, one greedy, one short: each gets what it would get alone."""
    model = decoder()
    mixed = UnitLoop(UnitDecoderSteps(model), slots=3, capacity=64)
    greedy, drawn, short = asks(mixed, model)[0], asks(mixed, model, temperature=1.0, seed=3)[1], asks(mixed, model, max_words=4)[2]
    together = mixed.run([greedy, drawn, short])
    for ask, found in zip((greedy, drawn, short), together):
        (alone,) = UnitLoop(UnitDecoderSteps(model), slots=1, capacity=64).run([ask])
        assert torch.equal(found.tokens, alone.tokens)
    assert len(together[2].tokens) == 4


def test_hidden_states_are_those_that_predicted_the_tokens():
    model = decoder()
    loop = UnitLoop(UnitDecoderSteps(model), slots=2, capacity=64, keep_states=True)
    found = loop.run(asks(loop, model))
    targets = [row for row in speak_targets(model, texts(), LENGTHS, 40) if len(row) > 1]
    kept = [row for row, length in enumerate(LENGTHS.tolist()) if length]
    for row, spoken, target in zip(kept, found, targets):
        with torch.no_grad():
            states = model(texts()[row : row + 1], LENGTHS[row : row + 1], torch.tensor([target]))[0]
        torch.testing.assert_close(spoken.states, states[: len(spoken.states)], atol=1e-5, rtol=0)


def test_scores_that_are_no_numbers_end_their_row_alone():
    model = decoder()
    loop = decoder_loop(model, slots=6, capacity=64)
    sound = asks(loop, model)
    broken = Ask(torch.full_like(sound[1].inputs, float("nan")), sound[1].request, sound[1].rules)
    found = loop.run([sound[0], broken, *sound[2:]])
    expected = loop.run(sound)
    assert [spoken.failed for spoken in found] == [False, True, False, False, False]
    assert all(torch.equal(one.tokens, other.tokens) for one, other in zip(found, expected) if not one.failed)
    damaged = texts()
    damaged[0, 0] = float("inf")
    with pytest.raises(SignalError, match="text 0 are not finite"):
        speak_targets(model, damaged, LENGTHS, 40)


def test_what_does_not_fit_is_a_sentence():
    model = decoder()
    with pytest.raises(
        SignalError, match="a text of 7 positions and up to 40 tokens of speech need 47 positions, and the unit decoder has 46"
    ):
        speak_targets(model, texts(), LENGTHS, 40, loop=decoder_loop(model, slots=2, capacity=46))
    assert speak_targets(model, texts(), LENGTHS, 40, loop=decoder_loop(model, slots=2, capacity=47))
    with pytest.raises(ConfigError, match="impl=graph captures CUDA graphs, and this unit decoder is on cpu"):
        decoder_loop(model, impl=Impl.graph)


def test_a_body_with_biases_is_refused():
    model = decoder()
    model.body.config.attention_bias = True
    with pytest.raises(ConfigError, match="has biases"):
        decoder_loop(model)


def test_autocast_decides_the_precision_and_training_goes_on_beside_it():
    model = decoder()
    with torch.autocast("cpu", torch.bfloat16):
        loop = decoder_loop(model, slots=2, capacity=64)
    assert loop.dtype is torch.bfloat16 and decoder_loop(model, slots=1, capacity=64).dtype is torch.float32
    before = speak_targets(model, texts(), LENGTHS, 40, loop=loop)
    assert all(len(row) > 1 for row, length in zip(before, LENGTHS) if length)
    with torch.no_grad():
        for weight in model.body.parameters():
            weight.zero_()
    assert loop.run(asks(loop, model)[:1])  # its weights are its own
    model.train().logits(model(texts(), LENGTHS.clamp(min=1), torch.full((6, 3), 4))).sum().backward()
    assert model.head.weight.grad is not None


def test_grouped_keys_and_a_plain_head():
    """A body with fewer key heads than query heads, by itself: `Steps` as it comes."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaModel

    from echox.kernels.unit_decode import UnitHead

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    body = LlamaModel(LlamaConfig(vocab_size=30, **shape)).eval()
    head, prompts = torch.randn(30, 32), [torch.randn(length, 32) for length in (1, 6, 3)]
    vectors = body.embed_tokens.weight
    loop = UnitLoop(Steps(body, UnitHead.of(head, embedding=vectors)), slots=2, capacity=32)
    for prompt, found in zip(prompts, loop.run(Ask(prompt, UnitRequest(max_length=12)) for prompt in prompts)):
        inputs, said = prompt, []
        for _ in range(12):
            with torch.no_grad():
                said.append(int((body(inputs_embeds=inputs[None], use_cache=False).last_hidden_state[0, -1] @ head.T).argmax()))
            inputs = torch.cat([inputs, vectors[said[-1]][None].detach()])
        assert found.tokens[:, 0].tolist() == said


class SlowEvent:
    """A copy that arrives after it was asked for some times, or is waited for."""

    def __init__(self, times):
        self.times = times

    def query(self):
        self.times -= 1
        return self.times < 0

    def synchronize(self):
        pass


class LateWatch(PinnedWatch):
    """What a GPU's watch does, with copies that take their time."""

    def fetch(self, *found):
        return Parcel(tuple(tensor.clone() for tensor in found), SlowEvent(3 + len(found)))


@pytest.mark.parametrize("slots", [1, 3, 6])
def test_ends_may_be_learnt_late(slots):
    """Rows that have ended, and rows moved meanwhile, keep what they said; others see nothing of them."""
    model = decoder()
    loop = UnitLoop(UnitDecoderSteps(model), slots=slots, capacity=64, keep_states=True)
    expected = loop.run(asks(loop, model))
    loop._watch = LateWatch()
    for _ in range(2):
        for found, wanted in zip(loop.run(asks(loop, model)), expected, strict=True):
            assert torch.equal(found.tokens, wanted.tokens)
            torch.testing.assert_close(found.states, wanted.states, atol=1e-5, rtol=0)


def test_batch_sizes_with_a_graph():
    assert [buckets(slots) for slots in (1, 2, 6, 64)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8, 16, 32, 64]]
