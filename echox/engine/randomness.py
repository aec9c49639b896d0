"""Random state: seeded, captured for checkpoints, restored, and shielded from validation."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

RandomState = dict[str, Any]


def seed_all(seed: int, rank: int = 0) -> None:
    """Seed Python, numpy, torch and CUDA, differently on each rank so that dropout differs."""
    # Hashed: seed + rank would give rank 1 the numbers of rank 0 under the next seed.
    entropy = np.random.SeedSequence([seed, rank]).generate_state(1)
    random.seed(int(entropy[0]))
    np.random.seed(entropy[0])
    torch.manual_seed(int(entropy[0]))


def capture(device: torch.device) -> RandomState:
    """Return the state of every generator, in types `torch.load(weights_only=True)` accepts."""
    # Taken apart, because a weights-only load refuses numpy arrays.
    state = np.random.get_state(legacy=False)
    return {
        "python": random.getstate(),
        "numpy": {
            "name": state["bit_generator"],
            # int64, because torch has no arithmetic on uint32 and old releases lack the type.
            "keys": torch.from_numpy(state["state"]["key"].astype(np.int64)),
            "position": state["state"]["pos"],
            "has_gauss": state["has_gauss"],
            "cached": state["gauss"],
        },
        "torch": torch.get_rng_state(),
        # Of one device: each rank has its own.
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def restore(state: RandomState, device: torch.device) -> None:
    """Set every generator to a state of `capture`.

    Args:
        state: may come from a checkpoint of another device, and then lacks that of CUDA.
        device: the device whose generator is set beside those of the CPU.
    """
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    numpy = state["numpy"]
    np.random.set_state(
        (
            numpy["name"],
            numpy["keys"].numpy().astype(np.uint32),
            numpy["position"],
            numpy["has_gauss"],
            numpy["cached"],
        )
    )
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)


@contextmanager
def preserved(device: torch.device) -> Iterator[None]:
    """Restore all random state after the block.

    Validation inside it does not change what training draws, however often it runs.
    """
    state = capture(device)
    try:
        yield
    finally:
        restore(state, device)
