"""Errors of used-up memory, told from other errors and put into one sentence."""

from __future__ import annotations

import re
import textwrap

# What PyTorch's allocators, CUDA and cuBLAS write; on a CPU the type is a bare RuntimeError.
_TEXTS = re.compile(
    r"out of memory|DefaultCPUAllocator|can't allocate memory|not enough memory|ALLOC_FAILED",
    re.IGNORECASE,
)
_REASON_CHARACTERS = 160  # PyTorch adds advice of several lines


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that the memory of the machine or of a GPU is used up."""
    if isinstance(error, MemoryError):  # of Python and NumPy
        return True
    # PyTorch's own type for GPUs is a RuntimeError too, so PyTorch need not be imported here.
    return isinstance(error, RuntimeError) and _TEXTS.search(_one_line(error)) is not None


def out_of_memory_text(error: BaseException, way_out: str) -> str:
    """Return one sentence for an error of used-up memory.

    Args:
        error: as `is_out_of_memory` recognises it.
        way_out: what the user can do.
    """
    reason = textwrap.shorten(_one_line(error), _REASON_CHARACTERS, placeholder=" ...")
    return f"memory ran out ({reason or type(error).__name__}); {way_out}"


def _one_line(error: BaseException) -> str:
    # The libraries break their sentences anywhere.
    return " ".join(str(error).split())
