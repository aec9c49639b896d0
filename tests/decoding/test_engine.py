"""The decode engine equals a plain loop, whatever other requests there are and when they enter."""

import dataclasses

import pytest
import torch
from plain_loop import plain_targets

from echox.core.errors import ConfigError, SignalError
from echox.decoding import DecodeEngine, Impl, Request, Steps
from echox.decoding import slots as slots_module
from echox.decoding.gpu_body import GpuBody
from echox.decoding.graphs import buckets
from echox.decoding.polling import HostCopy, PinnedFinishPoller
from echox.kernels.unit_decode import UnitRequest
from echox.models.unit_decoder import UnitDecoder, UnitDecoderConfig
from echox.models.unit_generation import UnitDecoderSteps, generate_targets, unit_decode_engine

LENGTHS = torch.tensor([7, 0, 3, 1, 5, 2])
SAMPLING = {
    "greedy": UnitRequest(),
    "sampled": UnitRequest(temperature=1.3, seed=5),
    "top-k": UnitRequest(temperature=1.3, seed=5, top_k=4),
}


def decoder(monotonic=True, **changes):
    torch.manual_seed(0)
    config = UnitDecoderConfig(
        layers=2,
        width=32,
        heads=2,
        feed_forward=64,
        monotonic=monotonic,
        max_words_per_token=6,
        **changes,
    )
    return UnitDecoder(config, text_width=16, unit_vocab_size=20).eval()


def texts():
    return torch.randn(len(LENGTHS), 7, 16, generator=torch.Generator().manual_seed(1))


def requests_for(engine, model, max_steps=40, **settings):
    """One request for each text that has tokens."""
    with torch.no_grad():
        prefix, conditioning = model.read_text(texts(), LENGTHS)
    sampling = UnitRequest(stop_ids=[model.end_id], max_length=max_steps, **settings)
    return [
        engine.steps.request_for(prefix[row, :length], conditioning[row, : length + 1], sampling)
        for row, length in enumerate(LENGTHS.tolist())
        if length
    ]


@pytest.mark.parametrize("name", SAMPLING)
@pytest.mark.parametrize("monotonic", [True, False])
def test_targets_equal_the_plain_loop(monotonic, name):
    model, sampling = decoder(monotonic), SAMPLING[name]
    expected = plain_targets(model, texts(), LENGTHS, 40, sampling)
    assert generate_targets(model, texts(), LENGTHS, 40, sampling=sampling) == expected
    assert (
        len(set(map(tuple, expected))) > 3
        and any(len(row) > 20 for row in expected)
        or (not monotonic and name == "greedy")
    )


def test_the_gpu_body_gives_the_same_targets(monkeypatch):
    """Its kernels are interpreted; rows move to other slots and come into used ones."""
    model = decoder()
    expected = generate_targets(model, texts(), LENGTHS, 12)
    monkeypatch.setattr(slots_module, "_body_class", lambda steps, dtype: GpuBody)
    engine = unit_decode_engine(model, slots=2, capacity=32)
    assert type(engine._batch.body) is GpuBody
    assert generate_targets(model, texts(), LENGTHS, 12, engine=engine) == expected


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_fewer_slots_than_requests_change_nothing(slots):
    model = decoder()
    engine = unit_decode_engine(model, slots=slots, capacity=64)
    expected = generate_targets(model, texts(), LENGTHS, 40)
    for _ in range(2):  # the second time in slots that have been used
        assert generate_targets(model, texts(), LENGTHS, 40, engine=engine) == expected


def test_a_request_samples_the_same_in_any_batch():
    model, sampling = decoder(), SAMPLING["sampled"]
    together = generate_targets(model, texts(), LENGTHS, 40, sampling=sampling)
    for row, length in enumerate(LENGTHS.tolist()):
        alone = UnitRequest(temperature=1.3, seed=5 + row)
        assert generate_targets(
            model,
            texts()[row : row + 1, : max(1, length)],
            LENGTHS[row : row + 1],
            40,
            sampling=alone,
        ) == [together[row]]


def test_requests_enter_while_others_are_decoded():
    model = decoder()
    engine = unit_decode_engine(model, slots=3, capacity=64)
    expected = [row[:40] for row in generate_targets(model, texts(), LENGTHS, 40) if len(row) > 1]
    tickets = []
    # One request every five steps, more than there are slots.
    for request in requests_for(engine, model):
        tickets.append(engine.add(request))
        for _ in range(5):
            assert engine.advance()
    completions = engine.wait(tickets[::-1])[::-1]
    assert [each.tokens[:, 0].tolist() for each in completions] == expected
    assert not engine.advance()
    with pytest.raises(KeyError, match="ticket 0 is of no request"):
        engine.wait([0])


def test_progress_gives_every_token_once_and_collects_at_the_end():
    model = decoder()
    engine = unit_decode_engine(model, slots=3, capacity=64)
    expected = [row[:40] for row in generate_targets(model, texts(), LENGTHS, 40) if len(row) > 1]
    waiting = {engine.add(request): [] for request in requests_for(engine, model)}
    tokens = dict(waiting)
    while waiting:
        engine.advance()
        for ticket in list(waiting):
            progress = engine.progress(ticket, len(tokens[ticket]))
            assert len(progress.tokens) <= 1 and not progress.failed
            tokens[ticket] = tokens[ticket] + progress.tokens[:, 0].tolist()
            if progress.ended:
                del waiting[ticket]
    assert list(tokens.values()) == expected
    with pytest.raises(KeyError, match="ticket 0 is of no request"):
        engine.progress(0)


def test_a_cancelled_request_frees_its_slot_and_changes_no_other():
    model = decoder()
    engine = unit_decode_engine(model, slots=2, capacity=64)
    expected = [row[:40] for row in generate_targets(model, texts(), LENGTHS, 40) if len(row) > 1]
    tickets = [engine.add(request) for request in requests_for(engine, model)]
    for _ in range(3):
        engine.advance()
    # One that is decoded, one that waits, one that nobody knows.
    engine.cancel([tickets[0], tickets[3], 99])
    kept = [ticket for ticket in tickets if ticket not in (tickets[0], tickets[3])]
    assert [each.tokens[:, 0].tolist() for each in engine.wait(kept)] == [
        expected[tickets.index(ticket)] for ticket in kept
    ]
    assert engine.is_idle
    with pytest.raises(KeyError):
        engine.progress(tickets[0])


def test_mixed_requests_share_the_engine():
    """One greedy, one sampled, one short: each gets what it would get alone."""
    model = decoder()
    engine = DecodeEngine(UnitDecoderSteps(model), slots=3, capacity=64)
    requests = [
        requests_for(engine, model)[0],
        requests_for(engine, model, temperature=1.0, seed=3)[1],
        requests_for(engine, model, max_steps=4)[2],
    ]
    together = engine.run(requests)
    for request, completion in zip(requests, together):
        (alone,) = DecodeEngine(UnitDecoderSteps(model), slots=1, capacity=64).run([request])
        assert torch.equal(completion.tokens, alone.tokens)
    assert len(together[2].tokens) == 4


def test_hidden_states_are_those_that_predicted_the_tokens():
    model = decoder()
    engine = DecodeEngine(UnitDecoderSteps(model), slots=2, capacity=64, keep_states=True)
    completions = engine.run(requests_for(engine, model))
    targets = [row for row in generate_targets(model, texts(), LENGTHS, 40) if len(row) > 1]
    rows = [row for row, length in enumerate(LENGTHS.tolist()) if length]
    for row, completion, target in zip(rows, completions, targets):
        text, length = texts()[row : row + 1], LENGTHS[row : row + 1]
        with torch.no_grad():
            states = model(text, length, torch.tensor([target]))[0]
        expected = states[: len(completion.states)]
        torch.testing.assert_close(completion.states, expected, atol=1e-5, rtol=0)


def test_nan_scores_end_their_row_alone():
    model = decoder()
    engine = unit_decode_engine(model, slots=6, capacity=64)
    sound = requests_for(engine, model)
    broken = dataclasses.replace(sound[1], inputs=torch.full_like(sound[1].inputs, float("nan")))
    completions = engine.run([sound[0], broken, *sound[2:]])
    expected = engine.run(sound)
    assert [each.failed for each in completions] == [False, True, False, False, False]
    assert all(
        torch.equal(one.tokens, other.tokens)
        for one, other in zip(completions, expected)
        if not one.failed
    )
    damaged = texts()
    damaged[0, 0] = float("inf")
    with pytest.raises(SignalError, match="text 0 are not finite"):
        generate_targets(model, damaged, LENGTHS, 40)


def test_requests_beyond_the_capacity_are_refused():
    model = decoder()
    with pytest.raises(
        SignalError,
        match="a text of 7 positions and up to 40 tokens of speech need 47 positions, "
        "and the unit decoder has 46",
    ):
        generate_targets(
            model, texts(), LENGTHS, 40, engine=unit_decode_engine(model, slots=2, capacity=46)
        )
    assert generate_targets(
        model, texts(), LENGTHS, 40, engine=unit_decode_engine(model, slots=2, capacity=47)
    )
    with pytest.raises(
        ConfigError, match="impl=graph captures CUDA graphs, and this unit decoder is on cpu"
    ):
        unit_decode_engine(model, impl=Impl.graph)


def test_a_body_with_biases_is_refused():
    model = decoder()
    model.body.config.attention_bias = True
    with pytest.raises(ConfigError, match="has biases"):
        unit_decode_engine(model)


def test_autocast_sets_the_precision_and_the_engine_keeps_its_weights():
    model = decoder()
    with torch.autocast("cpu", torch.bfloat16):
        engine = unit_decode_engine(model, slots=2, capacity=64)
    assert (
        engine.dtype is torch.bfloat16
        and unit_decode_engine(model, slots=1, capacity=64).dtype is torch.float32
    )
    before = generate_targets(model, texts(), LENGTHS, 40, engine=engine)
    assert all(len(row) > 1 for row, length in zip(before, LENGTHS) if length)
    with torch.no_grad():
        for weight in model.body.parameters():
            weight.zero_()
    assert engine.run(requests_for(engine, model)[:1])
    model.train().logits(
        model(texts(), LENGTHS.clamp(min=1), torch.full((6, 3), 4))
    ).sum().backward()
    assert model.head.weight.grad is not None


def test_grouped_keys_and_a_plain_head():
    """A body with fewer key heads than query heads, under the plain `Steps`."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaModel

    from echox.kernels.unit_decode import UnitHead

    torch.manual_seed(0)
    shape = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    body = LlamaModel(LlamaConfig(vocab_size=30, **shape)).eval()
    head, prompts = torch.randn(30, 32), [torch.randn(length, 32) for length in (1, 6, 3)]
    vectors = body.embed_tokens.weight
    engine = DecodeEngine(Steps(body, UnitHead.of(head, embedding=vectors)), slots=2, capacity=32)
    completions = engine.run(Request(prompt, UnitRequest(max_length=12)) for prompt in prompts)
    for prompt, completion in zip(prompts, completions):
        inputs, tokens = prompt, []
        for _ in range(12):
            with torch.no_grad():
                states = body(inputs_embeds=inputs[None], use_cache=False).last_hidden_state
                tokens.append(int((states[0, -1] @ head.T).argmax()))
            inputs = torch.cat([inputs, vectors[tokens[-1]][None].detach()])
        assert completion.tokens[:, 0].tolist() == tokens


class SlowEvent:
    """The event of a copy that arrives after some queries, or when it is waited for."""

    def __init__(self, queries):
        self.queries = queries

    def query(self):
        self.queries -= 1
        return self.queries < 0

    def synchronize(self):
        pass


class LatePoller(PinnedFinishPoller):
    """A GPU's poller whose copies arrive late."""

    def fetch(self, *tensors):
        return HostCopy(tuple(tensor.clone() for tensor in tensors), SlowEvent(3 + len(tensors)))


@pytest.mark.parametrize("slots", [1, 3, 6])
def test_finished_rows_may_be_reported_late(slots):
    """Finished rows, and rows moved meanwhile, keep their tokens; others are not affected."""
    model = decoder()
    engine = DecodeEngine(UnitDecoderSteps(model), slots=slots, capacity=64, keep_states=True)
    expected = engine.run(requests_for(engine, model))
    engine._poller = LatePoller()
    for _ in range(2):
        for late, at_once in zip(engine.run(requests_for(engine, model)), expected, strict=True):
            assert torch.equal(late.tokens, at_once.tokens)
            torch.testing.assert_close(late.states, at_once.states, atol=1e-5, rtol=0)


def test_batch_sizes_with_a_graph():
    assert [buckets(slots) for slots in (1, 2, 6, 64)] == [
        [1],
        [1, 2],
        [1, 2, 4, 6],
        [1, 2, 4, 8, 16, 32, 64],
    ]
