"""Precision of forward passes: float32 or bfloat16."""

from __future__ import annotations

import torch

from echox.core.device import multiplies_bf16_fast
from echox.engine.config import Precision


def uses_bf16(precision: Precision, device: torch.device) -> bool:
    """Return whether forward passes on `device` run under bfloat16 autocast."""
    if precision is Precision.auto:
        return multiplies_bf16_fast(device)
    return precision is Precision.bf16


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """Create an autocast context, in which float32 weights are rounded at each use."""
    # A new one each time: an autocast object must not be entered twice at once.
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=uses_bf16(precision, device))
