"""CTC of a clip's own tokens is CTC over the whole vocabulary, to float32's precision."""

import pytest
import torch
import torch.nn.functional as F

from echox.criteria.alignment import ctc_losses
from echox.criteria.base import AlignmentOutputs
from echox.models.release.adapter import released_adapter
from echox.models.release.ctc import restricted_ctc_scores

A, FRAMES, TARGETS, TOKENS = 2, 300, 6, 500


def norms(loss, adapter, frames):
    return [
        float(gradient.norm())
        for gradient in torch.autograd.grad(loss, [frames, adapter.ctc_head.weight])
    ]


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_gradients_are_those_of_the_whole_vocabulary(scale):
    torch.manual_seed(0)
    config = {"hidden_size": 16, "adapter_size": 4, "num_attention_heads": 4}
    adapter = released_adapter(config | {"vocab_size": TOKENS + 1}, TOKENS, feed_forward=8)
    with torch.no_grad():
        adapter.ctc_head.weight.normal_(std=scale)
    frames = torch.randn(A, FRAMES, 16, requires_grad=True)
    targets = torch.randint(0, TOKENS, (A, TARGETS))
    lengths, target_lengths = torch.full((A,), FRAMES), torch.full((A,), TARGETS)
    log_probs = adapter.ctc_head(frames).log_softmax(-1).transpose(0, 1)
    full = F.ctc_loss(log_probs, targets, lengths, target_lengths, blank=TOKENS, reduction="sum")
    outputs = AlignmentOutputs(*restricted_scores(adapter, frames, targets), target_lengths)
    restricted = ctc_losses(outputs).sum()
    assert float(full.detach()) / (A * TARGETS) > (5000 if scale > 1 else 100)
    assert float(restricted.detach()) == pytest.approx(float(full.detach()), rel=1e-6)
    expected = norms(full, adapter, frames)
    assert norms(restricted, adapter, frames) == pytest.approx(expected, rel=1e-4)


def restricted_scores(adapter, frames, targets):
    scores, indices = restricted_ctc_scores(adapter, frames, targets)
    return scores, torch.full((A,), FRAMES), indices
