"""Which device to compute on, and whether products run in bfloat16 there."""

from __future__ import annotations

import torch

from echox.core.errors import ConfigError
from echox.core.number_format import number_format


def device_named(name: str) -> torch.device:
    """Return the device that a config names.

    Args:
        name: a name of PyTorch, such as "cuda:1"; "auto" is a GPU if there is one, else the CPU.

    Raises:
        ConfigError: the name is unknown, or this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device {name!r} is unknown; use auto, cpu, cuda or cuda:N") from error
    # PyTorch accepts any index and type here, and fails only when the first tensor is moved.
    if (device.index or 0) >= _device_counts().get(device.type, 0):
        present = ", ".join(
            kind if kind == "cpu" or count == 1 else f"{kind}:0 to {kind}:{count - 1}"
            for kind, count in _device_counts().items()
            if count
        )
        raise ConfigError(
            f"device {name!r} is not on this machine, which has {present}; use auto or one of these"
        )
    return device


def _device_counts() -> dict[str, int]:
    """Return how many devices of each type PyTorch finds on this machine."""
    return {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "xpu": torch.xpu.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }


def multiplies_bf16_fast(device: torch.device) -> bool:
    """Return whether matrix products should run in bfloat16 on a device.

    A GPU's hardware decides. On a CPU the process's number format does, which is measured if
    neither the user nor the run's folder states one. Other devices use float32.

    Raises:
        ConfigError: the environment variable of the CPU's number format has an unknown value.
    """
    if device.type == "cuda":
        # Emulation, as on older GPUs, saves no time over float32.
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and number_format().bf16


def has_bf16_products() -> bool:
    """Return whether this CPU has instructions that multiply bfloat16, fast or slow.

    Without them PyTorch emulates the products.
    """
    # Both queries are private to PyTorch, so this is the one place that calls them.
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
