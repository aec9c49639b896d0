"""Residual convolution over time that never reads padding, the block of all networks here."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class ConvBlock(nn.Module):
    """Residual block x + linear(gelu(norm(conv(x)))).

    A dense convolution costs less time on a CPU than a depthwise one of equal size.
    """

    def __init__(self, channels: int, width: int = 5, dilation: int = 1) -> None:
        super().__init__()
        self.reach = width // 2 * dilation  # frames on either side; padded: as many out as in
        self.conv = nn.Conv1d(channels, channels, width, padding=self.reach, dilation=dilation)
        self.norm = nn.LayerNorm(channels)
        self.linear = nn.Linear(channels, channels)

    def forward(self, values: Tensor, keep: Tensor) -> Tensor:
        """Transform values [B, N, C] to [B, N, C].

        Args:
            values: [B, N, C].
            keep: [B, N, 1], 1 where real, 0 on padding.
        """
        # Zeros past a row's end equal the convolution's own padding.
        mixed = self.conv((values * keep).transpose(1, 2)).transpose(1, 2)
        return values + self.linear(F.gelu(self.norm(mixed)))


class ConvStack(nn.Module):
    """Stack of `ConvBlock`s whose dilations cycle through 1, 2, 4."""

    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        blocks = [ConvBlock(channels, dilation=2 ** (index % 3)) for index in range(depth)]
        self.blocks = nn.ModuleList(blocks)
        self.reach = sum(block.reach for block in blocks)  # frames on either side

    def forward(self, values: Tensor, keep: Tensor) -> Tensor:
        """Transform values [B, N, C], keep [B, N, 1] to [B, N, C]."""
        for block in self.blocks:
            values = block(values, keep)
        return values


class Upsample(nn.Module):
    """Linear layer that makes `ratio` frames of each frame."""

    def __init__(self, channels: int, ratio: int) -> None:
        super().__init__()
        self.ratio = ratio
        self.linear = nn.Linear(channels, channels * ratio)

    def forward(self, values: Tensor) -> Tensor:
        """Transform values [B, N, C] to [B, N * ratio, C]."""
        B, N, C = values.shape
        # [B, N, ratio * C]: the channels of a frame hold its new frames one after the other.
        return self.linear(values).reshape(B, N * self.ratio, C)
