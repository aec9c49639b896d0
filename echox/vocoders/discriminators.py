"""What tells made speech from real: nets that see a waveform folded at prime periods, and nets that see it at three rates.

Source: Kong et al. 2020, arXiv:2010.05646, section 2.3 and appendix; layers, paddings and norms as in its release.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from echox.errors import ConfigError

SLOPE = 0.1
FOLDED_WIDTH, FOLDED_STRIDE = 5, 3
# Width, stride and groups of the convolutions that see the waveform as it is.
STRAIGHT = ((15, 1, 1), (41, 2, 4), (41, 2, 16), (41, 4, 16), (41, 4, 16), (41, 1, 16), (5, 1, 1))


@dataclass(kw_only=True, slots=True)
class DiscriminatorSizes:
    """Sizes of the discriminators; the defaults are the paper's."""

    periods: list[int] = field(default_factory=lambda: [2, 3, 5, 7, 11])
    """Samples after which the waveform is folded, one net each; none leaves these nets out."""
    period_channels: list[int] = field(default_factory=lambda: [32, 128, 512, 1024, 1024])
    """Channels after each convolution of a net that folds; all but the last one look at every third of the step before."""
    scales: int = 3
    """Nets that see the waveform as it is and at half the rate of the one before; 0 leaves these nets out."""
    scale_channels: list[int] = field(default_factory=lambda: [128, 128, 256, 512, 1024, 1024, 1024])
    """Channels after each of the seven convolutions of such a net."""

    def __post_init__(self) -> None:
        if len(self.scale_channels) != len(STRAIGHT):
            raise ConfigError(f"scale_channels must name {len(STRAIGHT)} sizes, one a convolution, and names {len(self.scale_channels)}")
        for before, after, (_, _, groups) in zip([1, *self.scale_channels], self.scale_channels, STRAIGHT):
            if before % groups or after % groups:
                raise ConfigError(f"scale_channels has {before} and {after} where {groups} must divide both; use multiples of it")
        if not self.period_channels or self.scales < 0:
            raise ConfigError("period_channels needs at least one size, and scales must not be negative")
        if not self.periods and not self.scales:
            raise ConfigError("no discriminator is left: set discriminators=null to train without, or name periods or scales")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one net says of a batch."""

    scores: Tensor  # [B, N], near 1 where it hears real speech
    seen: Sequence[Tensor]  # the activations of its layers, each [B, ...]


class Discriminators(nn.Module):
    """All nets, each with its own verdict."""

    def __init__(self, sizes: DiscriminatorSizes) -> None:
        super().__init__()
        self.folded = nn.ModuleList(_Folded(period, sizes.period_channels) for period in sizes.periods)
        # The first one, which sees the waveform as it is, has spectral norm for stability.
        self.straight = nn.ModuleList(
            _Straight(sizes.scale_channels, spectral_norm if scale == 0 else weight_norm) for scale in range(sizes.scales)
        )

    def forward(self, samples: Tensor) -> list[Verdict]:
        """samples [B, T] -> a verdict of each net, the folding ones first."""
        verdicts = [net(samples) for net in self.folded]
        for scale, net in enumerate(self.straight):
            samples = F.avg_pool1d(samples[:, None], 4, 2, padding=2)[:, 0] if scale else samples
            verdicts.append(net(samples))
        return verdicts


class _Folded(nn.Module):
    """Convolutions over [B, 1, T / period, period] that never mix the columns."""

    def __init__(self, period: int, channels: Sequence[int]) -> None:
        super().__init__()
        self.period = period
        steps = [FOLDED_STRIDE] * (len(channels) - 1) + [1]
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(before, after, (FOLDED_WIDTH, 1), (step, 1), padding=(FOLDED_WIDTH // 2, 0)))
            for before, after, step in zip([1, *channels], channels, steps)
        )
        self.last = weight_norm(nn.Conv2d(channels[-1], 1, (3, 1), padding=(1, 0)))

    def forward(self, samples: Tensor) -> Verdict:
        B, T = samples.shape
        folded = F.pad(samples[:, None], (0, -T % self.period), mode="reflect")
        return _judge(self.layers, self.last, folded.view(B, 1, -1, self.period))


class _Straight(nn.Module):
    """Grouped convolutions over the waveform."""

    def __init__(self, channels: Sequence[int], norm) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            norm(nn.Conv1d(before, after, width, stride, padding=width // 2, groups=groups))
            for before, after, (width, stride, groups) in zip([1, *channels], channels, STRAIGHT)
        )
        self.last = norm(nn.Conv1d(channels[-1], 1, 3, padding=1))

    def forward(self, samples: Tensor) -> Verdict:
        return _judge(self.layers, self.last, samples[:, None])


def _judge(layers: nn.ModuleList, last: nn.Module, states: Tensor) -> Verdict:
    seen = []
    for layer in layers:
        states = F.leaky_relu(layer(states), SLOPE)
        seen.append(states)
    scores = last(states)
    return Verdict(scores.flatten(1), [*seen, scores])


def judged_together(judges: Discriminators, real: Tensor, made: Tensor) -> list[tuple[Verdict, Verdict]]:
    """Verdicts on real and on made samples, both [B, T], in one pass over each net."""
    B = len(real)
    verdicts = judges(torch.cat([real, made]))
    return [
        (
            Verdict(verdict.scores[:B], [layer[:B] for layer in verdict.seen]),
            Verdict(verdict.scores[B:], [layer[B:] for layer in verdict.seen]),
        )
        for verdict in verdicts
    ]
