"""Audio to test with, and the rules of all parts that take audio."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from echox.errors import SignalError
from echox.signals import Waveform

# Frames at an edge may be counted with or without a partly filled window.
EDGE_FRAMES = 2


def noise(rate_hz: int, lengths: Sequence[int]) -> Waveform:
    """Noise, and behind each row's end what a careless part must not see."""
    generator = torch.Generator().manual_seed(1)
    samples: Tensor = torch.randn(len(lengths), max(lengths), generator=generator).clamp(-1, 1) * 0.3
    for row, length in enumerate(lengths):
        samples[row, length:] = float("nan")
    return Waveform(samples, torch.tensor(lengths), rate_hz)


def only_row(wave: Waveform, row: int) -> Waveform:
    """One row of a batch, without padding."""
    length = int(wave.lengths[row])
    return Waveform(wave.samples[row : row + 1, :length], wave.lengths[row : row + 1], wave.rate_hz)


def refuses_other_rates(take: Callable[[Waveform], object], rate_hz: int) -> None:
    """Audio at another rate than the part's is refused, for it would be heard wrongly."""
    wave = noise(rate_hz, [800])
    try:
        take(Waveform(wave.samples, wave.lengths, rate_hz // 2))
    except SignalError:
        return
    raise AssertionError(f"audio at {rate_hz // 2} Hz must raise SignalError; the part takes {rate_hz} Hz")
