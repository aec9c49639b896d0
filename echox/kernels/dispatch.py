"""Registration of functions as PyTorch operators, and autocast around their bodies."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch


def register_operator(
    name: str, function: Callable, fake: Callable, mutates_args: tuple[str, ...] = ()
) -> None:
    """Make a function an operator of PyTorch on CPUs and CUDA devices.

    Args:
        name: `namespace::name`.
        function: its annotations become the operator's schema, its parameters the schema's names.
        fake: takes the same arguments and returns empty tensors of the results' shapes.
        mutates_args: parameters that the function writes to.
    """
    # `torch.library.custom_op` would import the compiler on the first call: seconds of every start.
    torch.library.define(name, torch.library.infer_schema(function, mutates_args=mutates_args))
    torch.library.impl(name, ("cpu", "cuda"), function)
    torch.library.register_fake(name, fake)


def without_autocast(device_type: str) -> AbstractContextManager:
    """Return a context without autocast on a type of device."""
    # Entering `torch.autocast` costs as much as several operations on a few rows, so it is entered
    # only where there is something to switch off.
    if torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()
