"""Audio files in and out: any rate and number of channels read as mono, complete files written."""

from __future__ import annotations

import dataclasses
import functools
import io
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import soundfile
import torch
import torchaudio
from torch import Tensor

from echox.data.audio_ref import Audio, AudioRef, audio_ref
from echox.data.writing import appearing
from echox.errors import SignalError
from echox.signals import Waveform

log = logging.getLogger(__name__)

WRITTEN_FORMATS = (".wav", ".flac")
# A resampling filter has one phase per step of the reduced rates, so odd source rates are read as the nearest multiple of this:
# at 8 kHz that moves the pitch by at most 0.06 %.
RATE_STEP_HZ = 10
# Seconds by which durations are off that were rounded, or counted with a header's bytes.
ROUNDED_S = 0.02
# A writer that cannot go back leaves the size of its data open, as the largest number there is.
UNKNOWN_BYTES = 0x7FFFFF00
OGG_PAGE_BYTES = 27 + 255 + 255 * 255  # at most
# What files are that end so, by the beginning of libsndfile's name for it.
ENDINGS = {".wav": ("WAV", "RF64", "W64"), ".flac": ("FLAC", "OGG"), ".mp3": ("MP3",), ".ogg": ("OGG",), ".oga": ("OGG",), ".opus": ("OGG",)}
# What people have and libsndfile has no decoder for, by the first twelve bytes.
FOREIGN = {
    "MPEG-4 audio (m4a, AAC)": lambda head: head[4:8] == b"ftyp",
    "AAC": lambda head: head[0] == 0xFF and head[1:2] in (b"\xf0", b"\xf1", b"\xf8", b"\xf9"),
    "WebM or Matroska": lambda head: head[:4] == b"\x1a\x45\xdf\xa3",
    "Windows Media": lambda head: head[:4] == b"\x30\x26\xb2\x75",
    "AMR": lambda head: head[:5] == b"#!AMR",
}
_SHORT_CHUNK = re.compile(r": (\d+) \(should be (\d+)\)")


def load_audio(audio: str | Audio, rate_hz: int) -> Tensor:
    """Read a clip as mono at one rate.

    Args:
        audio: a file that libsndfile reads (wav, flac, ogg, opus, mp3 and more), the bytes of one in a larger file, or some seconds of it.
        rate_hz: samples per second wanted; another rate is resampled.
    Returns:
        samples [T] float32 in [-1, 1]; several channels are averaged.
    Raises:
        SignalError: the clip is missing, unreadable, empty, shorter than its header says, or holds NaN or infinity.
    """
    ref = audio_ref(audio)
    with _opened(ref) as (file, header):
        file.seek(round(ref.start_s * file.samplerate))
        frames = file.read(header.samples, dtype="float32", always_2d=True)
    _refuse_cut(ref, header, header.samples, len(frames))
    samples = torch.from_numpy(frames).mean(dim=1)
    if not torch.isfinite(samples).all():
        raise SignalError(f"audio {ref} holds NaN or infinite samples; export it again")
    return resampled(samples, header.rate_hz, rate_hz).clamp_(-1.0, 1.0)


def audio_blocks(audio: str | Audio, block_s: float) -> Iterator[Tensor]:
    """The samples of a clip of any length, so many seconds at a time: [T] float32 mono at the file's own rate.

    Raises:
        SignalError: as `load_audio`, but for NaN, which is left in.
    """
    ref, found = audio_ref(audio), 0
    with _opened(ref) as (file, header):
        file.seek(round(ref.start_s * file.samplerate))
        size = max(1, round(block_s * header.rate_hz))
        while found < header.samples and len(frames := file.read(min(size, header.samples - found), dtype="float32", always_2d=True)):
            found += len(frames)
            yield torch.from_numpy(frames).mean(dim=1)
    _refuse_cut(ref, header, header.samples, found)


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


def duration_s(audio: str | Audio) -> float:
    """Seconds of a clip, from its header alone.

    Raises:
        SignalError: the clip is missing or unreadable.
    """
    return audio_header(audio).duration_s


@dataclass(frozen=True, slots=True)
class AudioHeader:
    """What an audio file says of itself; `samples` are those of the seconds asked for."""

    samples: int  # per channel
    rate_hz: int
    channels: int
    format: str = "WAV"  # libsndfile's name of what the bytes are, whatever the file is called

    @property
    def duration_s(self) -> float:
        """Seconds of audio."""
        return self.samples / self.rate_hz


def audio_header(audio: str | Audio) -> AudioHeader:
    """Read the header alone, which takes a tenth of a millisecond.

    Raises:
        SignalError: the clip is missing, unreadable or empty, or its file is seen to be cut short.
    """
    with _opened(audio_ref(audio)) as (_, header):
        return header


@contextmanager
def _opened(ref: AudioRef) -> Iterator[tuple[soundfile.SoundFile, AudioHeader]]:
    """A clip's file to decode from, with its checked header; faults of the decoder, in the block too, are said in a sentence."""
    with ref.open() as content:
        _refuse_half_a_page(ref, content)
        try:
            with soundfile.SoundFile(content) as file:
                yield file, _header(ref, file)
        except (soundfile.LibsndfileError, OSError, TypeError, MemoryError) as error:
            raise SignalError(f"audio {ref} {_why_unreadable(ref, error)}") from error


def _header(ref: AudioRef, file: soundfile.SoundFile) -> AudioHeader:
    whole = AudioHeader(file.frames, file.samplerate, file.channels, file.format)
    _note_wrong_ending(ref.file.parent, ref.file.suffix.lower() if ref.offset_bytes is None else "", file.format)
    if whole.samples <= 0:
        raise SignalError(f"audio {ref} has zero length; record it again or take its row out")
    _refuse_cut(ref, whole, _claimed(file), whole.samples)
    if not ref.is_part:
        return whole
    end_s = whole.duration_s if ref.end_s is None else ref.end_s
    if not 0 <= ref.start_s < min(end_s, whole.duration_s) or end_s > whole.duration_s + ROUNDED_S:
        raise SignalError(f"audio {ref} is not within the recording, which has {whole.duration_s:g} s; mend start_s and end_s")
    first, last = round(ref.start_s * whole.rate_hz), min(round(end_s * whole.rate_hz), whole.samples)
    return dataclasses.replace(whole, samples=max(1, last - first))


def _claimed(file: soundfile.SoundFile) -> int:
    """Samples that a file's chunks say they hold, where libsndfile noted that there is less; it counts what is there itself."""
    sizes = [(int(said), int(found)) for said, found in _SHORT_CHUNK.findall(file.extra_info)]
    return max((file.frames * said // found for said, found in sizes if found and said < UNKNOWN_BYTES), default=file.frames)


def _refuse_cut(ref: AudioRef, header: AudioHeader, claimed: int, found: int) -> None:
    # Without an index, an mp3's length is an estimate.
    slack = ROUNDED_S + (0.01 * claimed / header.rate_hz if header.format == "MP3" else 0.0)
    if (claimed - found) / header.rate_hz > slack:
        said, there = (samples / header.rate_hz for samples in (claimed, found))
        raise SignalError(f"audio {ref} is cut short: its header says {said:.2f} s, but {there:.2f} s are there; copy it again")


def pad_waveforms(clips: Sequence[Tensor], rate_hz: int) -> Waveform:
    """Right-pad clips [T_i] at `rate_hz` with silence to one batch [B, max T_i]."""
    lengths = torch.tensor([len(clip) for clip in clips], dtype=torch.int64)
    samples = torch.nn.utils.rnn.pad_sequence(list(clips), batch_first=True)
    return Waveform(samples=samples, lengths=lengths, rate_hz=rate_hz)


def _refuse_half_a_page(ref: AudioRef, content: BinaryIO) -> None:
    """Refuse an Ogg file that ends within a page, of which libsndfile would play what is there (RFC 3533, section 6)."""
    if content.read(4) == b"OggS":
        size = content.seek(0, io.SEEK_END)
        content.seek(max(0, size - OGG_PAGE_BYTES))
        page = content.read()
        page = page[max(0, page.rfind(b"OggS")) :]
        segments = page[26] if len(page) > 26 else 255
        if len(page) < 27 + segments + sum(page[27 : 27 + segments]):
            raise SignalError(f"audio {ref} is cut short: its last page is not whole; copy it again")
    content.seek(0)


@functools.lru_cache(maxsize=1024)
def _note_wrong_ending(folder: Path, ending: str, format: str) -> None:
    if ending in ENDINGS and not format.startswith(ENDINGS[ending]):
        log.warning("files in %s end in %s and are %s; they are read as what they are", folder, ending, format)


def _why_unreadable(ref: AudioRef, error: Exception) -> str:
    with ref.open() as content:
        head = content.read(12)
    if not head:
        return "has no bytes at all; copy it again or take its row out"
    foreign = next((name for name, is_it in FOREIGN.items() if is_it(head)), None)
    if foreign:
        return f"is {foreign}, which libsndfile does not read; convert it (ffmpeg -i FILE -c:a flac FILE.flac)"
    return f"is not readable as audio ({_gist(error)}); give wav, flac, ogg, opus or mp3"


def _gist(error: Exception) -> str:
    """The library's reason without the path it repeats."""
    return (getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)).rstrip(".")
