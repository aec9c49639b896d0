"""The acoustic model, units -> mel spectrogram: durations, pitch and mel network in one module."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from echox.codecs.kmeans.mel import MelNet
from echox.codecs.kmeans.prosody import DurationNet, PitchNet
from echox.core.config import refuse_below
from echox.core.signals import Units, valid_mask
from echox.vocoders.mel import MelRecipe


@dataclass(kw_only=True, slots=True)
class AcousticModelSizes:
    """Sizes of the networks of the acoustic model.

    Raises:
        ConfigError: a number is out of range.
    """

    prosody_channels: int = 160
    """Width of the duration and pitch networks."""
    prosody_depth: int = 5
    """Blocks of each of them."""
    mel_channels: int = 256
    """Width of the mel network."""
    coarse_depth: int = 4
    """Its blocks at the encoder's frame rate."""
    fine_depth: int = 5
    """Its blocks at the vocoder's frame rate."""

    def __post_init__(self) -> None:
        refuse_below(self, 1, "prosody_channels", "mel_channels")
        refuse_below(self, 0, "prosody_depth", "coarse_depth", "fine_depth")


class AcousticModel(nn.Module):
    """Merged units -> log mel spectrogram of the speaker it was trained on.

    Source: the split into duration, pitch and spectrum follows FastSpeech 2, Ren et al. 2020,
    arXiv:2006.04558.
    """

    def __init__(
        self, vocab_size: int, sizes: AcousticModelSizes, ratio: int, recipe: MelRecipe
    ) -> None:
        """Build the networks with random weights.

        Args:
            vocab_size: number of units V.
            sizes: of the networks.
            ratio: mel frames per encoder frame.
            recipe: the vocoder's mel.
        """
        super().__init__()
        self.ratio = ratio
        channels, depth = sizes.prosody_channels, sizes.prosody_depth
        # The order decides which random weights each network gets.
        self.durations = DurationNet(vocab_size, channels, depth)
        self.melody = PitchNet(vocab_size, channels, depth, ratio)
        self.mel = MelNet(
            vocab_size, sizes.mel_channels, sizes.coarse_depth, sizes.fine_depth, ratio, recipe
        )

    def forward(self, units: Units) -> tuple[Tensor, Tensor]:
        """Predict the mel spectrogram of merged units [B, U].

        A row never depends on its padding or its neighbours.

        Returns:
            log mel [B, F, M]; lengths [B] int64, mel frames.
        """
        keep = valid_mask(units.lengths, units.ids.shape[1])
        # Ids past a length are unspecified; 0 is one that the embedding has.
        frames = self.durations.frames(units.ids * keep, keep)  # [B, U]
        # Row by row, because each row has other counts.
        repeated = [
            ids.repeat_interleave(count) for ids, count in zip(units.ids, frames, strict=True)
        ]
        expanded = pad_sequence(repeated, batch_first=True)  # a unit per frame
        lengths = frames.sum(1)
        keep = valid_mask(lengths, expanded.shape[1])
        return self.render(expanded, keep), lengths * self.ratio

    def render(self, frames: Tensor, keep: Tensor) -> Tensor:
        """Predict log mel [B, F * ratio, M] from a unit per encoder frame.

        Args:
            frames: int64 [B, F].
            keep: bool [B, F], False on padding.
        """
        return self.mel.mel(frames, self.melody.pitch_hz(frames, keep), keep)

    @property
    def reach_frames(self) -> int:
        """Encoder frames on either side that a mel frame depends on."""
        mel, melody = self.mel, self.melody
        # The pitch passes the mel network's fine stack too.
        by_units = mel.coarse.reach + math.ceil(mel.fine.reach / self.ratio)
        by_pitch = melody.stack.reach + math.ceil((mel.fine.reach + melody.fine.reach) / self.ratio)
        return max(by_units, by_pitch)

    @torch.no_grad()
    def init_embeddings(self, centroids: Tensor, seed: int) -> None:
        """Set the unit embeddings to random projections of the centroids [V, D].

        Units whose centroids are close then begin with similar embeddings.
        """
        generator = torch.Generator().manual_seed(seed)
        standard = (centroids - centroids.mean(0)) / centroids.std(0).clamp(min=1e-4)
        D = standard.shape[1]
        for net in (self.durations, self.melody, self.mel):
            C = net.embedding.embedding_dim
            projection = torch.randn(D, C, generator=generator)
            # Divided by sqrt(D), so that the embeddings have about unit variance.
            net.embedding.weight.copy_(standard.cpu() @ projection / D**0.5)
