"""Which device to compute on, and whether products run in bfloat16 there."""

from __future__ import annotations

import torch

from echox.errors import ConfigError
from echox.number_format import number_format


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
    """Whether products run in bfloat16 on a device: of a CPU what its run keeps, the user says or is measured."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and number_format().bf16


def has_bf16_products() -> bool:
    """Whether this CPU has instructions that multiply bfloat16, fast or slow; without them it is emulated."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
