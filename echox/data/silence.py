"""Levels of clips: which of their parts are silent, and which clips cannot be speech."""

from __future__ import annotations

import torch
from torch import Tensor

FRAME_S = 0.02
SILENT_DBFS = -60.0  # the level of a quiet recording's noise
# Of sound; a short "no" takes a fifth of a second, and nothing is asked in less.
SHORTEST_S = 0.2
# Syllables swell and fade by tens of decibels, in loud noise by some; noise and tones alone do not.
STEADY_DB = 3.0
# Level of digital silence, whose logarithm would be minus infinity.
LOWEST_DBFS = -100.0


def frame_levels(samples: Tensor, rate_hz: int) -> Tensor:
    """Measure the levels [F] of a clip's frames of 20 ms, in dBFS.

    Args:
        samples: clip [T] in [-1, 1], T at least 1; one shorter than a frame is one frame, and what
            is left after the last whole frame is not measured.
        rate_hz: samples per second.
    """
    T = len(samples)
    size = max(1, min(T, round(FRAME_S * rate_hz)))
    frames = samples[: T - T % size].reshape(-1, size)  # [F, size]
    return 20 * frames.square().mean(dim=1).sqrt().clamp(min=10 ** (LOWEST_DBFS / 20)).log10()


def is_silent(samples: Tensor, rate_hz: int) -> bool:
    """Return whether no frame of a clip [T] is louder than a quiet recording's noise."""
    return float(frame_levels(samples, rate_hz).max()) <= SILENT_DBFS


def why_not_speech(samples: Tensor, rate_hz: int) -> str | None:
    """Return why a clip [T] cannot hold a question, by its levels alone, or None."""
    levels = frame_levels(samples, rate_hz)
    sounding = levels[levels > SILENT_DBFS]
    if not len(sounding):
        return "the clip is silent"
    # A clip shorter than a frame has one frame of its own length.
    sound_s = min(len(sounding) * FRAME_S, len(samples) / rate_hz)
    if sound_s < SHORTEST_S:
        return f"{1000 * sound_s:.0f} ms of the clip sound, which is less than a word"
    low, high = torch.quantile(sounding, sounding.new_tensor([0.05, 0.95])).tolist()
    return "the clip is a steady sound without syllables" if high - low < STEADY_DB else None


def without_silent_windows(samples: Tensor, rate_hz: int, window_s: float) -> Tensor:
    """Leave out the windows of a clip in which nothing sounds.

    Windows are counted from the clip's beginning, so that the others keep their places in them.

    Args:
        samples: clip [T], T at least 1.
        rate_hz: samples per second.
        window_s: seconds of a window; the last one may be shorter.

    Returns:
        samples [<= T]; all of them where every window is silent.
    """
    windows = torch.split(samples, round(window_s * rate_hz))
    if len(windows) == 1:
        return samples
    sounding = [window for window in windows if not is_silent(window, rate_hz)]
    return torch.cat(sounding) if sounding else samples
