"""Audio in windows of Whisper's 30 s: shorter clips fill one, longer ones several.

The release cuts audio beyond its first window; here further windows follow.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from echox.core.errors import CheckpointError
from echox.core.signals import Waveform
from echox.data.audio import pad_waveforms
from echox.encoders.base import Encoder

WINDOW_S = 30


def window_count(samples: int, rate_hz: int) -> int:
    """Number of windows that hold so many samples, rounded up."""
    return -(-samples // (WINDOW_S * rate_hz))  # ceiling division


def windowed(clips: Sequence[Tensor], rate_hz: int) -> Waveform:
    """Pad clips with silence to whole windows.

    The silence counts as audio, as in the release, which encodes full windows.

    Args:
        clips: samples [T] each, at `rate_hz`.
        rate_hz: samples per second.

    Returns:
        samples [B, T], T a whole number of windows; lengths include the silence.
    """
    counts = [window_count(len(clip), rate_hz) for clip in clips]
    lengths = torch.tensor([count * WINDOW_S * rate_hz for count in counts])
    wave = pad_waveforms(clips, rate_hz)
    # Up to the longest clip's last window; the others' lengths end before.
    missing = int(lengths.max()) - wave.samples.shape[1]
    return Waveform(F.pad(wave.samples, (0, missing)), lengths, rate_hz)


def check_encoder(
    encoder: Encoder, dim: int, name: str = "the recipe's encoder", field: str = "encoder.weights"
) -> None:
    """Check that an encoder's frames fit the checkpoint's adapter.

    Args:
        encoder: the encoder in use.
        dim: channels that the adapter takes.
        name: the encoder in the words of the error.
        field: the setting that chooses it.

    Raises:
        CheckpointError: its frames have another number of channels than the adapter takes.
    """
    if encoder.dim != dim:
        raise CheckpointError(
            f"{name} gives {encoder.dim} channels, but the checkpoint's adapter takes {dim} "
            f"(adapter_size); set {field} to the right one"
        )
