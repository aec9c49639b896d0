"""The mel network, units and pitch -> mel spectrogram, and the discriminator of its training.

The discriminator keeps the mel from being an average of all plausible ones.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echox.codecs.kmeans.blocks import ConvStack, Upsample
from echox.vocoders.mel import MelRecipe, mel_centres_hz


class MelNet(nn.Module):
    """Frame units and a pitch contour -> log mel spectrogram.

    The pitch enters as the pattern that its harmonics leave on the mel bins, cos(2 pi f / pitch),
    so that the network need not learn where they lie. Trained on true pitch, it is not left to
    average over pitch contours, which would blur the harmonics.
    """

    centres_hz: Tensor
    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        vocab_size: int,
        channels: int,
        coarse_depth: int,
        fine_depth: int,
        ratio: int,
        recipe: MelRecipe,
    ) -> None:
        """Build the network with random weights.

        Args:
            vocab_size: number of units V.
            channels: width of all layers.
            coarse_depth: blocks at the encoder's frame rate.
            fine_depth: blocks at the vocoder's frame rate.
            ratio: mel frames per encoder frame.
            recipe: the vocoder's mel.
        """
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, channels)
        self.coarse = ConvStack(channels, coarse_depth)
        self.upsample = Upsample(channels, ratio)
        self.pitch = nn.Linear(recipe.num_mels + 2, channels)  # harmonics, voicing, log pitch
        self.fine = ConvStack(channels, fine_depth)
        self.norm = nn.LayerNorm(channels)
        self.head = nn.Linear(channels, recipe.num_mels)
        self.register_buffer("centres_hz", mel_centres_hz(recipe), persistent=False)  # [M]
        # Statistics of the training audio, set before the training.
        self.register_buffer("mean", torch.zeros(recipe.num_mels))
        self.register_buffer("deviation", torch.ones(recipe.num_mels))

    def forward(self, units: Tensor, pitch_hz: Tensor, keep: Tensor) -> Tensor:
        """Predict the normalised log mel spectrogram [B, F * ratio, M].

        Args:
            units: int64 [B, F], a unit per encoder frame.
            pitch_hz: [B, F * ratio], 0 where unvoiced.
            keep: bool [B, F], False on padding.
        """
        keep = keep[:, :, None].to(self.head.weight.dtype)  # [B, F, 1]
        values = self.upsample(self.coarse(self.embedding(units), keep))  # [B, F * ratio, C]
        values = values + self.pitch(self._harmonics(pitch_hz))
        values = self.fine(values, keep.repeat_interleave(self.upsample.ratio, 1))
        # float32 for the losses, and for the statistics by which `mel` scales it.
        return self.head(self.norm(values)).float()

    def mel(self, units: Tensor, pitch_hz: Tensor, keep: Tensor) -> Tensor:
        """Predict the log mel spectrogram [B, F * ratio, M] in the vocoder's scale.

        Args:
            units: int64 [B, F], a unit per encoder frame.
            pitch_hz: [B, F * ratio], 0 where unvoiced.
            keep: bool [B, F], False on padding.
        """
        return self(units, pitch_hz, keep) * self.deviation + self.mean

    def normalise(self, mel: Tensor) -> Tensor:
        """Scale log mel [..., M] to zero mean and unit deviation over the training audio."""
        return (mel - self.mean) / self.deviation

    def _harmonics(self, pitch_hz: Tensor) -> Tensor:
        """Pitch [B, N] -> features [B, N, M + 2]: the harmonics, voicing, and log pitch."""
        voiced = (pitch_hz > 0).float()[:, :, None]
        # Unvoiced frames hold 0 Hz, by which nothing can be divided; `voiced` zeroes them below.
        pitch = pitch_hz.clamp(min=50)[:, :, None]
        comb = torch.cos(2 * torch.pi * self.centres_hz / pitch) * voiced
        # Centred and scaled to about -1..1: 5.2 is the log of about 180 Hz.
        return torch.cat([comb, voiced, 3 * (pitch.log() - 5.2) * voiced], dim=2)


class MelDiscriminator(nn.Module):
    """Patch discriminator of mel spectrograms, which also returns its activations.

    Source: Mao et al. 2017, arXiv:1611.04076 (least squares); Isola et al. 2017,
    arXiv:1611.07004 (patches).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        C = channels
        self.convs = nn.ModuleList(
            [
                nn.Conv2d(1, C, (3, 5), (1, 2), (1, 2)),  # [B, C, N, M / 2]
                nn.Conv2d(C, 2 * C, 3, 2, 1),  # [B, 2C, N / 2, M / 4]
                nn.Conv2d(2 * C, 2 * C, 3, 2, 1),  # [B, 2C, N / 4, M / 8]
                nn.Conv2d(2 * C, 2 * C, 3, 1, 1),
            ]
        )
        self.head = nn.Conv2d(2 * C, 1, 3, 1, 1)

    def forward(self, mel: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Score patches of a normalised mel spectrogram [B, N, M].

        Returns:
            scores [B, 1, N', M'] float32; activations of each layer [B, C, N', M'].
        """
        states, activations = mel[:, None], []
        for conv in self.convs:
            states = F.leaky_relu(conv(states), 0.2)
            activations.append(states)
        return self.head(states).float(), activations


def discriminator_loss(real: Tensor, generated: Tensor) -> Tensor:
    """Compute the least-squares loss of scores [B, ...]: targets 1 for real, 0 for generated."""
    return (real - 1).square().mean() + generated.square().mean()


def generator_loss(generated: Tensor) -> Tensor:
    """Compute the least-squares loss of the scores [B, ...] of generated mels: target 1."""
    return (generated - 1).square().mean()


def feature_loss(real: list[Tensor], generated: list[Tensor]) -> Tensor:
    """Compute the mean absolute distance of the discriminator's activations, each [B, ...].

    No gradient flows to the real ones.
    """
    distances = (
        (a.detach().float() - b.float()).abs().mean() for a, b in zip(real, generated, strict=True)
    )
    return functools.reduce(torch.add, distances) / len(real)
