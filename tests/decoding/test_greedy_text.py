"""Generated text: rows are independent, and the states are those that predicted the tokens."""

import pytest
import torch

from echox.backbones.hub import HubBackbone, HubBackboneConfig, LoraConfig
from echox.core.errors import SignalError
from echox.decoding import greedy_text as greedy_text_module
from echox.decoding import text as text_module
from echox.decoding.greedy_text import GeneratedText, answer_typed, answers_and_ends, greedy_text
from echox.decoding.text import text_decode_engine


def test_batch_equals_single_rows():
    backbone = HubBackbone(HubBackboneConfig(weights="random")).eval()
    torch.manual_seed(0)
    prompts, lengths = torch.randn(3, 9, backbone.hidden_size), torch.tensor([9, 4, 1])
    mask = torch.arange(9)[None] < lengths[:, None]
    together = greedy_text(backbone, prompts, mask, 8)
    for row in range(3):
        alone = greedy_text(
            backbone, prompts[row : row + 1, : lengths[row]], mask[row : row + 1, : lengths[row]], 8
        )
        size = int(alone.lengths[0])
        assert together.ids[row, :size].tolist() == alone.ids[0, :size].tolist()
        assert torch.allclose(together.hidden[row, :size], alone.hidden[0, :size], atol=1e-4)
    likeliest = backbone.logits(together.hidden).argmax(-1)
    for row, size in enumerate(together.lengths.tolist()):
        assert likeliest[row, :size].tolist() == together.ids[row, :size].tolist()


def sampled_answers(backbone, seed, questions=("Why?", "What is this?"), engine=None):
    return answer_typed(backbone, list(questions), 12, temperature=1.0, seed=seed, engine=engine)


def test_sampled_answers_follow_the_seed():
    backbone = HubBackbone(HubBackboneConfig(weights="random")).eval()
    first = sampled_answers(backbone, 1)
    assert first == sampled_answers(backbone, 1) != sampled_answers(backbone, 2)


def test_answers_tell_whether_they_ended_or_reached_the_limit(monkeypatch):
    backbone = HubBackbone(HubBackboneConfig(weights="random")).eval()
    generated = GeneratedText(
        torch.full((2, 5), 40),
        torch.zeros(2, 5, backbone.hidden_size),
        torch.tensor([3, 5]),
        torch.tensor([True, False]),
    )
    monkeypatch.setattr(greedy_text_module, "greedy_text", lambda *_: generated)
    answers = answers_and_ends(backbone, ["Why?", "What is this?"], 5)
    assert [ended for _, ended in answers] == [True, False]
    assert [text for text, _ in answers] == [
        backbone.detokenize([40] * length) for length in (3, 5)
    ]


def backbone_with_lora():
    """A backbone whose LoRA weights change its text."""
    backbone = HubBackbone(
        HubBackboneConfig(
            weights="random", lora=LoraConfig(rank=4, targets=["q_proj", "o_proj", "down_proj"])
        )
    ).eval()
    torch.manual_seed(1)
    for name, parameter in backbone.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return backbone


def ragged_prompts(backbone):
    torch.manual_seed(0)
    lengths = torch.tensor([9, 4, 1, 6, 2])
    return torch.randn(5, 9, backbone.hidden_size), torch.arange(9)[None] < lengths[:, None]


def test_the_engine_gives_the_same_text_and_states(monkeypatch):
    backbone = backbone_with_lora()
    prompts, mask = ragged_prompts(backbone)
    plain = greedy_text(backbone, prompts, mask, 20)
    monkeypatch.setattr(text_module, "SLOTS", 2)  # fewer than rows
    engine = text_decode_engine(backbone)
    decoded = greedy_text(backbone, prompts, mask, 20, engine=engine)
    assert (
        torch.equal(decoded.ids, plain.ids)
        and torch.equal(decoded.lengths, plain.lengths)
        and torch.equal(decoded.ended, plain.ended)
    )
    for row, length in enumerate(plain.lengths.tolist()):
        torch.testing.assert_close(
            decoded.hidden[row, :length], plain.hidden[row, :length], atol=1e-4, rtol=0
        )
    assert len(set(plain.lengths.tolist())) > 1 or not plain.ended.any()


def test_the_engine_merges_lora_as_it_is_when_built():
    backbone = backbone_with_lora()
    prompts, mask = ragged_prompts(backbone)
    with backbone.as_pretrained():
        plain = greedy_text(backbone, prompts, mask, 12)
        decoded = greedy_text(backbone, prompts, mask, 12, engine=text_decode_engine(backbone))
    assert torch.equal(decoded.ids, plain.ids)
    with_lora = greedy_text(backbone, prompts, mask, 12, engine=text_decode_engine(backbone))
    assert not torch.equal(with_lora.ids, plain.ids)


def test_a_prompt_too_long_for_the_engine_goes_without(monkeypatch):
    backbone = backbone_with_lora()
    prompts, mask = ragged_prompts(backbone)
    monkeypatch.setattr(text_module, "POSITIONS", 20)
    engine = text_decode_engine(backbone)
    monkeypatch.setattr(engine, "run", None)
    assert torch.equal(
        greedy_text(backbone, prompts, mask, 12, engine=engine).ids,
        greedy_text(backbone, prompts, mask, 12).ids,
    )


def test_sampled_answers_of_the_engine_follow_the_seed():
    backbone = backbone_with_lora()
    engine = text_decode_engine(backbone)
    first = sampled_answers(backbone, 1, engine=engine)
    again, other = (sampled_answers(backbone, seed, engine=engine) for seed in (1, 2))
    assert first == again != other
    assert sampled_answers(backbone, 1, ["Why?"], engine) == first[:1]


def test_only_llamas_have_an_engine_and_nan_scores_are_an_error(monkeypatch):
    backbone = backbone_with_lora()
    prompts, mask = ragged_prompts(backbone)
    prompts[1, 0] = float("nan")
    with pytest.raises(SignalError, match="row 1 are not finite"):
        greedy_text(backbone, prompts, mask, 5, engine=text_decode_engine(backbone))
    monkeypatch.setattr(HubBackbone, "llama", lambda self: None)
    assert text_decode_engine(backbone) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_parts_of_prompts_are_prefilled_once_and_change_no_bit(monkeypatch, dtype):
    backbone = backbone_with_lora()
    prompts, mask = ragged_prompts(backbone)
    prompts[3, :4] = prompts[0, :4]  # which begin alike
    parts = [(2, 4, 7), (2,), (), (2, 4), ()]

    def states(engine, row):
        one = slice(row, row + 1)
        return greedy_text(backbone, prompts[one], mask[one], 6, engine=engine, parts=parts[one])

    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
        engine, alone = text_decode_engine(backbone), text_decode_engine(backbone)
    prefilled, prefill = [], type(engine._batch.body).prefill

    def counted(body, x, first, begin=0):
        prefilled.append((begin, x.shape[1]))
        prefill(body, x, first, begin)

    monkeypatch.setattr(type(engine._batch.body), "prefill", counted)
    first, unknown = states(engine, 0), states(alone, 3)
    assert prefilled == [(0, 2), (2, 2), (4, 3), (7, 1), (0, 2), (2, 2), (4, 1)]
    prefilled.clear()
    # Of row 0 only the rest behind its parts, and of row 3 too, whose parts are row 0's.
    again, other = states(engine, 0), states(engine, 3)
    assert prefilled == [(7, 1), (4, 1)]
    assert torch.equal(again.hidden, first.hidden) and torch.equal(other.hidden, unknown.hidden)
    if dtype is torch.float32:
        plain = greedy_text(backbone, prompts[:1], mask[:1], 6)
        torch.testing.assert_close(first.hidden, plain.hidden, atol=1e-4, rtol=0)
