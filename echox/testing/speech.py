"""Test audio, and the rule of all parts that read audio."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from echox.core.errors import SignalError
from echox.core.signals import Waveform

SYLLABLE_S = 0.15
FORMANTS_HZ = ((300, 2300), (700, 1100), (500, 1800), (400, 800))  # of four vowels
FORMANT_WIDTH_HZ = 150
HIGHEST_HZ = 4000  # of the harmonics of a vowel


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


def made_speech(rate_hz: int, clips: int = 8, syllables: int = 10) -> list[Tensor]:
    """Return recordings of a made voice: vowels of moving pitch, with hisses and pauses between.

    Args:
        rate_hz: sampling rate, in Hz.
        clips: number of recordings.
        syllables: number of syllables of each, of `SYLLABLE_S` seconds.

    Returns:
        samples [T] float32 in [-1, 1] of each recording.
    """
    generator = torch.Generator().manual_seed(2)
    return [
        torch.cat([_syllable(rate_hz, generator) for _ in range(syllables)]) for _ in range(clips)
    ]


def _syllable(rate_hz: int, generator: torch.Generator) -> Tensor:
    T = round(SYLLABLE_S * rate_hz)
    fade = torch.hann_window(T)
    kind = int(torch.randint(6, (), generator=generator))
    if kind >= len(FORMANTS_HZ):
        hiss = 0.1 * fade * torch.randn(T, generator=generator).clamp(-3, 3)
        return hiss if kind == len(FORMANTS_HZ) else torch.zeros(T)
    first_hz, last_hz = (100 + 80 * torch.rand(2, generator=generator)).tolist()
    pitch_hz = torch.linspace(first_hz, last_hz, T)
    phase = 2 * torch.pi * pitch_hz.cumsum(0) / rate_hz
    wave = torch.zeros(T)
    for number in range(1, int(min(HIGHEST_HZ, rate_hz / 2) / max(first_hz, last_hz)) + 1):
        away = [(number * pitch_hz - formant) / FORMANT_WIDTH_HZ for formant in FORMANTS_HZ[kind]]
        wave += sum(1 / (1 + distance**2) for distance in away) * torch.sin(number * phase)
    return 0.5 * fade * wave / wave.abs().max()


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
