"""The generator of HiFi-GAN, and how far its samples see."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class HifiGan(nn.Module):
    """The generator of HiFi-GAN with plain weights (no weight norm).

    Source: Kong et al. 2020, arXiv:2010.05646; names of the weights as in its release.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.slope, self.final_slope = config["leaky_relu_slope"], config["final_leaky_relu_slope"]
        channels = config["upsample_initial_channel"]
        self.conv_pre = nn.Conv1d(config["model_in_dim"], channels, 7, padding=3)
        self.ups, self.resblocks = nn.ModuleList(), nn.ModuleList()
        names = ("upsample_rates", "upsample_kernel_sizes", "upsample_paddings", "upsample_output_paddings")
        stages = zip(*(config[name] for name in names), strict=True)
        for rate, width, padding, output_padding in stages:
            self.ups.append(nn.ConvTranspose1d(channels, channels // 2, width, rate, padding=padding, output_padding=output_padding))
            channels //= 2
            for width, dilations in zip(config["resblock_kernel_sizes"], config["resblock_dilation_sizes"], strict=True):
                self.resblocks.append(_ResidualBlock(channels, width, dilations, self.slope))
        self.conv_post = nn.Conv1d(channels, 1, 7, padding=3)

    def forward(self, frames: Tensor) -> Tensor:
        """Frames [B, F, C] (mels, or embeddings of units) -> samples [B, F * hop] in [-1, 1]."""
        states = self.conv_pre(frames.transpose(1, 2))
        per_stage = len(self.resblocks) // len(self.ups)
        for stage, up in enumerate(self.ups):
            states = up(F.leaky_relu(states, self.slope))
            blocks = self.resblocks[stage * per_stage : (stage + 1) * per_stage]
            states = sum(block(states) for block in blocks) / per_stage
        # Eight bits of mantissa in the last convolution would be heard as noise.
        with torch.autocast(frames.device.type, enabled=False):
            return torch.tanh(self.conv_post(F.leaky_relu(states.float(), self.final_slope)))[:, 0]


class _ResidualBlock(nn.Module):
    def __init__(self, channels: int, width: int, dilations: list[int], slope: float) -> None:
        super().__init__()
        self.slope = slope
        self.convs1 = nn.ModuleList(nn.Conv1d(channels, channels, width, padding=width // 2 * d, dilation=d) for d in dilations)
        self.convs2 = nn.ModuleList(nn.Conv1d(channels, channels, width, padding=width // 2) for _ in dilations)

    def forward(self, states: Tensor) -> Tensor:
        for dilated, plain in zip(self.convs1, self.convs2, strict=True):
            states = states + plain(F.leaky_relu(dilated(F.leaky_relu(states, self.slope)), self.slope))
        return states


def reach_frames(config: Mapping[str, Any]) -> tuple[int, int]:
    """Frames before and after its own that a frame's samples depend on, from the generator's sizes alone.

    Samples at least so far from where a sequence is cut are the samples of the whole sequence.
    """
    hop = math.prod(config["upsample_rates"])
    first, last = 0, hop - 1  # of the samples that the frame 0 becomes
    first, last = first - 3, last + 3  # the last convolution, 7 wide
    block = max(
        sum(width // 2 * (dilation + 1) for dilation in dilations)
        for width, dilations in zip(config["resblock_kernel_sizes"], config["resblock_dilation_sizes"], strict=True)
    )
    stages = zip(config["upsample_rates"], config["upsample_kernel_sizes"], config["upsample_paddings"], strict=True)
    for rate, width, padding in reversed(list(stages)):
        first, last = first - block, last + block
        # Output o of a transposed convolution comes from the inputs i with o = i * rate - padding + tap, 0 <= tap < width.
        first, last = -((width - 1 - padding - first) // rate), (last + padding) // rate
    return 3 - first, last + 3  # the first convolution, 7 wide
