"""Whether forward passes run in bfloat16."""

from __future__ import annotations

import torch

from echox.engine.config import Precision


def uses_bf16(precision: Precision, device: torch.device) -> bool:
    """True if forward passes on `device` run under bfloat16 autocast."""
    if precision is Precision.auto:
        return _multiplies_bf16_fast(device)
    return precision is Precision.bf16


def _multiplies_bf16_fast(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # AVX512-BF16 or AMX multiply bfloat16 in hardware; a CPU without either emulates it, slower than float32.
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """A fresh autocast context; weights stay float32 and are rounded as they are used."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=uses_bf16(precision, device))
