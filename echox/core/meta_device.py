"""Modules with their true shapes and without values, on PyTorch's meta device."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from echox.core.errors import EchoxError

M = TypeVar("M", bound=nn.Module)


def built_on_meta(build: Callable[[], M]) -> M:
    """Build a module on the meta device, whatever its constructor does.

    Args:
        build: constructs the module. Where it computes with values, which the meta device does not
            have, it is called once more on the CPU, and the values are dropped afterwards.

    Returns:
        a module that has shapes and dtypes, but cannot compute.

    Raises:
        EchoxError: the module cannot be built.
    """
    try:
        with torch.device("meta"):
            # Tensors of the old constructor, torch.Tensor(n), are on the CPU all the same.
            return build().to("meta")
    except EchoxError:
        raise
    # Any exception: what a constructor does without values is up to it. torchaudio's MelSpectrogram
    # looks at its filters, which raises a RuntimeError; others raise what NumPy or they themselves
    # say. A fault of the constructor's own is raised again below.
    except Exception:
        with torch.random.fork_rng(devices=[]):
            return build().to("meta")
