"""From units to mel spectrograms: durations, melody and mel net in one module."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from echox.codecs.unit_vocoder.mel import MelNet
from echox.codecs.unit_vocoder.prosody import Durations, Melody
from echox.signals import Units, valid_mask
from echox.vocoders.mel import MelRecipe


@dataclass(kw_only=True, slots=True)
class SpeakerSizes:
    """Sizes of the nets."""

    prosody_channels: int = 160
    """Width of the duration and melody nets."""
    prosody_depth: int = 5
    """Blocks of each of them."""
    mel_channels: int = 256
    """Width of the mel net."""
    coarse_depth: int = 4
    """Its blocks at the encoder's frame rate."""
    fine_depth: int = 5
    """Its blocks at the vocoder's frame rate."""


class UnitSpeaker(nn.Module):
    """Speaks units in the voice it was trained on.

    Source: the split into duration, pitch and spectrum follows FastSpeech 2, Ren et al. 2020, arXiv:2006.04558.
    """

    def __init__(self, vocab_size: int, sizes: SpeakerSizes, ratio: int, recipe: MelRecipe) -> None:
        """
        Args:
            vocab_size: number of units V.
            ratio: mel frames per encoder frame.
            recipe: the vocoder's mel.
        """
        super().__init__()
        self.ratio = ratio
        self.durations = Durations(vocab_size, sizes.prosody_channels, sizes.prosody_depth)
        self.melody = Melody(vocab_size, sizes.prosody_channels, sizes.prosody_depth, ratio)
        self.mel = MelNet(vocab_size, sizes.mel_channels, sizes.coarse_depth, sizes.fine_depth, ratio, recipe)

    def forward(self, units: Units) -> tuple[Tensor, Tensor]:
        """Merged units [B, U] -> (log mel [B, F, M], lengths [B] frames); a row never depends on padding or neighbours."""
        keep = valid_mask(units.lengths, units.ids.shape[1])
        frames = self.durations.frames(units.ids * keep, keep)
        expanded = pad_sequence([row.repeat_interleave(count) for row, count in zip(units.ids, frames, strict=True)], batch_first=True)
        lengths = frames.sum(1)
        keep = valid_mask(lengths, expanded.shape[1])
        pitch_hz = self.melody.pitch_hz(expanded, keep)
        return self.mel.mel(expanded, pitch_hz, keep), lengths * self.ratio

    @torch.no_grad()
    def start_from(self, centroids: Tensor, seed: int) -> None:
        """Give units whose centroids [V, D] are close similar embeddings to begin with: a random projection of the centroids."""
        generator = torch.Generator().manual_seed(seed)
        standard = (centroids - centroids.mean(0)) / centroids.std(0).clamp(min=1e-4)
        for net in (self.durations, self.melody, self.mel):
            D, C = standard.shape[1], net.embedding.embedding_dim
            net.embedding.weight.copy_(standard.cpu() @ torch.randn(D, C, generator=generator) / D**0.5)
