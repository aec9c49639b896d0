"""From recordings to units: an encoder's frames, each to its nearest centre."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from echox.codecs.quantization.kmeans import nearest
from echox.device import multiplies_bf16_fast
from echox.encoders.base import Encoder
from echox.signals import Units, Waveform


@torch.no_grad()
def frame_units(encoder: Encoder, centres: Tensor, wave: Waveform) -> Units:
    """Samples [B, T] -> a unit per frame of the encoder [B, F]; an empty row gives none.

    Args:
        centres: [K, D].
    """
    features = encoder(wave)
    frames = torch.where(wave.lengths > 0, features.lengths, 0)
    return Units(nearest(features.values, centres), frames, encoder.frame_rate_hz)


def merged_units(encoder: Encoder, centres: Tensor, wave: Waveform) -> Units:
    """Samples [B, T] -> units [B, U] with adjacent repeats merged, otherwise as `frame_units`."""
    frames = frame_units(encoder, centres, wave)
    rows = [torch.unique_consecutive(row[:count]) for row, count in zip(frames.ids, frames.lengths.tolist(), strict=True)]
    lengths = torch.tensor([len(row) for row in rows], device=frames.ids.device)
    return Units(pad_sequence(rows, batch_first=True), lengths, None)


def features_of(encoder: Encoder, clips: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Recordings [T] at the encoder's rate, best of about equal length -> their features [F, D] each."""
    lengths = torch.tensor([len(clip) for clip in clips])
    wave = Waveform(pad_sequence(list(clips), batch_first=True), lengths, encoder.rate_hz).to(device)
    with torch.no_grad(), autocast_on(device):
        features = encoder(wave)
    return [values[:count] for values, count in zip(features.values, features.lengths.tolist(), strict=True)]


def autocast_on(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=multiplies_bf16_fast(device))
