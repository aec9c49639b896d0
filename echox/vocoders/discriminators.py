"""The discriminators of HiFi-GAN: of the waveform folded at prime periods, and at three rates.

Source: Kong et al. 2020, arXiv:2010.05646, section 2.3 and appendix; layers, paddings and norms as
in its release.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from echox.core.errors import ConfigError

SLOPE = 0.1
PERIOD_WIDTH, PERIOD_STRIDE = 5, 3
# Width, stride and groups of a scale discriminator's convolutions.
SCALE_LAYERS = (
    (15, 1, 1),
    (41, 2, 4),
    (41, 2, 16),
    (41, 4, 16),
    (41, 4, 16),
    (41, 1, 16),
    (5, 1, 1),
)


@dataclass(kw_only=True, slots=True)
class DiscriminatorSizes:
    """Sizes of the discriminators; the defaults are the paper's.

    Raises:
        ConfigError: sizes do not fit the layers, or no discriminator is left.
    """

    periods: list[int] = field(default_factory=lambda: [2, 3, 5, 7, 11])
    """Samples after which the waveform is folded, one network each; an empty list leaves these
    networks out."""
    period_channels: list[int] = field(default_factory=lambda: [32, 128, 512, 1024, 1024])
    """Channels after each convolution of such a network; all but the last one have a stride of
    3."""
    scales: int = 3
    """Networks that take the waveform unfolded, each at half the rate of the one before; 0 leaves
    these networks out."""
    scale_channels: list[int] = field(
        default_factory=lambda: [128, 128, 256, 512, 1024, 1024, 1024]
    )
    """Channels after each of the seven convolutions of such a network."""

    def __post_init__(self) -> None:
        self._check_scale_channels()
        if not self.period_channels or self.scales < 0:
            raise ConfigError(
                "period_channels needs at least one size, and scales must not be negative"
            )
        if not self.periods and not self.scales:
            raise ConfigError(
                "no discriminator is left: set discriminators=null to train without, or name "
                "periods or scales"
            )

    def _check_scale_channels(self) -> None:
        channels = self.scale_channels
        if len(channels) != len(SCALE_LAYERS):
            raise ConfigError(
                f"scale_channels must name {len(SCALE_LAYERS)} sizes, one a convolution, and names "
                f"{len(channels)}"
            )
        # A grouped convolution splits its inputs and its outputs evenly.
        for before, after, (_, _, groups) in zip([1, *channels], channels, SCALE_LAYERS):
            if before % groups or after % groups:
                raise ConfigError(
                    f"scale_channels has {before} and {after} where {groups} must divide both; use "
                    "multiples of it"
                )


@dataclass(frozen=True, slots=True)
class DiscriminatorOutputs:
    """Outputs of one discriminator for a batch."""

    scores: Tensor  # [B, N], trained to 1 for real and 0 for generated samples
    seen: Sequence[Tensor]  # the activations of its layers, each [B, ...], the scores last


class Discriminators(nn.Module):
    """All period and scale discriminators."""

    def __init__(self, sizes: DiscriminatorSizes) -> None:
        super().__init__()
        self.folded = nn.ModuleList(
            _PeriodDiscriminator(period, sizes.period_channels) for period in sizes.periods
        )
        # The first one, at the full rate, has spectral norm for stability.
        self.straight = nn.ModuleList(
            _ScaleDiscriminator(sizes.scale_channels, spectral_norm if scale == 0 else weight_norm)
            for scale in range(sizes.scales)
        )

    def forward(self, samples: Tensor) -> list[DiscriminatorOutputs]:
        """Score samples [B, T] with each discriminator, the period discriminators first."""
        outputs = [net(samples) for net in self.folded]
        for scale, net in enumerate(self.straight):
            # Each halves the rate of the one before, so the samples are halved step by step.
            samples = F.avg_pool1d(samples[:, None], 4, 2, padding=2)[:, 0] if scale else samples
            outputs.append(net(samples))
        return outputs


class _PeriodDiscriminator(nn.Module):
    """Convolutions over the folded waveform [B, 1, T / period, period], column by column."""

    def __init__(self, period: int, channels: Sequence[int]) -> None:
        super().__init__()
        self.period = period
        strides = [PERIOD_STRIDE] * (len(channels) - 1) + [1]
        # One column wide: samples of different phases of the period are never mixed.
        kernel, padding = (PERIOD_WIDTH, 1), (PERIOD_WIDTH // 2, 0)
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(before, after, kernel, (stride, 1), padding=padding))
            for before, after, stride in zip([1, *channels], channels, strides)
        )
        self.last = weight_norm(nn.Conv2d(channels[-1], 1, (3, 1), padding=(1, 0)))

    def forward(self, samples: Tensor) -> DiscriminatorOutputs:
        B, T = samples.shape
        # To whole rows of the folded waveform, as in the release.
        padded = F.pad(samples[:, None], (0, -T % self.period), mode="reflect")
        return _outputs(self.layers, self.last, padded.view(B, 1, -1, self.period))


class _ScaleDiscriminator(nn.Module):
    """Grouped convolutions over the waveform."""

    def __init__(self, channels: Sequence[int], norm: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            norm(nn.Conv1d(before, after, width, stride, padding=width // 2, groups=groups))
            for before, after, (width, stride, groups) in zip(
                [1, *channels], channels, SCALE_LAYERS
            )
        )
        self.last = norm(nn.Conv1d(channels[-1], 1, 3, padding=1))

    def forward(self, samples: Tensor) -> DiscriminatorOutputs:
        return _outputs(self.layers, self.last, samples[:, None])


def _outputs(layers: nn.ModuleList, last: nn.Module, states: Tensor) -> DiscriminatorOutputs:
    activations = []
    for layer in layers:
        states = F.leaky_relu(layer(states), SLOPE)
        activations.append(states)
    scores = last(states)
    # The release's feature loss compares the scores too.
    return DiscriminatorOutputs(scores.flatten(1), [*activations, scores])


def discriminate_together(
    discriminators: Discriminators, real: Tensor, generated: Tensor
) -> list[tuple[DiscriminatorOutputs, DiscriminatorOutputs]]:
    """Score real and generated samples, each [B, T], in one pass over each discriminator.

    Returns:
        outputs of the real and of the generated samples, per discriminator.
    """
    B = len(real)  # the first B rows of each output

    def part(outputs: DiscriminatorOutputs, rows: slice) -> DiscriminatorOutputs:
        return DiscriminatorOutputs(outputs.scores[rows], [layer[rows] for layer in outputs.seen])

    return [
        (part(outputs, slice(B)), part(outputs, slice(B, None)))
        for outputs in discriminators(torch.cat([real, generated]))
    ]
