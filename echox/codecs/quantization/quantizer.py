"""Quantisation of recordings: an encoder's frames, each to the index of its nearest centre."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from echox.codecs.quantization.kmeans import nearest
from echox.core.device import multiplies_bf16_fast
from echox.core.indexable import Indexable
from echox.core.signals import Units, Waveform
from echox.encoders.base import Encoder, check_features


@torch.no_grad()
def frame_units(encoder: Encoder, centres: Tensor, wave: Waveform) -> Units:
    """Encode samples to one unit per frame of the encoder.

    Args:
        encoder: gives the frames.
        centres: [K, D].
        wave: samples [B, T] at the encoder's rate.

    Returns:
        units [B, F]; an empty row has none.

    Raises:
        SignalError: the sample rate is not the encoder's.
    """
    features = encoder(wave)  # [B, F, D]
    # An encoder may give frames of padding for a row without samples.
    frames = torch.where(wave.lengths > 0, features.lengths, 0)
    return Units(nearest(features.values, centres), frames, encoder.frame_rate_hz)


def merged_units(encoder: Encoder, centres: Tensor, wave: Waveform) -> Units:
    """Encode samples [B, T] to units [B, U] with adjacent repeats merged.

    Args:
        encoder: gives the frames.
        centres: [K, D].
        wave: samples [B, T] at the encoder's rate.

    Raises:
        SignalError: the sample rate is not the encoder's.
    """
    frames = frame_units(encoder, centres, wave)
    # Row by row, without the padding, which would otherwise merge with the last unit.
    rows = [
        torch.unique_consecutive(ids[:length])
        for ids, length in zip(frames.ids, frames.lengths.tolist(), strict=True)
    ]
    lengths = torch.tensor([len(units) for units in rows], device=frames.ids.device)
    return Units(pad_sequence(rows, batch_first=True), lengths, None)


def features_of(encoder: Encoder, clips: Indexable[Tensor], device: torch.device) -> list[Tensor]:
    """Encode recordings as one batch.

    Args:
        encoder: on `device`.
        clips: samples [T] each at the encoder's rate, best of about equal length.
        device: where the encoder runs.

    Returns:
        features [F, D] of each recording.

    Raises:
        SignalError: what the encoder returned is not what it states, or not finite.
    """
    lengths = torch.tensor([len(clip) for clip in clips])
    wave = Waveform(pad_sequence(list(clips), batch_first=True), lengths, encoder.rate_hz)
    wave = wave.to(device)
    with torch.no_grad(), autocast_on(device):
        features = encoder(wave)
    check_features(encoder, wave, features)
    return [
        values[:length]
        for values, length in zip(features.values, features.lengths.tolist(), strict=True)
    ]


def autocast_on(device: torch.device) -> torch.autocast:
    """Return a bfloat16 autocast context, disabled where bfloat16 products are slow."""
    # Emulated bfloat16 is slower than float32.
    return torch.autocast(device.type, torch.bfloat16, enabled=multiplies_bf16_fast(device))
