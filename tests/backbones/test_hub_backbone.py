"""The Hugging Face backbone on a random tiny model."""

import pytest
import torch

from echox.backbones import hub
from echox.backbones.base import Turn
from echox.backbones.hub import HubBackbone, HubBackboneConfig, LoraConfig
from echox.core.errors import ConfigError


@pytest.fixture(scope="module")
def backbone():
    return HubBackbone(HubBackboneConfig(weights="random")).eval()


def test_padding_on_either_side_does_not_matter(backbone):
    torch.manual_seed(0)
    embeddings = torch.randn(1, 5, backbone.hidden_size)
    alone = backbone(embeddings, torch.ones(1, 5, dtype=torch.bool)).hidden
    for left, right in ((0, 3), (2, 0)):
        padded = torch.nn.functional.pad(embeddings, (0, 0, left, right), value=9.0)
        mask = torch.nn.functional.pad(
            torch.ones(1, 5, dtype=torch.bool), (left, right), value=False
        )
        assert torch.allclose(backbone(padded, mask).hidden[:, left : left + 5], alone, atol=1e-5)


def test_the_cache_continues_the_sequence(backbone):
    torch.manual_seed(0)
    embeddings, mask = torch.randn(2, 6, backbone.hidden_size), torch.ones(2, 6, dtype=torch.bool)
    state = backbone(embeddings[:, :4], mask[:, :4], use_cache=True)
    rest = backbone(embeddings[:, 4:], mask, state.cache, use_cache=True)
    assert torch.allclose(rest.hidden, backbone(embeddings, mask).hidden[:, 4:], atol=1e-5)


def test_a_shared_prefix_is_computed_once_and_changes_nothing(backbone, monkeypatch):
    monkeypatch.setattr(hub, "PREFIX_COST_TOKENS", 1)
    torch.manual_seed(0)
    values = torch.randn(3, 7, backbone.hidden_size)
    values[:, :3] = values[:1, :3]
    mask = torch.arange(7)[None] < torch.tensor([7, 5, 6])[:, None]
    results = []
    for shared in (0, 3):
        embeddings = values.clone().requires_grad_()
        hidden = backbone.forward_prefix_shared(embeddings, mask, shared)[mask]
        hidden.square().sum().backward()
        gradient = embeddings.grad
        results.append((hidden, torch.cat([gradient[:, :3].sum(0), gradient[:, 3:].flatten(0, 1)])))
    assert all(torch.allclose(plain, prefixed, atol=1e-4) for plain, prefixed in zip(*results))


def upper_lora(top_layers):
    config = HubBackboneConfig(
        weights="random", lora=LoraConfig(top_layers=top_layers, dropout=0.0)
    )
    torch.manual_seed(1)
    backbone = HubBackbone(config).eval()
    for name, parameter in backbone.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return backbone


def test_lora_in_the_top_layers_leaves_the_lower_ones_to_run_separately():
    backbone = upper_lora(top_layers=1)
    layers = {
        name.split("layers.")[1][0] for name, p in backbone.named_parameters() if "lora_" in name
    }
    assert layers == {"1"} and backbone.frozen_layers() == 1
    mask = torch.arange(7)[None] < torch.tensor([7, 5, 6])[:, None]
    embeddings = torch.randn(3, 7, backbone.hidden_size)
    all_layers = backbone(embeddings, mask).hidden
    states = backbone.forward_lower(embeddings, mask)
    assert torch.equal(backbone.forward_upper(states, mask)[mask], all_layers[mask])
    with backbone.as_pretrained():
        assert torch.equal(backbone.forward_lower(embeddings, mask), states)
    # Afterwards all layers run again.
    assert torch.equal(backbone(embeddings, mask).hidden, all_layers)


def test_lora_in_all_layers_leaves_no_layer_to_run_separately():
    backbone = upper_lora(top_layers=None)
    assert backbone.frozen_layers() == 0
    mask = torch.ones(2, 4, dtype=torch.bool)
    embeddings = torch.randn(2, 4, backbone.hidden_size)
    assert torch.equal(backbone.forward_lower(embeddings, mask), embeddings)
    assert torch.equal(backbone.forward_upper(embeddings, mask), backbone(embeddings, mask).hidden)


def test_more_top_layers_than_the_model_has_are_refused():
    with pytest.raises(ConfigError, match="top_layers is 3, but LlamaForCausalLM has 2 layers"):
        upper_lora(top_layers=3)
    with pytest.raises(ConfigError, match="use 1 or more"):
        LoraConfig(top_layers=0)


def test_prompts_are_split_at_audios(backbone):
    pieces = backbone.prompt(
        [
            Turn("user", "first", has_audio=True),
            Turn("assistant", "yes"),
            Turn("user", "", has_audio=True),
        ]
    )
    assert len(pieces) == 3
    text = [backbone.tokenizer.decode(piece) for piece in pieces]
    assert (
        text[0].endswith("<|user|>")
        and text[1].startswith("first<|end|><|assistant|>yes<|end|>")
        and text[2] == "<|end|><|assistant|>"
    )
    assert text[0].startswith("<|system|>Answer in one short sentence.")


def test_text_survives_tokenization(backbone):
    text = "Don't stop: 12 caf\u00e9s, \u4f60\u597d!"
    assert backbone.detokenize([*backbone.tokenize(text), backbone.end_id]) == text


def test_only_lora_is_trained_and_it_starts_without_effect():
    plain = HubBackbone(HubBackboneConfig(weights="random", lora=LoraConfig(rank=0))).eval()
    adapted = HubBackbone(HubBackboneConfig(weights="random")).eval()
    assert not [p for p in plain.parameters() if p.requires_grad]
    trained = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert trained and all("lora_" in name for name in trained)
    embeddings, mask = torch.randn(1, 4, plain.hidden_size), torch.ones(1, 4, dtype=torch.bool)
    assert torch.allclose(
        plain(embeddings, mask).hidden, adapted(embeddings, mask).hidden, atol=1e-6
    )
    assert plain.fingerprint() == adapted.fingerprint()


def test_lora_on_layers_that_do_not_exist_is_one_sentence():
    with pytest.raises(ConfigError, match="name no layer"):
        HubBackbone(HubBackboneConfig(weights="random", lora=LoraConfig(targets=["nothing"])))


@pytest.mark.parametrize("width", [64, 128])
def test_a_random_model_can_prefer_a_token(width):
    backbone = HubBackbone(HubBackboneConfig(weights="random", random_width=width))
    # The hidden states with the highest score of each token.
    aligned = backbone.model.model.norm(backbone.head_rows())
    assert backbone.logits(aligned).softmax(-1).diagonal().min() > 0.3
