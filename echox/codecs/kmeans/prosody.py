"""Prosody of units: the duration of each unit and the pitch contour, both predicted from units."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from echox.codecs.kmeans.blocks import ConvStack, Upsample

SHIFT_LOG_HZ = 5.2  # log of about 180 Hz, so that predictions begin near a speaker's pitch
VOICED_PROBABILITY = 0.5


class DurationNet(nn.Module):
    """Predictor of the encoder frames of each merged unit."""

    def __init__(self, vocab_size: int, channels: int, depth: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, channels)
        self.stack = ConvStack(channels, depth)
        self.head = nn.Linear(channels, 1)

    def forward(self, units: Tensor, keep: Tensor) -> Tensor:
        """Predict the log of the expected frames beyond the first.

        Args:
            units: int64 [B, U].
            keep: bool [B, U], False on padding.

        Returns:
            float32 [B, U].
        """
        keep = keep[:, :, None].to(self.head.weight.dtype)  # [B, U, 1]
        values = self.head(self.stack(self.embedding(units), keep))[:, :, 0]  # [B, U]
        # Bounds keep `exp` finite; exp(5) frames are 3 s at 50 Hz.
        return values.float().clamp(-8, 5)

    @property
    def reach(self) -> int:
        """Units on either side that a duration depends on."""
        return self.stack.reach

    def expected(self, units: Tensor, keep: Tensor) -> Tensor:
        """Predict the expected frames beyond the first [B, U], 0 on padding."""
        return self(units, keep).exp() * keep

    def frames(self, units: Tensor, keep: Tensor) -> Tensor:
        """Predict whole frames per unit.

        Args:
            units: int64 [B, U].
            keep: bool [B, U], False on padding.

        Returns:
            int64 [B, U], at least 1 where real, 0 on padding.
        """
        counts, _ = whole_frames(self.expected(units, keep))
        return counts * keep


def whole_frames(expected: Tensor, before: float = 0.0) -> tuple[Tensor, Tensor]:
    """Round durations, carrying rounding errors over from unit to unit.

    A sentence so keeps its expected length: the error of a whole row stays below one frame.

    Args:
        expected: frames beyond the first [B, U].
        before: the same of all units before these, summed.

    Returns:
        frames int64 [B, U], at least 1; the sums [B] float64 with these units.
    """
    # Where each unit would end, were its first frame not counted. In float64: the sum over a
    # stream's chunks is then that over the whole.
    beyond = torch.nn.functional.pad(expected.double(), (1, 0), value=before).cumsum(1)
    ends = (beyond + 0.5).floor()
    return (torch.diff(ends, dim=1) + 1).long(), beyond[:, -1]


def duration_loss(log_beyond: Tensor, frames: Tensor, keep: Tensor) -> Tensor:
    """Compute the Poisson negative log-likelihood of the frames beyond the first.

    Its optimum is their mean, which a squared error of logarithms would underestimate.

    Args:
        log_beyond: predicted log of the expected frames beyond the first [B, U].
        frames: true frames [B, U].
        keep: bool [B, U], False on padding.

    Returns:
        mean over real units [].
    """
    # Without log((frames - 1)!), which no weight changes.
    loss = log_beyond.exp() - (frames - 1) * log_beyond
    return (loss * keep).sum() / keep.sum()


class PitchNet(nn.Module):
    """Predictor of the pitch contour at the vocoder's frame rate from units at the encoder's."""

    def __init__(self, vocab_size: int, channels: int, depth: int, ratio: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, channels)
        self.stack = ConvStack(channels, depth)
        self.upsample = Upsample(channels, ratio)
        self.fine = ConvStack(channels, 1)
        self.head = nn.Linear(channels, 2)

    def forward(self, units: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        """Predict log pitch and voicing.

        Args:
            units: int64 [B, F], a unit per encoder frame.
            keep: bool [B, F], False on padding.

        Returns:
            log of the pitch in Hz [B, F * ratio]; logit of being voiced [B, F * ratio].
        """
        keep = keep[:, :, None].to(self.head.weight.dtype)  # [B, F, 1]
        values = self.upsample(self.stack(self.embedding(units), keep))
        fine_keep = keep.repeat_interleave(self.upsample.ratio, 1)
        values = self.head(self.fine(values, fine_keep)).float()  # [B, F * ratio, 2]
        return values[:, :, 0] + SHIFT_LOG_HZ, values[:, :, 1]

    def pitch_hz(self, units: Tensor, keep: Tensor) -> Tensor:
        """Predict the pitch contour [B, F * ratio] in Hz, 0 where unvoiced.

        Args:
            units: int64 [B, F], a unit per encoder frame.
            keep: bool [B, F], False on padding.
        """
        log_hz, voiced = self(units, keep)
        return torch.where(voiced.sigmoid() > VOICED_PROBABILITY, log_hz.exp(), 0.0)


def pitch_loss(log_hz: Tensor, voiced: Tensor, pitch_hz: Tensor, keep: Tensor) -> Tensor:
    """Compute the absolute error of the log pitch where voiced, plus that of the voicing.

    Args:
        log_hz, voiced: predicted log of the pitch in Hz, and logit of being voiced, each [B, N].
        pitch_hz: true pitch [B, N], 0 where unvoiced.
        keep: bool [B, N], False on padding.

    Returns:
        weighted sum of both means [].
    """
    is_voiced = (pitch_hz > 0) * keep
    error = (log_hz - pitch_hz.clamp(min=1).log()).abs() * is_voiced
    entropy = nn.functional.binary_cross_entropy_with_logits(
        voiced, is_voiced.float(), reduction="none"
    )
    entropy = entropy * keep
    # Unvoiced frames have no pitch, so the first mean is over voiced ones only.
    # A tenth of an octave off is worth about as much as a wrong voicing.
    return 10 * error.sum() / is_voiced.sum().clamp(min=1) + entropy.sum() / keep.sum()
