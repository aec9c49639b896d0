"""Greedy text: rows are independent, and the states are those that predicted the tokens."""

import torch

from echox.backbones.hub import HubBackbone, HubBackboneConfig
from echox.models.decoding import answer_typed, greedy_text


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
