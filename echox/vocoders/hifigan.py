"""The generator of HiFi-GAN, and its receptive field."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

OUTER_WIDTH = 7  # kernel of the first and the last convolution
# Settings with one entry per upsampling stage.
STAGE_SETTINGS = (
    "upsample_rates",
    "upsample_kernel_sizes",
    "upsample_paddings",
    "upsample_output_paddings",
)


class HifiGan(nn.Module):
    """The generator of HiFi-GAN with plain weights (no weight norm).

    Raises:
        KeyError: a setting is missing.
        ValueError: lists of settings differ in length.

    Source: Kong et al. 2020, arXiv:2010.05646; names of the weights as in its release.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Build the generator with random weights.

        Args:
            config: settings named as in the release, plus `model_in_dim`, paddings and slopes.
        """
        super().__init__()
        self.slope, self.final_slope = config["leaky_relu_slope"], config["final_leaky_relu_slope"]
        channels = config["upsample_initial_channel"]
        padding = OUTER_WIDTH // 2
        self.conv_pre = nn.Conv1d(config["model_in_dim"], channels, OUTER_WIDTH, padding=padding)
        self.ups, self.resblocks = nn.ModuleList(), nn.ModuleList()
        stages = zip(*(config[name] for name in STAGE_SETTINGS), strict=True)
        # Layers are created in the order of the computation, which decides their random weights.
        for rate, width, trim, output_padding in stages:
            self.ups.append(
                nn.ConvTranspose1d(channels, channels // 2, width, rate, trim, output_padding)
            )
            channels //= 2  # [B, channels, rate times as many steps]
            for block_width, dilations in _residual_blocks(config):
                self.resblocks.append(_ResidualBlock(channels, block_width, dilations, self.slope))
        self.conv_post = nn.Conv1d(channels, 1, OUTER_WIDTH, padding=padding)

    def forward(self, frames: Tensor) -> Tensor:
        """Generate samples [B, F * hop] in [-1, 1].

        Args:
            frames: [B, F, C], mels or embeddings of units.
        """
        states = self.conv_pre(frames.transpose(1, 2))  # [B, C, F]
        per_stage = len(self.resblocks) // len(self.ups)
        for stage, up in enumerate(self.ups):
            states = up(F.leaky_relu(states, self.slope))
            blocks = self.resblocks[stage * per_stage : (stage + 1) * per_stage]
            states = sum(block(states) for block in blocks) / per_stage
        # bfloat16's eight bits of mantissa in the last convolution are audible as noise.
        with torch.autocast(frames.device.type, enabled=False):
            return torch.tanh(self.conv_post(F.leaky_relu(states.float(), self.final_slope)))[:, 0]


def _residual_blocks(config: Mapping[str, Any]) -> Iterator[tuple[int, list[int]]]:
    """Width and dilations of each residual block of a stage."""
    widths, dilations = config["resblock_kernel_sizes"], config["resblock_dilation_sizes"]
    return zip(widths, dilations, strict=True)


class _ResidualBlock(nn.Module):
    """Pairs of a dilated and a plain convolution, each pair with a residual connection."""

    def __init__(self, channels: int, width: int, dilations: list[int], slope: float) -> None:
        super().__init__()
        self.slope = slope
        self.convs1 = nn.ModuleList(
            nn.Conv1d(channels, channels, width, padding=width // 2 * d, dilation=d)
            for d in dilations
        )
        self.convs2 = nn.ModuleList(
            nn.Conv1d(channels, channels, width, padding=width // 2) for _ in dilations
        )

    def forward(self, states: Tensor) -> Tensor:
        for dilated, plain in zip(self.convs1, self.convs2, strict=True):
            inner = dilated(F.leaky_relu(states, self.slope))
            states = states + plain(F.leaky_relu(inner, self.slope))
        return states


def reach_frames(config: Mapping[str, Any]) -> tuple[int, int]:
    """Compute the receptive field of a generator from its sizes alone.

    Samples at least so far from where a sequence is cut equal those of the whole sequence.

    Args:
        config: as for `HifiGan`.

    Returns:
        frames before a frame, and frames after it, that the frame's samples depend on.

    Raises:
        KeyError: a setting is missing.
        ValueError: lists of settings differ in length.
    """
    # The first and last position that the samples of frame 0 depend on, traced back from the
    # samples to the frames.
    hop, outer = math.prod(config["upsample_rates"]), OUTER_WIDTH // 2
    first, last = 0 - outer, hop - 1 + outer
    # The blocks of a stage run side by side, so the widest one counts.
    block = max(
        sum(width // 2 * (dilation + 1) for dilation in dilations)
        for width, dilations in _residual_blocks(config)
    )
    stages = zip(*(config[name] for name in STAGE_SETTINGS[:3]), strict=True)
    for rate, width, padding in reversed(list(stages)):
        first, last = first - block, last + block
        # Output o of a transposed convolution comes from the inputs i with
        # o = i * rate - padding + tap, 0 <= tap < width.
        first, last = -((width - 1 - padding - first) // rate), (last + padding) // rate
    return outer - first, last + outer
