"""Greedy text: rows are independent, and the states are those that predicted the tokens."""

import pytest
import torch

from echox.backbones.hub import HubBackbone, HubBackboneConfig, LoraConfig
from echox.errors import SignalError
from echox.models import text_loop as looping
from echox.models import decoding
from echox.models.decoding import SpokenText, answer_typed, answers_and_ends, greedy_text
from echox.models.text_loop import text_loop


def test_batch_equals_single_rows():
    backbone = HubBackbone(HubBackboneConfig(weights="random")).eval()
    torch.manual_seed(0)
    prompts, lengths = torch.randn(3, 9, backbone.hidden_size), torch.tensor([9, 4, 1])
    mask = torch.arange(9)[None] < lengths[:, None]
    together = greedy_text(backbone, prompts, mask, 8)
    for row in range(3):
        alone = greedy_text(backbone, prompts[row : row + 1, : lengths[row]], mask[row : row + 1, : lengths[row]], 8)
        size = int(alone.lengths[0])
        assert together.ids[row, :size].tolist() == alone.ids[0, :size].tolist()
        assert torch.allclose(together.hidden[row, :size], alone.hidden[0, :size], atol=1e-4)
    first = backbone.logits(together.hidden).argmax(-1)
    for row, size in enumerate(together.lengths.tolist()):
        assert first[row, :size].tolist() == together.ids[row, :size].tolist()


def test_drawn_answers_follow_the_seed():
    backbone = HubBackbone(HubBackboneConfig(weights="random")).eval()
    ask = lambda seed: answer_typed(backbone, ["Why?", "What is this?"], 12, temperature=1.0, seed=seed)  # noqa: E731
    assert ask(1) == ask(1) != ask(2)


def test_an_answer_that_was_stopped_is_told_from_one_that_ended(monkeypatch):
    backbone = HubBackbone(HubBackboneConfig(weights="random")).eval()
    said = SpokenText(torch.full((2, 5), 40), torch.zeros(2, 5, backbone.hidden_size), torch.tensor([3, 5]), torch.tensor([True, False]))
    monkeypatch.setattr(decoding, "greedy_text", lambda *_: said)
    found = answers_and_ends(backbone, ["Why?", "What is this?"], 5)
    assert [ended for _, ended in found] == [True, False]
    assert [text for text, _ in found] == [backbone.detokenize([40] * length) for length in (3, 5)]


def taught_backbone():
    """With LoRA that changes what is said."""
    backbone = HubBackbone(HubBackboneConfig(weights="random", lora=LoraConfig(rank=4, targets=["q_proj", "o_proj", "down_proj"]))).eval()
    torch.manual_seed(1)
    for name, parameter in backbone.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return backbone


def ragged_prompts(backbone):
    torch.manual_seed(0)
    lengths = torch.tensor([9, 4, 1, 6, 2])
    return torch.randn(5, 9, backbone.hidden_size), torch.arange(9)[None] < lengths[:, None]


def test_the_loop_says_the_same_and_gives_the_same_states(monkeypatch):
    backbone = taught_backbone()
    prompts, mask = ragged_prompts(backbone)
    plain = greedy_text(backbone, prompts, mask, 20)
    monkeypatch.setattr(looping, "SLOTS", 2)  # rows wait for others to end
    looped = greedy_text(backbone, prompts, mask, 20, loop=text_loop(backbone))
    assert torch.equal(looped.ids, plain.ids) and torch.equal(looped.lengths, plain.lengths) and torch.equal(looped.ended, plain.ended)
    for row, length in enumerate(plain.lengths.tolist()):
        torch.testing.assert_close(looped.hidden[row, :length], plain.hidden[row, :length], atol=1e-4, rtol=0)
    assert len(set(plain.lengths.tolist())) > 1 or not plain.ended.any()


def test_the_loop_speaks_for_what_was_trained_beside_the_weights():
    backbone = taught_backbone()
    prompts, mask = ragged_prompts(backbone)
    with backbone.as_pretrained():
        before = greedy_text(backbone, prompts, mask, 12)
        looped = greedy_text(backbone, prompts, mask, 12, loop=text_loop(backbone))
    assert torch.equal(looped.ids, before.ids)
    assert not torch.equal(greedy_text(backbone, prompts, mask, 12, loop=text_loop(backbone)).ids, before.ids)


def test_a_prompt_too_long_for_the_loop_goes_without(monkeypatch):
    backbone = taught_backbone()
    prompts, mask = ragged_prompts(backbone)
    monkeypatch.setattr(looping, "POSITIONS", 20)
    loop = text_loop(backbone)
    monkeypatch.setattr(loop, "run", None)
    assert torch.equal(greedy_text(backbone, prompts, mask, 12, loop=loop).ids, greedy_text(backbone, prompts, mask, 12).ids)


def test_drawn_answers_of_the_loop_follow_the_seed():
    backbone = taught_backbone()
    loop = text_loop(backbone)
    ask = lambda seed, questions=("Why?", "What is this?"): answer_typed(backbone, list(questions), 12, temperature=1.0, seed=seed, loop=loop)  # noqa: E731
    assert ask(1) == ask(1) != ask(2)
    assert ask(1, ["Why?"]) == ask(1)[:1]


def test_what_is_no_llama_has_no_loop_and_damage_is_a_sentence(monkeypatch):
    backbone = taught_backbone()
    prompts, mask = ragged_prompts(backbone)
    prompts[1, 0] = float("nan")
    with pytest.raises(SignalError, match="row 1 are not finite"):
        greedy_text(backbone, prompts, mask, 5, loop=text_loop(backbone))
    monkeypatch.setattr(HubBackbone, "llama", lambda self: None)
    assert text_loop(backbone) is None
