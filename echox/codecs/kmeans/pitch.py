"""The fundamental frequency of speech, by normalised autocorrelation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LOWEST_HZ, HIGHEST_HZ = 65.0, 450.0
WINDOW_S = 0.064  # four periods of the lowest pitch
VOICED_CORRELATION = 0.6
# A shorter lag this close to the best one wins: the autocorrelation of a periodic sound peaks at
# every multiple of its period.
OCTAVE_TOLERANCE = 0.9
SILENCE_RMS = 3e-3  # below it a frame is unvoiced, however periodic


def fundamental(samples: Tensor, rate_hz: int, hop_samples: int) -> Tensor:
    """Estimate the pitch contour of a recording.

    Args:
        samples: [T] float32 in [-1, 1].
        rate_hz: their sample rate; even rates are halved from 16 kHz on, because about 8 kHz are
            enough for the pitch of speech.
        hop_samples: distance of frames; frame t is centred on the middle of its hop.

    Returns:
        [F] Hz with F = T // hop_samples; 0 where unvoiced.

    Source: Boersma 1993, "Accurate short-term analysis of the fundamental frequency" (division by
    the window's share).
    """
    if rate_hz % 2 == 0 and rate_hz >= 16_000 and hop_samples % 2 == 0:
        samples = F.avg_pool1d(samples[None, None], 2)[0, 0]
        rate_hz, hop_samples = rate_hz // 2, hop_samples // 2
    frames = len(samples) // hop_samples
    if frames == 0:
        return samples.new_zeros(0)
    windows = _windows(samples, int(WINDOW_S * rate_hz), hop_samples, frames)  # [F, N]
    correlation = _autocorrelation(windows)
    shortest, longest = int(rate_hz / HIGHEST_HZ), int(rate_hz / LOWEST_HZ) + 1
    # A lag more on either side, which a maximum is compared with.
    lag, strength = _first_strong_peak(correlation[:, shortest - 1 : longest + 1])
    is_audible = windows.square().mean(1).sqrt() > SILENCE_RMS
    voiced = (strength > VOICED_CORRELATION) & is_audible
    return _median_filter(torch.where(voiced, rate_hz / (lag + shortest - 1), 0.0))


def _windows(samples: Tensor, size: int, hop_samples: int, frames: int) -> Tensor:
    """Windows without their mean, each centred on a hop: samples [T] -> [frames, size]."""
    before = size // 2 - hop_samples // 2
    windows = F.pad(samples, (before, size)).unfold(0, size, hop_samples)[:frames]
    # An offset would correlate at every lag.
    return windows - windows.mean(1, keepdim=True)


def _autocorrelation(windows: Tensor) -> Tensor:
    """[F, N] -> [F, N], each lag divided by the energies of the two parts that overlap."""
    _, N = windows.shape
    # Twice the length, so that the circular correlation of the transform does not wrap around.
    spectrum = torch.fft.rfft(windows, 2 * N)
    raw = torch.fft.irfft(spectrum.abs().square(), 2 * N)[:, :N]
    energy = windows.square().cumsum(1)
    head = energy.flip(1)  # energy of samples 0..N-1-lag
    tail = energy[:, -1:] - F.pad(energy, (1, 0))[:, :N]  # energy of samples lag..N-1
    return raw / (head * tail).clamp(min=1e-12).sqrt()


def _first_strong_peak(correlation: Tensor) -> tuple[Tensor, Tensor]:
    """The first local maximum nearly as high as the highest.

    [F, L] -> (interpolated index [F], height of the highest [F]).
    """
    left, middle, right = correlation[:, :-2], correlation[:, 1:-1], correlation[:, 2:]
    height = torch.where((middle >= left) & (middle >= right), middle, torch.zeros_like(middle))
    best = height.amax(1, keepdim=True)
    # `argmax` of equal values returns the first of them.
    first = (height >= OCTAVE_TOLERANCE * best).int().argmax(1, keepdim=True)
    # The vertex of the parabola through the peak and its neighbours; the bounds keep it between
    # the neighbours where the three points are nearly on a line.
    a, b, c = (part.gather(1, first)[:, 0] for part in (left, middle, right))
    shift = (a - c) / (2 * (a - 2 * b + c)).clamp(max=-1e-6)
    return first[:, 0] + 1 + shift.clamp(-0.5, 0.5), best[:, 0]


def _median_filter(pitch_hz: Tensor, reach: int = 2) -> Tensor:
    """Median over 2 * reach + 1 frames, [F] -> [F].

    It removes single octave jumps and single voiced or unvoiced frames.
    """
    return F.pad(pitch_hz, (reach, reach)).unfold(0, 2 * reach + 1, 1).median(1).values
