"""A HiFi-GAN that is fed units, and the predictor of how long each unit lasts.

Source: Polyak et al. 2021, arXiv:2104.00355 (units in place of mels); Lee et al. 2022, arXiv:2107.05604 (durations).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echox.vocoders.hifigan import HifiGan


class UnitGenerator(nn.Module):
    """Unit embeddings, beside a speaker's where there are several, through a HiFi-GAN."""

    def __init__(self, units: int, width: int, speakers: int | None, predictor: DurationPredictor | None, vocoder: HifiGan) -> None:
        super().__init__()
        self.units = nn.Embedding(units, width)
        self.speakers = None if speakers is None else nn.Embedding(speakers, width)
        self.predictor = predictor
        self.vocoder = vocoder

    def log_frames(self, units: Tensor, keep: Tensor | None = None) -> Tensor:
        """Units without repeats [B, U] -> log(1 + frames) [B, U] as predicted; 0 where nothing predicts.

        Args:
            keep: bool [B, U], False on padding; None where there is none.
        """
        if self.predictor is None:
            return torch.zeros(units.shape, device=units.device)
        return self.predictor(self.units(units), keep)

    def durations(self, units: Tensor) -> tuple[Tensor, Tensor]:
        """Units [U] -> log(1 + frames) as predicted [U], and frames [U], at least 1."""
        logs = self.log_frames(units[None])[0]
        return logs, (logs.exp() - 1).round().long().clamp(min=1)

    def forward(self, units: Tensor, speakers: Tensor) -> Tensor:
        """A unit per frame [B, F], a speaker per row [B] (not read where there is one voice) -> samples [B, F * hop]."""
        frames = self.units(units)
        if self.speakers is not None:
            voices = self.speakers(speakers)[:, None]
            frames = torch.cat([frames, voices.expand(-1, frames.shape[1], -1)], dim=2)
        return self.vocoder(frames)


class DurationPredictor(nn.Module):
    """Two convolutions over unit embeddings, each followed by a layer norm and, in training, dropout."""

    def __init__(self, width: int, hidden: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(width, hidden, kernel, padding=(kernel - 1) // 2)
        self.norm1 = nn.LayerNorm(hidden)
        self.conv2 = nn.Conv1d(hidden, hidden, kernel, padding=1)
        self.norm2 = nn.LayerNorm(hidden)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(hidden, 1)

    @property
    def reach_units(self) -> int:
        """Units on either side that a prediction depends on."""
        return self.conv1.padding[0] + self.conv2.padding[0]

    def forward(self, states: Tensor, keep: Tensor | None = None) -> Tensor:
        """[B, U, C], keep bool [B, U] -> log(1 + frames) [B, U]; what lies past a row's end is to a row as if it were not there."""
        shown = (lambda values: values) if keep is None else (lambda values: values * keep[:, :, None])
        # Rounded to bfloat16, a long unit's frames would be off by one.
        with torch.autocast(states.device.type, enabled=False):
            states = self.norm1(F.relu(self.conv1(shown(states.float()).transpose(1, 2))).transpose(1, 2))
            states = self.norm2(F.relu(self.conv2(shown(self.dropout(states)).transpose(1, 2))).transpose(1, 2))
            return self.out(self.dropout(states))[..., 0]
