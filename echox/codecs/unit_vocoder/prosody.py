"""How long each unit lasts and which melody the voice follows, both told from the units."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from echox.codecs.unit_vocoder.blocks import ConvStack, Upsample

SHIFT_LOG_HZ = 5.2  # log of about 180 Hz, so that predictions start near a voice
VOICED_PROBABILITY = 0.5


class Durations(nn.Module):
    """Merged units -> encoder frames per unit."""

    def __init__(self, vocab_size: int, channels: int, depth: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, channels)
        self.stack = ConvStack(channels, depth)
        self.head = nn.Linear(channels, 1)

    def forward(self, units: Tensor, keep: Tensor) -> Tensor:
        """units [B, U], keep [B, U] -> log of the expected frames beyond the first, [B, U]."""
        keep = keep[:, :, None].to(self.head.weight.dtype)
        return self.head(self.stack(self.embedding(units), keep))[:, :, 0].float().clamp(-8, 5)

    def frames(self, units: Tensor, keep: Tensor) -> Tensor:
        """Whole frames per unit: [B, U] -> int64 [B, U], at least 1 where real, 0 on padding.

        Rounding is carried over from unit to unit, so that a sentence keeps its expected length.
        """
        beyond = (self(units, keep).exp() * keep).cumsum(1)
        whole = (beyond + 0.5).floor()
        return (torch.diff(whole, dim=1, prepend=torch.zeros_like(whole[:, :1])) + 1).long() * keep


def duration_loss(log_beyond: Tensor, frames: Tensor, keep: Tensor) -> Tensor:
    """Poisson likelihood of the frames beyond the first, whose optimum is their mean: all [B, U] -> []."""
    loss = log_beyond.exp() - (frames - 1) * log_beyond
    return (loss * keep).sum() / keep.sum()


class Melody(nn.Module):
    """Units at the encoder's frame rate -> pitch at the vocoder's."""

    def __init__(self, vocab_size: int, channels: int, depth: int, ratio: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, channels)
        self.stack = ConvStack(channels, depth)
        self.upsample = Upsample(channels, ratio)
        self.fine = ConvStack(channels, 1)
        self.head = nn.Linear(channels, 2)

    def forward(self, units: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        """units [B, F], keep [B, F] -> (log pitch in Hz, logit of being voiced), each [B, F * ratio]."""
        keep = keep[:, :, None].to(self.head.weight.dtype)
        values = self.upsample(self.stack(self.embedding(units), keep))
        values = self.head(self.fine(values, keep.repeat_interleave(self.upsample.ratio, 1))).float()
        return values[:, :, 0] + SHIFT_LOG_HZ, values[:, :, 1]

    def pitch_hz(self, units: Tensor, keep: Tensor) -> Tensor:
        """units [B, F], keep [B, F] -> [B, F * ratio] Hz, 0 where unvoiced."""
        log_hz, voiced = self(units, keep)
        return torch.where(voiced.sigmoid() > VOICED_PROBABILITY, log_hz.exp(), 0.0)


def melody_loss(log_hz: Tensor, voiced: Tensor, pitch_hz: Tensor, keep: Tensor) -> Tensor:
    """Absolute error of the log pitch where voiced, and cross-entropy of the voicing: all [B, N] -> []."""
    is_voiced = (pitch_hz > 0) * keep
    error = (log_hz - pitch_hz.clamp(min=1).log()).abs() * is_voiced
    entropy = nn.functional.binary_cross_entropy_with_logits(voiced, is_voiced.float(), reduction="none") * keep
    # A tenth of an octave off is worth about as much as a wrong voicing.
    return 10 * error.sum() / is_voiced.sum().clamp(min=1) + entropy.sum() / keep.sum()
