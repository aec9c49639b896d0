"""Audio files in and out: any rate and number of channels read as mono, complete files written."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import soundfile
import torch
import torchaudio
from torch import Tensor

from echox.data.writing import appearing
from echox.errors import SignalError
from echox.signals import Waveform

WRITTEN_FORMATS = (".wav", ".flac")
# A resampling filter has one phase per step of the reduced rates, so odd source rates are read as the nearest multiple of this:
# at 8 kHz that moves the pitch by at most 0.06 %.
RATE_STEP_HZ = 10


def load_audio(path: str | Path, rate_hz: int) -> Tensor:
    """Read an audio file as mono at one rate.

    Args:
        path: wav, flac, ogg, mp3 or whatever else libsndfile reads.
        rate_hz: samples per second wanted; another rate is resampled.
    Returns:
        samples [T] float32 in [-1, 1]; several channels are averaged.
    Raises:
        SignalError: the file is missing, unreadable, empty, or holds NaN or infinity.
    """
    try:
        frames, source_hz = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError, TypeError) as error:
        raise SignalError(f"audio {path} {_why_unreadable(path, error)}") from error
    samples = torch.from_numpy(frames).mean(dim=1)
    if samples.numel() == 0:
        raise SignalError(f"audio {path} has zero length; record it again or take its row out")
    if not torch.isfinite(samples).all():
        raise SignalError(f"audio {path} holds NaN or infinite samples; export it again")
    return resampled(samples, source_hz, rate_hz).clamp_(-1.0, 1.0)


def resampled(samples: Tensor, source_hz: int, rate_hz: int) -> Tensor:
    """Change the rate: samples [..., T] at `source_hz` -> [..., ceil(T * rate_hz / source_hz)] at `rate_hz`."""
    if source_hz == rate_hz:
        return samples
    nearby_hz = max(RATE_STEP_HZ, round(source_hz / RATE_STEP_HZ) * RATE_STEP_HZ)
    return torchaudio.functional.resample(samples, nearby_hz, rate_hz)


def save_audio(path: str | Path, samples: Tensor, rate_hz: int) -> None:
    """Write 16-bit PCM that appears only when complete.

    Args:
        path: ends in .wav or .flac; its folder is made.
        samples: [T] float; where the peak is above 1, all of it is turned down, for clipping is ugly.
        rate_hz: samples per second.
    Raises:
        SignalError: another ending, not one-dimensional, empty, NaN or infinite samples, or the file cannot be written.
    """
    path = Path(path)
    refuse_ending(path)
    samples = samples.detach().to("cpu", torch.float32)
    if samples.ndim != 1 or samples.numel() == 0 or not torch.isfinite(samples).all():
        raise SignalError(f"{path} was not written: samples must be [T], not empty and finite, and have shape {list(samples.shape)}")
    samples = samples / samples.abs().max().clamp(min=1.0)
    try:
        # In memory first, because libsndfile calls any fault of the disk a "System error".
        content = io.BytesIO()
        soundfile.write(content, samples.numpy(), rate_hz, subtype="PCM_16", format=path.suffix.removeprefix("."))
        with appearing(path) as unfinished:
            unfinished.write_bytes(content.getbuffer())
    except (soundfile.LibsndfileError, OSError) as error:
        raise SignalError(f"audio {path} could not be written: {_gist(error)}") from error


def refuse_ending(path: str | Path) -> None:
    """
    Raises:
        SignalError: `save_audio` writes no file of this ending.
    """
    if Path(path).suffix not in WRITTEN_FORMATS:
        raise SignalError(f"audio is written as {' or '.join(WRITTEN_FORMATS)}, but the path is {path}; change its ending")


def duration_s(path: str | Path) -> float:
    """Seconds of an audio file, from its header alone.

    Raises:
        SignalError: the file is missing or unreadable.
    """
    return audio_header(path).duration_s


@dataclass(frozen=True, slots=True)
class AudioHeader:
    """What an audio file says of itself."""

    samples: int  # per channel
    rate_hz: int
    channels: int

    @property
    def duration_s(self) -> float:
        """Seconds of audio."""
        return self.samples / self.rate_hz


def audio_header(path: str | Path) -> AudioHeader:
    """Read the header alone, which takes a tenth of a millisecond.

    Raises:
        SignalError: the file is missing, unreadable or empty.
    """
    try:
        about = soundfile.info(str(path))
    except (soundfile.LibsndfileError, OSError) as error:
        raise SignalError(f"audio {path} {_why_unreadable(path, error)}") from error
    if about.frames <= 0:
        raise SignalError(f"audio {path} has zero length; record it again or take its row out")
    return AudioHeader(about.frames, about.samplerate, about.channels)


def pad_waveforms(clips: Sequence[Tensor], rate_hz: int) -> Waveform:
    """Right-pad clips [T_i] at `rate_hz` with silence to one batch [B, max T_i]."""
    lengths = torch.tensor([len(clip) for clip in clips], dtype=torch.int64)
    samples = torch.nn.utils.rnn.pad_sequence(list(clips), batch_first=True)
    return Waveform(samples=samples, lengths=lengths, rate_hz=rate_hz)


def _why_unreadable(path: str | Path, error: Exception) -> str:
    if not Path(path).exists():
        return "does not exist"
    return "is a folder" if Path(path).is_dir() else f"is not readable as audio ({_gist(error)}); give wav, flac, ogg or mp3"


def _gist(error: Exception) -> str:
    """The library's reason without the path it repeats."""
    return (getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)).rstrip(".")
