"""Whether forward passes run in bfloat16."""

from __future__ import annotations

import torch

from echox.device import multiplies_bf16_fast
from echox.engine.config import Precision


def uses_bf16(precision: Precision, device: torch.device) -> bool:
    """True if forward passes on `device` run under bfloat16 autocast."""
    if precision is Precision.auto:
        return multiplies_bf16_fast(device)
    return precision is Precision.bf16


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """A fresh autocast context; weights stay float32 and are rounded as they are used."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=uses_bf16(precision, device))
