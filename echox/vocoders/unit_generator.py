"""A HiFi-GAN of unit embeddings, and the predictor of unit durations.

Source: Polyak et al. 2021, arXiv:2104.00355 (units in place of mels); Lee et al. 2022,
arXiv:2107.05604 (durations).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echox.vocoders.hifigan import HifiGan


class UnitGenerator(nn.Module):
    """HiFi-GAN of unit embeddings, concatenated with a speaker's where there are several."""

    def __init__(
        self,
        units: int,
        width: int,
        speakers: int | None,
        predictor: DurationPredictor | None,
        vocoder: HifiGan,
    ) -> None:
        """Build the embeddings with random weights.

        Args:
            units: number of units V.
            width: channels of a unit's embedding, and of a speaker's.
            speakers: number of speakers; None for a vocoder of one.
            predictor: of durations; None for units that keep their repeats.
            vocoder: takes `width` channels, or twice as many with several speakers.
        """
        super().__init__()
        self.units = nn.Embedding(units, width)
        self.speakers = None if speakers is None else nn.Embedding(speakers, width)
        self.predictor = predictor
        self.vocoder = vocoder

    def log_frames(self, units: Tensor, keep: Tensor | None = None) -> Tensor:
        """Predict log(1 + frames) [B, U]; 0 where there is no predictor.

        Args:
            units: without repeats, int64 [B, U].
            keep: bool [B, U], False on padding; None where there is none.
        """
        if self.predictor is None:
            return torch.zeros(units.shape, device=units.device)
        return self.predictor(self.units(units), keep)

    def durations(self, units: Tensor) -> tuple[Tensor, Tensor]:
        """Predict the durations of the units [U] of one row.

        Returns:
            log(1 + frames) [U]; frames int64 [U], at least 1.
        """
        logs = self.log_frames(units[None])[0]
        return logs, (logs.exp() - 1).round().long().clamp(min=1)

    def forward(self, units: Tensor, speakers: Tensor) -> Tensor:
        """Generate samples [B, F * hop] in [-1, 1].

        Args:
            units: a unit per frame, int64 [B, F].
            speakers: int64 [B]; not used by a vocoder of one speaker.
        """
        frames = self.units(units)  # [B, F, C]
        if self.speakers is not None:
            embedded = self.speakers(speakers)[:, None]  # [B, 1, C]
            frames = torch.cat([frames, embedded.expand(-1, frames.shape[1], -1)], dim=2)
        return self.vocoder(frames)


class DurationPredictor(nn.Module):
    """Two convolutions over unit embeddings, each with a layer norm and, in training, dropout."""

    def __init__(self, width: int, hidden: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(width, hidden, kernel, padding=(kernel - 1) // 2)
        self.norm1 = nn.LayerNorm(hidden)
        # fairseq pads this one by 1 whatever the kernel; `layout` refuses kernels other than 3.
        self.conv2 = nn.Conv1d(hidden, hidden, kernel, padding=1)
        self.norm2 = nn.LayerNorm(hidden)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(hidden, 1)
        # Receptive field: units on either side that a prediction depends on, the padding of both.
        self.reach_units = (kernel - 1) // 2 + 1

    def forward(self, states: Tensor, keep: Tensor | None = None) -> Tensor:
        """Predict log(1 + frames) [B, U]; a row does not depend on what lies past its end.

        Args:
            states: embeddings [B, U, C].
            keep: bool [B, U], False on padding; None where there is none.
        """
        # Rounded to bfloat16, a long unit's frames would be off by one.
        with torch.autocast(states.device.type, enabled=False):
            states = _masked(states.float(), keep)
            states = self.norm1(F.relu(self.conv1(states.transpose(1, 2))).transpose(1, 2))
            # Masked again, because bias and norm made padding other than 0.
            states = _masked(self.dropout(states), keep)
            states = self.norm2(F.relu(self.conv2(states.transpose(1, 2))).transpose(1, 2))
            return self.out(self.dropout(states))[..., 0]


def _masked(values: Tensor, keep: Tensor | None) -> Tensor:
    """Values [B, U, C] with zeros on padding, as the convolutions pad at a row's end."""
    return values if keep is None else values * keep[:, :, None]
