"""The unit vocoder's two losses: the generator's, and its discriminators'."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from echox.criteria.base import CRITERIA, Criterion, CriterionConfig, VocoderOutputs
from echox.signals import Batch, Loss
from echox.vocoders.discriminators import Verdict, judged_together
from echox.vocoders.mel import MelRecipe, MelSpectrogram


@dataclass(kw_only=True, slots=True)
class VocoderCriterionConfig(CriterionConfig):
    """HiFi-GAN's losses, and the error of predicted durations."""

    mel_weight: float = 45.0
    """Weight of the mel spectrogram's absolute error."""
    feature_weight: float = 2.0
    """Weight of the absolute error of what the discriminators' layers see."""
    duration_weight: float = 1.0
    """Weight of the squared error of log(1 + frames)."""
    n_fft: int = 1024
    """Samples of the mel's window."""
    hop_samples: int = 256
    """Samples between the mel's windows."""
    mel_bins: int = 80
    """Bins of the mel, from 0 Hz to half the sample rate."""


@CRITERIA.register("vocoder", VocoderCriterionConfig)
class VocoderCriterion(Criterion):
    """45 x mel + 2 x features + least squares against the discriminators, + the durations' error; means per row, summed over rows.

    Source: Kong et al. 2020, arXiv:2010.05646, section 2.4; durations as in Lee et al. 2022, arXiv:2107.05604, but over whole
    utterances, where the release predicts a segment's runs, of which the outer ones are cut.
    """

    def __init__(self, config: VocoderCriterionConfig) -> None:
        super().__init__()
        self.config = config
        self._mels: dict[tuple[int, torch.device], MelSpectrogram] = {}

    def forward(self, outputs: VocoderOutputs, batch: Batch) -> Loss:
        if len(outputs.made) == 0:
            return Loss(outputs.made.float().sum(), batch.count)
        parts = {"mel": self._mel(outputs)}
        total = self.config.mel_weight * parts["mel"]
        if outputs.log_frames is not None:
            parts["duration"] = _duration(outputs.log_frames, outputs.frames)
            total = total + self.config.duration_weight * parts["duration"]
        if outputs.judges is not None:
            # Apart, because no gradient is wanted of the real ones.
            with torch.no_grad():
                real = outputs.judges(outputs.real.float())
            made = outputs.judges(outputs.made.float())
            parts["features"] = _features(real, made)
            parts["adversarial"] = sum(_per_row((1 - verdict.scores.float()).square()) for verdict in made)
            total = total + self.config.feature_weight * parts["features"] + parts["adversarial"]
        rows = total.new_tensor(len(outputs.made))
        return Loss(total, batch.count, {name: (value.detach(), rows) for name, value in parts.items()})

    def discriminator(self, outputs: VocoderOutputs, batch: Batch) -> Loss:
        total = outputs.made.new_zeros((), dtype=torch.float32)
        for real, made in judged_together(outputs.judges, outputs.real.float(), outputs.made.detach().float()):
            total = total + _per_row((1 - real.scores.float()).square()) + _per_row(made.scores.float().square())
        return Loss(total, batch.count, {"discriminator": (total.detach(), total.new_tensor(len(outputs.made)))})

    def _mel(self, outputs: VocoderOutputs) -> Tensor:
        # Rounded to bfloat16, quiet bins would be lost.
        with torch.autocast(outputs.made.device.type, enabled=False):
            mel = self._spectrogram(outputs.rate_hz, outputs.made.device)
            return _per_row((mel(outputs.made.float()) - mel(outputs.real.float())).abs())

    def _spectrogram(self, rate_hz: int, device: torch.device) -> MelSpectrogram:
        if (rate_hz, device) not in self._mels:
            config = self.config
            recipe = MelRecipe(
                sampling_rate=rate_hz,
                n_fft=config.n_fft,
                hop_length=config.hop_samples,
                num_mels=config.mel_bins,
                fmax=rate_hz / 2,
                padding_samples=(config.n_fft - config.hop_samples) // 2,
            )
            self._mels[rate_hz, device] = MelSpectrogram(recipe).to(device)
        return self._mels[rate_hz, device]


def _per_row(values: Tensor) -> Tensor:
    """[B, ...] -> [], the mean of each row, summed."""
    return values.flatten(1).mean(1).sum()


def _features(real: Sequence[Verdict], made: Sequence[Verdict]) -> Tensor:
    pairs = [pair for one, other in zip(real, made, strict=True) for pair in zip(one.seen, other.seen, strict=True)]
    return sum(_per_row((heard.detach().float() - copied.float()).abs()) for heard, copied in pairs)


def _duration(log_frames: Tensor, frames: Tensor) -> Tensor:
    """[B, U] each."""
    keep = frames > 0
    error = (log_frames.float() - torch.log1p(frames.float())).square() * keep
    return (error.sum(1) / keep.sum(1).clamp(min=1)).sum()
