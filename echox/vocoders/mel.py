"""Log mel spectrograms, the input of mel vocoders and the target of the vocoder's mel loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
import torchaudio
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class MelRecipe:
    """Settings of the mel spectrogram that a vocoder was trained on."""

    sampling_rate: int = 16_000  # Hz
    n_fft: int = 640  # samples of a window
    hop_length: int = 160  # samples
    num_mels: int = 80
    fmin: float = 0.0  # Hz
    fmax: float = 8_000.0  # Hz
    clamp_min: float = 1e-5  # least magnitude, so that silence has a logarithm
    padding_samples: int = 240  # on either side: (n_fft - hop_length) / 2 gives T // hop frames


class MelSpectrogram(nn.Module):
    """Natural logarithm of a magnitude mel spectrogram.

    Frames are not centred; the filters have Slaney's scale and norm.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, recipe: MelRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        # Both follow from the recipe, so they are no part of a state dict.
        self.register_buffer("window", torch.hann_window(recipe.n_fft), persistent=False)
        self.register_buffer("filters", mel_filters(recipe), persistent=False)  # [n_fft / 2 + 1, M]

    def forward(self, samples: Tensor) -> Tensor:
        """Compute the log mel spectrogram [F, M], or [B, F, M], with F = T // hop.

        Args:
            samples: [T], or [B, T], in [-1, 1]; a clip no longer than the padding has no frame.
        """
        recipe = self.recipe
        # Reflection needs more samples than it pads.
        if samples.shape[-1] <= recipe.padding_samples:
            return samples.new_zeros(*samples.shape[:-1], 0, recipe.num_mels)
        spectrum = torch.stft(
            _reflect(samples, recipe.padding_samples),
            recipe.n_fft,
            recipe.hop_length,
            window=self.window,
            center=False,
            return_complex=True,
        )
        mel = spectrum.abs().transpose(-1, -2) @ self.filters  # [B, F, M]
        return mel.clamp(min=recipe.clamp_min).log()


def _reflect(samples: Tensor, padding: int) -> Tensor:
    """Samples [T], or [B, T], padded on either side by their reflection."""
    # PyTorch reflects the last axis of [B, T] and not of [T].
    rows = samples.reshape(-1, samples.shape[-1])
    padded = F.pad(rows, (padding, padding), mode="reflect")
    return padded.reshape(*samples.shape[:-1], -1)


def mel_filters(recipe: MelRecipe) -> Tensor:
    """Compute the filters [n_fft / 2 + 1, M] of a mel spectrogram."""
    return torchaudio.functional.melscale_fbanks(
        recipe.n_fft // 2 + 1,
        recipe.fmin,
        recipe.fmax,
        recipe.num_mels,
        recipe.sampling_rate,
        norm="slaney",
        mel_scale="slaney",
    )


def mel_centres_hz(recipe: MelRecipe) -> Tensor:
    """Compute the centre of mass of each mel filter, [M] Hz."""
    bins_hz = torch.linspace(0, recipe.sampling_rate / 2, recipe.n_fft // 2 + 1)
    filters = mel_filters(recipe)
    # The lowest filters can be narrower than a bin and have no weight at all.
    return (bins_hz[:, None] * filters).sum(0) / filters.sum(0).clamp(min=1e-9)
