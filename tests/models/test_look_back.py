"""The look-back, and that frozen adapters do not copy their weights for every frame."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from echox.core.signals import Features
from echox.models.look_back import look_back
from echox.models.release.adapter import AdapterShape, ShrinkingAdapter
from echox.models.speech_adapter import SpeechAdapter, SpeechAdapterConfig


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that any operation reads or returns; views cost nothing."""

    elements = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        results = operation(*args, **(kwargs or {}))
        if not operation.is_view:
            tensors = (
                leaf for leaf in tree_leaves((args, results)) if isinstance(leaf, torch.Tensor)
            )
            self.elements = max([self.elements, *(tensor.numel() for tensor in tensors)])
        return results


def own() -> nn.Module:
    return SpeechAdapter(SpeechAdapterConfig(heads=4), 6, torch.arange(9), torch.randn(9, 32))


def published() -> nn.Module:
    return ShrinkingAdapter(
        AdapterShape(
            feature_dim=6,
            stack=2,
            width=32,
            heads=4,
            feed_forward=64,
            dropout=0.0,
            layers=1,
            vocab_size=9,
            blank_id=8,
        )
    )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("make", [own, published])
def test_a_frozen_adapter_handles_no_larger_tensors_than_a_trained_one(make, training):
    torch.manual_seed(0)
    adapter = make().train(training)
    features = Features(torch.randn(2, 80, 6), torch.tensor([80, 61]), 50.0)
    largest = []
    for is_trained in (True, False):
        with LargestTensor() as mode, torch.autocast("cpu", torch.bfloat16):
            adapter.requires_grad_(is_trained)(features)
        largest.append(mode.elements)
    trained, frozen = largest
    assert frozen <= trained


def test_it_attends_to_visible_frames_alone():
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(16, 4).eval()
    queries, frames = torch.randn(2, 3, 16), torch.randn(2, 7, 16)
    seen = torch.arange(7) < torch.tensor([[7], [4]])
    attended = look_back(attention, queries, frames, seen)
    for row, length in enumerate((7, 4)):
        expected, _ = attention(queries[row], frames[row, :length], frames[row, :length])
        torch.testing.assert_close(attended[row], expected)
