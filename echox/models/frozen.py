"""Frozen weights in half the memory."""

from __future__ import annotations

import torch
from torch import nn


def halve_frozen(model: nn.Module) -> None:
    """Store frozen weights in bfloat16, so that autocast need not round them at every step.

    Trained weights stay float32, for small updates would be lost to rounding. Buffers stay too:
    rounding those of rotary positions changes the model's output.
    """
    for parameter in model.parameters():
        if not parameter.requires_grad and parameter.dtype == torch.float32:
            parameter.data = parameter.data.bfloat16()
