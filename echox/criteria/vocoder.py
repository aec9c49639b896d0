"""The unit vocoder's two losses: the generator's and the discriminators'."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from echox.core.config import refuse_below
from echox.core.errors import ConfigError
from echox.core.signals import Batch, Loss
from echox.criteria.base import CRITERIA, Criterion, CriterionConfig, VocoderOutputs
from echox.vocoders.discriminators import (
    DiscriminatorOutputs,
    Discriminators,
    discriminate_together,
)
from echox.vocoders.mel import MelRecipe, MelSpectrogram


@dataclass(kw_only=True, slots=True)
class VocoderCriterionConfig(CriterionConfig):
    """HiFi-GAN's losses and the error of predicted durations.

    Raises:
        ConfigError: a number is out of range.
    """

    mel_weight: float = 45.0
    """Weight of the mel spectrogram's absolute error."""
    feature_weight: float = 2.0
    """Weight of the absolute error of the activations of the discriminators' layers."""
    duration_weight: float = 1.0
    """Weight of the squared error of log(1 + frames)."""
    n_fft: int = 1024
    """Samples of the mel's window."""
    hop_samples: int = 256
    """Samples between the mel's windows."""
    mel_bins: int = 80
    """Bins of the mel, from 0 Hz to half the sample rate."""

    def __post_init__(self) -> None:
        refuse_below(self, 0, "mel_weight", "feature_weight", "duration_weight")
        refuse_below(self, 1, "n_fft", "hop_samples", "mel_bins")


@CRITERIA.register("vocoder", VocoderCriterionConfig)
class VocoderCriterion(Criterion[VocoderOutputs]):
    """HiFi-GAN's losses plus the duration error, means per row, summed over rows.

    45 x mel + 2 x features + least squares against the discriminators + durations by default.

    Source: Kong et al. 2020, arXiv:2010.05646, section 2.4; durations as in Lee et al. 2022,
    arXiv:2107.05604, but over whole utterances, where the release predicts a segment's runs, of
    which the outer ones are cut.
    """

    def __init__(self, config: VocoderCriterionConfig) -> None:
        super().__init__()
        self.config = config
        # A dictionary, not a submodule: the sample rate is known with the first batch only.
        self._mels: dict[tuple[int, torch.device], MelSpectrogram] = {}

    def forward(self, outputs: VocoderOutputs, batch: Batch) -> Loss:
        """Compute the generator's loss on samples [B, T]."""
        if len(outputs.synthesized) == 0:
            return Loss(outputs.synthesized.float().sum(), batch.count)
        parts = {"mel": self._mel_error(outputs)}
        total = self.config.mel_weight * parts["mel"]
        if outputs.log_frames is not None:
            parts["duration"] = _duration_error(outputs.log_frames, outputs.frames)
            total = total + self.config.duration_weight * parts["duration"]
        if outputs.discriminators is not None:
            parts |= _adversarial_parts(outputs, outputs.discriminators)
            total = total + self.config.feature_weight * parts["features"] + parts["adversarial"]
        rows = total.new_tensor(len(outputs.synthesized))
        shown = {name: (value.detach(), rows) for name, value in parts.items()}
        return Loss(total, batch.count, shown)

    def discriminator(self, outputs: VocoderOutputs, batch: Batch) -> Loss:
        """Compute the least-squares loss of the discriminators on samples [B, T].

        Source: Mao et al. 2017, arXiv:1611.04076: scores of 1 for recordings, of 0 for synthesis.
        """
        if outputs.discriminators is None:
            raise ConfigError(
                "this stage has no discriminators whose loss could be computed; "
                "set adversarial=true in its task"
            )
        total = outputs.synthesized.new_zeros((), dtype=torch.float32)
        # Detached: this loss must not reach the generator.
        pairs = discriminate_together(
            outputs.discriminators, outputs.real.float(), outputs.synthesized.detach().float()
        )
        for real, synthesized in pairs:
            total = total + _row_means((1 - real.scores.float()).square())
            total = total + _row_means(synthesized.scores.float().square())
        rows = total.new_tensor(len(outputs.synthesized))
        return Loss(total, batch.count, {"discriminator": (total.detach(), rows)})

    def _mel_error(self, outputs: VocoderOutputs) -> Tensor:
        # Without autocast: rounded to bfloat16, quiet bins would be lost.
        with torch.autocast(outputs.synthesized.device.type, enabled=False):
            mel = self._spectrogram(outputs.rate_hz, outputs.synthesized.device)
            synthesized, real = (
                mel(outputs.synthesized.float()),
                mel(outputs.real.float()),
            )  # [B, F, M]
            return _row_means((synthesized - real).abs())

    def _spectrogram(self, rate_hz: int, device: torch.device) -> MelSpectrogram:
        if (rate_hz, device) not in self._mels:
            config = self.config
            recipe = MelRecipe(
                sampling_rate=rate_hz,
                n_fft=config.n_fft,
                hop_length=config.hop_samples,
                num_mels=config.mel_bins,
                fmax=rate_hz / 2,
                # Half of what a window overlaps, on each side: T samples give T / hop frames.
                padding_samples=(config.n_fft - config.hop_samples) // 2,
            )
            self._mels[rate_hz, device] = MelSpectrogram(recipe).to(device)
        return self._mels[rate_hz, device]


def _adversarial_parts(
    outputs: VocoderOutputs, discriminators: Discriminators
) -> dict[str, Tensor]:
    """Compute feature matching and the generator's least-squares loss, each []."""
    # Two passes, because recordings need no gradient; the discriminators' own loss makes one.
    with torch.no_grad():
        real = discriminators(outputs.real.float())
    synthesized = discriminators(outputs.synthesized.float())
    return {
        "features": _feature_error(real, synthesized),
        "adversarial": _sum(_row_means((1 - net.scores.float()).square()) for net in synthesized),
    }


def _sum(terms: Iterable[Tensor]) -> Tensor:
    """Add terms [], of which there is one at least."""
    return functools.reduce(torch.add, terms)


def _row_means(values: Tensor) -> Tensor:
    """Average values [B, ...] over each row, and sum the rows: []."""
    return values.flatten(1).mean(1).sum()


def _feature_error(
    real: Sequence[DiscriminatorOutputs], synthesized: Sequence[DiscriminatorOutputs]
) -> Tensor:
    """Compare the activations of every layer of every discriminator: []."""
    layers = [
        pair
        for real_net, synthesized_net in zip(real, synthesized, strict=True)
        for pair in zip(real_net.seen, synthesized_net.seen, strict=True)
    ]
    return _sum(
        _row_means((real.detach().float() - synthesized.float()).abs())
        for real, synthesized in layers
    )


def _duration_error(log_frames: Tensor, frames: Tensor) -> Tensor:
    """Compare predicted and true durations [B, U] by their squared error: []."""
    real = frames > 0
    error = (log_frames.float() - torch.log1p(frames.float())).square() * real
    return (error.sum(1) / real.sum(1).clamp(min=1)).sum()
