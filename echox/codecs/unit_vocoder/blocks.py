"""The building block of the nets: a residual convolution over time that never sees padding."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class ConvBlock(nn.Module):
    """x + linear(gelu(norm(conv(x)))). A dense convolution costs less time on a CPU than a depthwise one of equal size."""

    def __init__(self, channels: int, width: int = 5, dilation: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, width, padding=width // 2 * dilation, dilation=dilation)
        self.norm = nn.LayerNorm(channels)
        self.linear = nn.Linear(channels, channels)

    def forward(self, values: Tensor, keep: Tensor) -> Tensor:
        """values [B, N, C], keep [B, N, 1] (1 where real, 0 on padding) -> [B, N, C]."""
        mixed = self.conv((values * keep).transpose(1, 2)).transpose(1, 2)
        return values + self.linear(F.gelu(self.norm(mixed)))


class ConvStack(nn.Module):
    """Blocks whose dilations cycle through 1, 2, 4."""

    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ConvBlock(channels, dilation=2 ** (index % 3)) for index in range(depth))

    def forward(self, values: Tensor, keep: Tensor) -> Tensor:
        """values [B, N, C], keep [B, N, 1] -> [B, N, C]."""
        for block in self.blocks:
            values = block(values, keep)
        return values


class Upsample(nn.Module):
    """Every frame becomes `ratio` frames: [B, N, C] -> [B, N * ratio, C]."""

    def __init__(self, channels: int, ratio: int) -> None:
        super().__init__()
        self.ratio = ratio
        self.linear = nn.Linear(channels, channels * ratio)

    def forward(self, values: Tensor) -> Tensor:
        B, N, C = values.shape
        return self.linear(values).reshape(B, N * self.ratio, C)
