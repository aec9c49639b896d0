"""Test audio, and the rule of all parts that read audio."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from echox.core.errors import SignalError
from echox.core.signals import Waveform


def noise(rate_hz: int, lengths: Sequence[int]) -> Waveform:
    """Return a batch of noise whose padding is NaN.

    Args:
        rate_hz: sampling rate, in Hz.
        lengths: samples of each of B rows.

    Returns:
        samples [B, T] float32 in [-0.3, 0.3], with T the longest row.
    """
    generator = torch.Generator().manual_seed(1)
    values: Tensor = torch.randn(len(lengths), max(lengths), generator=generator)
    samples = values.clamp(-1, 1) * 0.3
    for row, length in enumerate(lengths):
        # A part that reads its padding gives NaN, however small its weight.
        samples[row, length:] = float("nan")
    return Waveform(samples, torch.tensor(lengths), rate_hz)


def only_row(wave: Waveform, row: int) -> Waveform:
    """Return one row of a batch without padding, samples [1, T]."""
    length = int(wave.lengths[row])
    return Waveform(wave.samples[row : row + 1, :length], wave.lengths[row : row + 1], wave.rate_hz)


def refuses_other_rates(take: Callable[[Waveform], object], rate_hz: int) -> None:
    """Check that a part refuses audio of another rate, which it would misread as other speech.

    Args:
        take: the method of the part that reads audio.
        rate_hz: sampling rate of the part, in Hz.

    Raises:
        AssertionError: it raises no `SignalError`.
    """
    wave = noise(rate_hz, [800])
    try:
        take(Waveform(wave.samples, wave.lengths, rate_hz // 2))
    except SignalError:
        return
    raise AssertionError(
        f"audio at {rate_hz // 2} Hz must raise SignalError; the part takes {rate_hz} Hz"
    )
