"""Which device to compute on, and whether it multiplies bfloat16 fast."""

from __future__ import annotations

import torch

from echox.errors import ConfigError


def device_named(name: str) -> torch.device:
    """The device of a config's word: "auto" is a GPU where there is one, else the CPU.

    Raises:
        ConfigError: the word names no device, or one that this machine lacks.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device {name!r} is unknown; use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {name!r} was asked for, but this machine has {torch.cuda.device_count()} GPUs; use auto or cpu")
    return device


def multiplies_bf16_fast(device: torch.device) -> bool:
    """Whether bfloat16 products are faster than float32 ones on a device."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # AVX512-BF16 or AMX multiply bfloat16 in hardware; a CPU without either emulates it, slower than float32.
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
