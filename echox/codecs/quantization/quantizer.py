"""From recordings to units: an encoder's frames, each to its nearest centre."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from echox.codecs.quantization.kmeans import nearest
from echox.device import multiplies_bf16_fast
from echox.encoders.base import Encoder
from echox.signals import Units, Waveform


@torch.no_grad()
def merged_units(encoder: Encoder, centres: Tensor, wave: Waveform) -> Units:
    """Samples [B, T] -> units [B, U] with adjacent repeats merged; an empty row gives no unit.

    Args:
        centres: [K, D].
    """
    features = encoder(wave)
    frames = torch.where(wave.lengths > 0, features.lengths, 0)
    labels = nearest(features.values, centres)
    rows = [torch.unique_consecutive(row[:count]) for row, count in zip(labels, frames.tolist(), strict=True)]
    lengths = torch.tensor([len(row) for row in rows], device=labels.device)
    return Units(pad_sequence(rows, batch_first=True), lengths, None)


def encoded_clips(
    encoder: Encoder, clips: Sequence[Tensor], lengths: Sequence[int], rows: Sequence[int], batch_s: float, device: torch.device
) -> Iterator[tuple[int, Tensor]]:
    """Features [F, D] of recordings, clips of about equal length encoded together.

    Args:
        lengths: samples of every clip; rows: the clips to encode.
        batch_s: audio encoded at once, seconds with padding.
    """
    with tqdm(total=len(rows), desc="features", unit="clip", leave=False, disable=None) as bar:
        for batch in batches_of(lengths, rows, int(batch_s * encoder.rate_hz)):
            samples = pad_sequence([clips[row] for row in batch], batch_first=True)
            wave = Waveform(samples, torch.tensor([lengths[row] for row in batch]), encoder.rate_hz).to(device)
            with torch.no_grad(), autocast_on(device):
                features = encoder(wave)
            for row, values, count in zip(batch, features.values, features.lengths.tolist(), strict=True):
                yield row, values[:count]
            bar.update(len(batch))


def batches_of(lengths: Sequence[int], rows: Sequence[int], budget: int) -> list[list[int]]:
    """Rows sorted by length, in batches of at most `budget` samples with padding."""
    batches: list[list[int]] = []
    for row in sorted(rows, key=lengths.__getitem__):
        if not batches or lengths[row] * (len(batches[-1]) + 1) > budget:
            batches.append([])
        batches[-1].append(row)
    return batches


def autocast_on(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=multiplies_bf16_fast(device))
