"""CTC of a clip's own tokens is CTC over the whole vocabulary, to the last bits that float32 has where the loss is large."""

import pytest
import torch
import torch.nn.functional as F

from echox.criteria.alignment import ctc_losses
from echox.criteria.base import AlignmentOutputs
from echox.models.published.adapter import AdapterShape, ShrinkingAdapter
from echox.models.published.ctc import spoken_scores

A, FRAMES, SAID, WORDS = 2, 300, 6, 500


def norms(loss, adapter, frames):
    return [float(gradient.norm()) for gradient in torch.autograd.grad(loss, [frames, adapter.ctc_head.weight])]


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_gradients_are_those_of_the_whole_vocabulary(scale):
    torch.manual_seed(0)
    adapter = ShrinkingAdapter(AdapterShape(feature_dim=4, width=16, vocab_size=WORDS + 1, heads=4, blank_id=WORDS, feed_forward=8))
    with torch.no_grad():
        adapter.ctc_head.weight.normal_(std=scale)
    frames = torch.randn(A, FRAMES, 16, requires_grad=True)
    targets, lengths, said = torch.randint(0, WORDS, (A, SAID)), torch.full((A,), FRAMES), torch.full((A,), SAID)
    log_probs = adapter.ctc_head(frames).log_softmax(-1).transpose(0, 1)
    whole = F.ctc_loss(log_probs, targets, lengths, said, blank=WORDS, reduction="sum")
    own = ctc_losses(AlignmentOutputs(*scored(adapter, frames, targets), said)).sum()
    assert float(whole.detach()) / (A * SAID) > (5000 if scale > 1 else 100)
    assert float(own.detach()) == pytest.approx(float(whole.detach()), rel=1e-6)
    assert norms(own, adapter, frames) == pytest.approx(norms(whole, adapter, frames), rel=1e-4)


def scored(adapter, frames, targets):
    scores, indices = spoken_scores(adapter, frames, targets)
    return scores, torch.full((A,), FRAMES), indices
