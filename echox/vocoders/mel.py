"""Waveform -> log mel spectrogram, as vocoders are trained on and judged by."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
import torchaudio
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class MelRecipe:
    """How a waveform becomes the mel spectrogram that a vocoder was trained on."""

    sampling_rate: int = 16_000
    n_fft: int = 640
    hop_length: int = 160
    num_mels: int = 80
    fmin: float = 0.0
    fmax: float = 8_000.0
    clamp_min: float = 1e-5
    padding_samples: int = 240


class MelSpectrogram(nn.Module):
    """Natural logarithm of a magnitude mel spectrogram, frames not centred, Slaney's scale and norm."""

    def __init__(self, recipe: MelRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.register_buffer("window", torch.hann_window(recipe.n_fft), persistent=False)
        self.register_buffer("filters", mel_filters(recipe), persistent=False)  # [n_fft / 2 + 1, M]

    def forward(self, samples: Tensor) -> Tensor:
        """samples [T] or [B, T] in [-1, 1] -> [F, M] or [B, F, M] with F = T // hop; a clip no longer than the padding gives no frame."""
        recipe = self.recipe
        if samples.shape[-1] <= recipe.padding_samples:
            return samples.new_zeros(*samples.shape[:-1], 0, recipe.num_mels)
        rows = F.pad(samples.reshape(-1, samples.shape[-1]), (recipe.padding_samples, recipe.padding_samples), mode="reflect")
        padded = rows.reshape(*samples.shape[:-1], -1)
        spectrum = torch.stft(padded, recipe.n_fft, recipe.hop_length, window=self.window, center=False, return_complex=True)
        return (spectrum.abs().transpose(-1, -2) @ self.filters).clamp(min=recipe.clamp_min).log()


def mel_filters(recipe: MelRecipe) -> Tensor:
    """[n_fft / 2 + 1, M]."""
    return torchaudio.functional.melscale_fbanks(
        recipe.n_fft // 2 + 1, recipe.fmin, recipe.fmax, recipe.num_mels, recipe.sampling_rate, norm="slaney", mel_scale="slaney"
    )


def mel_centres_hz(recipe: MelRecipe) -> Tensor:
    """Frequency of each mel bin's peak, [M] Hz."""
    bins_hz = torch.linspace(0, recipe.sampling_rate / 2, recipe.n_fft // 2 + 1)
    filters = mel_filters(recipe)
    return (bins_hz[:, None] * filters).sum(0) / filters.sum(0).clamp(min=1e-9)
