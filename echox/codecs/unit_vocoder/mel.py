"""Units and pitch -> mel spectrogram, and the judge that keeps the mel from being an average."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echox.codecs.unit_vocoder.blocks import ConvStack, Upsample
from echox.vocoders.mel import MelRecipe, mel_centres_hz


class MelNet(nn.Module):
    """Frame units and a pitch contour -> log mel.

    The pitch enters as the picture its harmonics leave on the mel bins, cos(2 pi f / pitch), so that the net need not learn where
    they lie. Trained on true pitch, the net is not left to average over melodies, which would blur the harmonics.
    """

    def __init__(self, vocab_size: int, channels: int, coarse_depth: int, fine_depth: int, ratio: int, recipe: MelRecipe) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, channels)
        self.coarse = ConvStack(channels, coarse_depth)
        self.upsample = Upsample(channels, ratio)
        self.pitch = nn.Linear(recipe.num_mels + 2, channels)
        self.fine = ConvStack(channels, fine_depth)
        self.norm = nn.LayerNorm(channels)
        self.head = nn.Linear(channels, recipe.num_mels)
        self.register_buffer("centres_hz", mel_centres_hz(recipe), persistent=False)
        self.register_buffer("mean", torch.zeros(recipe.num_mels))
        self.register_buffer("deviation", torch.ones(recipe.num_mels))

    def forward(self, units: Tensor, pitch_hz: Tensor, keep: Tensor) -> Tensor:
        """units [B, F], pitch_hz [B, F * ratio] (0 unvoiced), keep [B, F] -> normalised mel [B, F * ratio, M]."""
        keep = keep[:, :, None].to(self.head.weight.dtype)
        values = self.upsample(self.coarse(self.embedding(units), keep))
        values = values + self.pitch(self._harmonics(pitch_hz))
        values = self.fine(values, keep.repeat_interleave(self.upsample.ratio, 1))
        return self.head(self.norm(values)).float()

    def mel(self, units: Tensor, pitch_hz: Tensor, keep: Tensor) -> Tensor:
        """As `forward`, in the vocoder's logarithmic scale."""
        return self(units, pitch_hz, keep) * self.deviation + self.mean

    def normalise(self, mel: Tensor) -> Tensor:
        """Log mel [..., M] -> zero mean and unit deviation over the training audio."""
        return (mel - self.mean) / self.deviation

    def _harmonics(self, pitch_hz: Tensor) -> Tensor:
        """[B, N] -> [B, N, M + 2]: the comb, voicing, and log pitch."""
        voiced = (pitch_hz > 0).float()[:, :, None]
        pitch = pitch_hz.clamp(min=50)[:, :, None]
        comb = torch.cos(2 * torch.pi * self.centres_hz / pitch) * voiced
        return torch.cat([comb, voiced, 3 * (pitch.log() - 5.2) * voiced], dim=2)


class MelJudge(nn.Module):
    """Tells patches of real mels from made ones: a score for each patch, and the activations on the way.

    Source: Mao et al. 2017, arXiv:1611.04076 (least squares); Isola et al. 2017, arXiv:1611.07004 (patches).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        C = channels
        self.convs = nn.ModuleList(
            [
                nn.Conv2d(1, C, (3, 5), (1, 2), (1, 2)),
                nn.Conv2d(C, 2 * C, 3, 2, 1),
                nn.Conv2d(2 * C, 2 * C, 3, 2, 1),
                nn.Conv2d(2 * C, 2 * C, 3, 1, 1),
            ]
        )
        self.head = nn.Conv2d(2 * C, 1, 3, 1, 1)

    def forward(self, mel: Tensor) -> tuple[Tensor, list[Tensor]]:
        """normalised mel [B, N, M] -> (scores [B, 1, N', M'], activations)."""
        states, seen = mel[:, None], []
        for conv in self.convs:
            states = F.leaky_relu(conv(states), 0.2)
            seen.append(states)
        return self.head(states).float(), seen


def judge_loss(real: Tensor, made: Tensor) -> Tensor:
    """Scores of real patches should be 1, of made ones 0."""
    return (real - 1).square().mean() + made.square().mean()


def deception_loss(made: Tensor) -> Tensor:
    """What the mel net pays where the judge is not deceived."""
    return (made - 1).square().mean()


def feature_loss(real: list[Tensor], made: list[Tensor]) -> Tensor:
    """Mean absolute distance of the judge's activations."""
    return sum((a.detach().float() - b.float()).abs().mean() for a, b in zip(real, made, strict=True)) / len(real)
