"""The unit decoder: generation equals teacher forcing, rows are independent, all text is spoken."""

import pytest
import torch

from echox.core.errors import ConfigError
from echox.models.speech_llm import IGNORE
from echox.models.unit_decoder import UnitDecoder, UnitDecoderConfig
from echox.models.unit_generation import generate_targets, generate_unit_tokens


def decoder(monotonic=True, **changes):
    torch.manual_seed(0)
    config = UnitDecoderConfig(
        layers=2, width=32, heads=2, feed_forward=64, monotonic=monotonic, **changes
    )
    return UnitDecoder(config, text_width=16, unit_vocab_size=20).eval()


@pytest.mark.parametrize("monotonic", [True, False])
def test_generation_equals_teacher_forcing(monotonic):
    model = decoder(monotonic, max_words_per_token=6)
    text, lengths = torch.randn(3, 5, 16), torch.tensor([5, 2, 1])
    rows = generate_targets(model, text, lengths, max_steps=40)
    width = max(map(len, rows))
    targets = torch.tensor([[*row, *[IGNORE] * (width - len(row))] for row in rows])
    scores = model.logits(model(text, lengths, targets))
    scores[..., model.begin_id] = float("-inf")
    scores[..., model.end_id if monotonic else model.next_id] = float("-inf")
    free = (targets != IGNORE) & (targets != model.end_id) & (targets != model.next_id)
    assert free.any()
    assert torch.equal(scores.argmax(-1)[free], targets[free])


@pytest.mark.parametrize("monotonic", [True, False])
def test_rows_do_not_influence_each_other(monotonic):
    model = decoder(monotonic)
    text, lengths = torch.randn(3, 6, 16), torch.tensor([6, 3, 1])
    together = generate_unit_tokens(model, text, lengths, max_steps=50)
    for row in range(3):
        alone = generate_unit_tokens(
            model, text[row : row + 1, : lengths[row]], lengths[row : row + 1], max_steps=50
        )
        assert together[row] == alone[0]


def test_monotonic_targets_pass_every_text_token_once_and_then_end():
    model = decoder(max_words_per_token=4)
    targets = generate_targets(model, torch.randn(2, 4, 16), torch.tensor([4, 2]))
    for target, length in zip(targets, (4, 2)):
        assert target[-1] == model.end_id and target.count(model.next_id) == length
        letters = "".join("n" if token == model.next_id else "u" for token in target[:-1])
        assert max(map(len, letters.split("n"))) <= 4


@pytest.mark.parametrize("monotonic", [True, False])
def test_generation_that_the_limit_cuts_says_so(monotonic):
    model = decoder(monotonic, max_words_per_token=2)
    # In the monotonic form a text of one token ends after 4 steps at most, one of four after 13.
    text, lengths = torch.randn(3, 4, 16), torch.tensor([4, 1, 0])
    if not monotonic:
        torch.nn.init.zeros_(model.head.weight)
        text, lengths = text[:1], lengths[:1]
    rows = generate_unit_tokens(model, text, lengths, max_steps=5)
    assert [row.is_cut for row in rows] == ([True, False, False] if monotonic else [True])
    assert all(
        row.is_cut == target.is_cut
        for row, target in zip(rows, generate_targets(model, text, lengths, max_steps=5))
    )
    ended = generate_unit_tokens(model, text, lengths, max_steps=40)
    assert not monotonic or not any(row.is_cut for row in ended)


def test_targets_mark_the_end_of_each_token():
    assert decoder().target_of([[3, 4], [], [5]]) == [3, 4, 22, 22, 5, 22, 21]
    assert decoder(monotonic=False).target_of([[3, 4], [5]]) == [3, 4, 5, 21]


def test_gradients_reach_every_weight():
    model = decoder().train()
    targets = torch.tensor([model.target_of([[1, 2], [3]])])
    model.logits(model(torch.randn(1, 2, 16), torch.tensor([2]), targets)).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_an_empty_text_has_no_unit_tokens():
    text, lengths = torch.randn(2, 3, 16), torch.tensor([0, 3])
    assert generate_unit_tokens(decoder(), text, lengths, max_steps=30)[0] == []


def test_heads_must_divide_the_width():
    with pytest.raises(ConfigError, match="no multiple of its heads 3"):
        UnitDecoderConfig(width=32, heads=3)


def test_hidden_words_leave_the_steps_after_them_the_text_and_the_marks_alone(monkeypatch):
    model = decoder(word_dropout=0.5, dropout=0.0)
    text, lengths = torch.randn(1, 3, 16), torch.tensor([3])
    first, other = (
        torch.tensor([model.target_of([[word, word], [word], [word + 1]])]) for word in (4, 11)
    )
    assert not torch.equal(model(text, lengths, first), model(text, lengths, other))
    model.train()
    monkeypatch.setattr(torch, "rand", torch.zeros)
    assert torch.equal(model(text, lengths, first), model(text, lengths, other))


@pytest.mark.parametrize("name", ["dropout", "attention_dropout", "word_dropout"])
def test_a_probability_out_of_range_is_refused(name):
    with pytest.raises(ConfigError, match=f"{name} is 1.0"):
        UnitDecoderConfig(**{name: 1.0})
