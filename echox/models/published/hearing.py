"""How the release hears: in windows of Whisper's 30 s, shorter audio padded to one, longer audio in several, where the release cuts it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from echox.data.audio import pad_waveforms
from echox.encoders.base import Encoder
from echox.errors import CheckpointError
from echox.signals import Waveform

WINDOW_S = 30


def windows(samples: int, rate_hz: int) -> int:
    """Windows that hold so many samples."""
    return -(-samples // (WINDOW_S * rate_hz))


def windowed(clips: Sequence[Tensor], rate_hz: int) -> Waveform:
    """Clips [T] padded with silence, which counts as heard, to whole windows."""
    lengths = torch.tensor([windows(len(clip), rate_hz) * WINDOW_S * rate_hz for clip in clips])
    wave = pad_waveforms(clips, rate_hz)
    return Waveform(F.pad(wave.samples, (0, int(lengths.max()) - wave.samples.shape[1])), lengths, rate_hz)


def check_encoder(encoder: Encoder, dim: int, who: str = "the recipe's encoder", field: str = "encoder.weights") -> None:
    """
    Raises:
        CheckpointError: its frames have another number of channels than the adapter takes.
    """
    if encoder.dim != dim:
        raise CheckpointError(
            f"{who} gives {encoder.dim} channels, but the checkpoint's adapter takes {dim} (adapter_size); set {field} to the right one"
        )
