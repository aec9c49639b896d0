"""The look-back, and that frozen adapters do not copy their weights for every frame."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from echox.core.signals import Features
from echox.models.look_back import look_back
from echox.models.release.adapter import released_adapter
from echox.models.speech_adapter import SpeechAdapterConfig
from echox.models.speech_llm import join_adapter


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
    config = SpeechAdapterConfig(heads=4)
    backbone = SimpleNamespace(embed=torch.randn(9, 32).__getitem__)
    return join_adapter(SimpleNamespace(dim=6), backbone, config, torch.arange(9))


def published() -> nn.Module:
    config = {"hidden_size": 32, "adapter_size": 6, "vocab_size": 9, "num_attention_heads": 4}
    return released_adapter(config, 8)


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
