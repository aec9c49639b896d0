"""The receptive field that a generator's sizes imply is that of its gradients."""

import math

import pytest
import torch

from echox.vocoders.hifigan import HifiGan, reach_frames
from echox.vocoders.layout import generator_sizes

SIZES = {
    "published": ([5, 4, 4, 2, 2], [11, 8, 8, 4, 4], [3, 7, 11], [[1, 3, 5]] * 3),
    "three stages": ([8, 8, 5], [16, 16, 11], [3], [[1, 3, 9]]),
    "wide kernels": ([2, 3], [8, 9], [5], [[2]]),
}


def settings_of(name):
    rates, kernels, widths, dilations = SIZES[name]
    return generator_sizes(
        {
            "upsample_rates": rates,
            "upsample_kernel_sizes": kernels,
            "upsample_initial_channel": 64,
            "resblock_kernel_sizes": widths,
            "resblock_dilation_sizes": dilations,
            "embedding_dim": 2,
        }
    )


@pytest.mark.parametrize("name", SIZES)
def test_the_receptive_field_is_exact(name):
    settings = settings_of(name)
    before, after = reach_frames(settings)
    hop = math.prod(settings["upsample_rates"])
    net = HifiGan(settings)
    # All weights are means, so that no path from a frame to a sample cancels out or vanishes; the
    # input is small, so that tanh does not saturate.
    for parameter in net.parameters():
        torch.nn.init.constant_(parameter, 1 / parameter[0].numel() if parameter.ndim > 1 else 0.0)
    frames = torch.full((1, 2 * (before + after) + 9, 2), 1e-9, requires_grad=True)
    middle = frames.shape[1] // 2
    net(frames)[0, middle * hop : (middle + 1) * hop].sum().backward()
    used = frames.grad.abs().sum(2)[0].nonzero()[:, 0]
    assert (middle - int(used.min()), int(used.max()) - middle) == (before, after)
