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
    """Seed python, numpy, torch and CUDA; ranks draw different dropout."""
    entropy = np.random.SeedSequence([seed, rank]).generate_state(1)
    random.seed(int(entropy[0]))
    np.random.seed(entropy[0])
    torch.manual_seed(int(entropy[0]))


def capture(device: torch.device) -> RandomState:
    """The state of every generator, in types that `torch.load(weights_only=True)` accepts."""
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": {"name": name, "keys": torch.from_numpy(keys.astype(np.int64)), "position": position, "has_gauss": has_gauss, "cached": cached},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def restore(state: RandomState, device: torch.device) -> None:
    """Undo everything drawn since `state` was captured."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    numpy = state["numpy"]
    np.random.set_state((numpy["name"], numpy["keys"].numpy().astype(np.uint32), numpy["position"], numpy["has_gauss"], numpy["cached"]))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)


@contextmanager
def preserved(device: torch.device) -> Iterator[None]:
    """Leave the generators as they were, so that how often a run is validated does not change what it learns."""
    state = capture(device)
    try:
        yield
    finally:
        restore(state, device)
