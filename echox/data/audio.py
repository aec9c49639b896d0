"""Audio files: any sampling rate and number of channels read as mono, complete files written."""

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

from echox.core.errors import DiskError, SignalError
from echox.core.files import atomic_write
from echox.core.signals import Waveform
from echox.data.audio_ref import Audio, AudioRef, audio_ref

log = logging.getLogger(__name__)

WRITTEN_FORMATS = (".wav", ".flac")
# A resampling filter has one phase per step of the reduced rates, so odd source rates are read as
# the nearest multiple of this: at 8 kHz that moves the pitch by at most 0.06 %.
RATE_STEP_HZ = 10
# Lowest and highest rates that are read: a resampler's filter grows with the ratio of rates, and no
# recording has fewer or more, so another number is a damaged header.
RATES_HZ = (1_000, 768_000)
# FLAC states its samples in 36 bits; libsndfile gives its own largest number for an unstated one.
UNKNOWN_SAMPLES = (1 << 36) - 1
# Values decoded at once: a header may state any length, so memory grows with what is really there.
BLOCK_VALUES = 1 << 22
# A channel whose correlation with the first one is lower than this is its inverse.
INVERSE_BELOW = -0.5
# Seconds by which durations are off that were rounded, or counted with a header's bytes.
ROUNDED_S = 0.02
# A writer that cannot seek back leaves the size of its data open, as the largest number there is.
UNKNOWN_BYTES = 0x7FFFFF00
# The most that a page can have: header, segment table, 255 segments of 255 bytes.
OGG_PAGE_BYTES = 27 + 255 + 255 * 255
# By the ending of a file's name, how libsndfile's name of its format must begin.
ENDINGS = {
    ".wav": ("WAV", "RF64", "W64"),
    ".flac": ("FLAC", "OGG"),
    ".mp3": ("MP3",),
    ".ogg": ("OGG",),
    ".oga": ("OGG",),
    ".opus": ("OGG",),
}
# Common formats that libsndfile has no decoder for, recognized by their first twelve bytes.
FOREIGN = {
    "MPEG-4 audio (m4a, AAC)": lambda head: head[4:8] == b"ftyp",
    "AAC": lambda head: head[0] == 0xFF and head[1:2] in (b"\xf0", b"\xf1", b"\xf8", b"\xf9"),
    "WebM or Matroska": lambda head: head[:4] == b"\x1a\x45\xdf\xa3",
    "Windows Media": lambda head: head[:4] == b"\x30\x26\xb2\x75",
    "AMR": lambda head: head[:5] == b"#!AMR",
}
_SHORT_CHUNK = re.compile(r": (\d+) \(should be (\d+)\)")


def load_audio(audio: str | Audio, rate_hz: int) -> Tensor:
    """Read a clip as mono at one sampling rate.

    Args:
        audio: a file that libsndfile reads (wav, flac, ogg, opus, mp3 and more), the bytes of one
            inside a larger file, or some seconds of it.
        rate_hz: samples per second of the result; a clip of another rate is resampled.

    Returns:
        samples [T] float32 in [-1, 1]; several channels are averaged (`mixed`).

    Raises:
        SignalError: the clip is missing, unreadable, empty, shorter than its header says, or holds
            NaN or infinity.
    """
    ref = audio_ref(audio)
    with _open_decoder(ref) as (file, header):
        file.seek(round(ref.start_s * file.samplerate))
        block = max(1, BLOCK_VALUES // header.channels)
        blocks = _blocks(file, header.samples, block)
        # Beginning with none, since a truncated file may have none.
        frames = torch.cat([torch.zeros(0, header.channels), *blocks])  # [T, C]
    _refuse_truncated(ref, header, header.samples, len(frames))
    samples = mixed(frames, ref)
    if not torch.isfinite(samples).all():
        raise SignalError(f"audio {ref} holds NaN or infinite samples; export it again")
    # Float files may exceed full scale, and so may the resampling filter at steep edges.
    return resampled(samples, header.rate_hz, rate_hz).clamp_(-1.0, 1.0)


def audio_blocks(audio: str | Audio, block_s: float) -> Iterator[Tensor]:
    """Read a clip of any length block by block, so that memory does not grow with its length.

    Args:
        audio: as for `load_audio`.
        block_s: seconds of a block; the last one may be shorter.

    Yields:
        samples [T] float32, mono, at the file's own rate.

    Raises:
        SignalError: as `load_audio`, except that NaN and infinity are passed on.
    """
    ref, decoded = audio_ref(audio), 0
    with _open_decoder(ref) as (file, header):
        file.seek(round(ref.start_s * file.samplerate))
        for frames in _blocks(file, header.samples, max(1, round(block_s * header.rate_hz))):
            decoded += len(frames)
            yield mixed(frames, ref)
    _refuse_truncated(ref, header, header.samples, decoded)


def _blocks(file: soundfile.SoundFile, samples: int, block: int) -> Iterator[Tensor]:
    """Decode `samples` from where a file stands, in blocks [T, C] of `block` samples at most.

    A truncated file ends before; the caller compares what came with its header.
    """
    decoded = 0
    while decoded < samples:
        # [T, C] for mono files too.
        frames = file.read(min(block, samples - decoded), dtype="float32", always_2d=True)
        if not len(frames):
            return
        decoded += len(frames)
        yield torch.from_numpy(frames)


def mixed(frames: Tensor, ref: AudioRef) -> Tensor:
    """Average channels, those that are the inverse of the first turned over.

    Left as they are, a channel and its inverse, as a wrongly wired microphone or a wide stereo
    effect gives them, would cancel to silence.

    Args:
        frames: samples [T, C].
        ref: the clip, for the warning.

    Returns:
        samples [T].
    """
    if frames.shape[1] == 1:
        return frames[:, 0]
    powers = frames.square().sum(dim=0)  # [C]
    # The first channel that is not silent; ties of all zeros give the first.
    first = int((powers > 0).int().argmax())
    products = (frames * frames[:, first : first + 1]).sum(dim=0)  # [C]
    is_inverse = products < INVERSE_BELOW * (powers * powers[first]).sqrt()
    if is_inverse.any():
        _warn_inverse(ref.file.parent)
        frames = torch.where(is_inverse, -frames, frames)
    return frames.mean(dim=1)


def resampled(samples: Tensor, source_hz: int, rate_hz: int) -> Tensor:
    """Change the sampling rate of samples [T], or of any batch of them along its last axis.

    Args:
        samples: samples [..., T] at `source_hz`.
        source_hz: samples per second of the source.
        rate_hz: samples per second of the result.

    Returns:
        samples [..., ceil(T * rate_hz / source_hz)]; the same tensor where the rates are equal.
    """
    if source_hz == rate_hz:
        return samples
    nearby_hz = max(RATE_STEP_HZ, round(source_hz / RATE_STEP_HZ) * RATE_STEP_HZ)
    return torchaudio.functional.resample(samples, nearby_hz, rate_hz)


def save_audio(path: str | Path, samples: Tensor, rate_hz: int) -> None:
    """Write samples [T] as 16-bit PCM; the file appears only when complete.

    Args:
        path: file to write, .wav or .flac; its folder is created.
        samples: clip [T] float; scaled down as a whole where its peak exceeds 1, so that it does
            not clip.
        rate_hz: samples per second.

    Raises:
        SignalError: the path has another ending, the samples are not one-dimensional, are empty or
            hold NaN or infinity, or the file cannot be written.
        DiskError: the disk is full or cannot be written.
    """
    path = Path(path)
    refuse_ending(path)
    try:
        # In memory first, because libsndfile calls any fault of the disk a "System error".
        content = encoded_audio(samples, rate_hz, path.suffix.removeprefix("."))
    except SignalError as error:
        raise SignalError(f"{path} was not written: {error}") from error
    try:
        with atomic_write(path, len(content)) as unfinished:
            unfinished.write_bytes(content)
    except DiskError:
        raise  # of all files, where a row that cannot be written may be left out
    except OSError as error:
        raise SignalError(f"audio {path} could not be written: {_library_reason(error)}") from error


def encoded_audio(samples: Tensor, rate_hz: int, container: str = "wav") -> bytes:
    """Encode samples [T] as the content of a file of 16-bit PCM.

    Args:
        samples: as `save_audio` takes them.
        rate_hz: samples per second.
        container: "wav" or "flac".

    Raises:
        SignalError: the samples are not one-dimensional, are empty or hold NaN or infinity, or the
            container cannot hold them at this rate.
    """
    # Neither NumPy nor soundfile takes bfloat16, which models compute in.
    samples = samples.detach().to("cpu", torch.float32)
    if samples.ndim != 1 or samples.numel() == 0 or not torch.isfinite(samples).all():
        raise SignalError(
            f"samples must be [T], not empty and finite, and have shape {list(samples.shape)}"
        )
    samples = samples / samples.abs().max().clamp(min=1.0)
    content = io.BytesIO()
    try:
        soundfile.write(content, samples.numpy(), rate_hz, subtype="PCM_16", format=container)
    except soundfile.LibsndfileError as error:
        raise SignalError(_library_reason(error)) from error
    return content.getvalue()


def refuse_ending(path: str | Path) -> None:
    """Refuse a path whose ending `save_audio` does not write.

    Raises:
        SignalError: the path ends neither in .wav nor in .flac.
    """
    if Path(path).suffix not in WRITTEN_FORMATS:
        raise SignalError(
            f"audio is written as {' or '.join(WRITTEN_FORMATS)}, but the path is {path}; "
            "change its ending"
        )


def duration_s(audio: str | Audio) -> float:
    """Return the seconds of a clip, from its header alone.

    Raises:
        SignalError: as `audio_header`.
    """
    return audio_header(audio).duration_s


@dataclass(frozen=True, slots=True)
class AudioHeader:
    """Length, rate and format of a clip; of a part of a recording, `samples` are the part's."""

    samples: int  # per channel
    rate_hz: int
    channels: int
    format: str = "WAV"  # libsndfile's name of what the bytes are, whatever the file is called

    @property
    def duration_s(self) -> float:
        """Seconds of audio."""
        return self.samples / self.rate_hz


def audio_header(audio: str | Audio) -> AudioHeader:
    """Read the header of a clip without decoding it, which takes a tenth of a millisecond.

    Raises:
        SignalError: the clip is missing, unreadable or empty, its file is seen to be truncated, or
            its seconds are not within the recording.
    """
    with _open_decoder(audio_ref(audio)) as (_, header):
        return header


@contextmanager
def _open_decoder(ref: AudioRef) -> Iterator[tuple[soundfile.SoundFile, AudioHeader]]:
    """Open a clip to decode it, with its checked header.

    Faults of the decoder, those in the block included, become a `SignalError`.
    """
    with ref.open() as content:
        _refuse_partial_ogg_page(ref, content)
        try:
            with soundfile.SoundFile(content) as file:
                yield file, _checked_header(ref, file)
        # MemoryError: a damaged header may state more samples than memory holds.
        except (soundfile.LibsndfileError, OSError, TypeError, MemoryError) as error:
            raise SignalError(f"audio {ref} {_unreadable_reason(ref, error)}") from error


def _checked_header(ref: AudioRef, file: soundfile.SoundFile) -> AudioHeader:
    header = AudioHeader(file.frames, file.samplerate, file.channels, file.format)
    # The ending of a tar says nothing about its members.
    ending = ref.file.suffix.lower() if ref.offset_bytes is None else ""
    _warn_wrong_ending(ref.file.parent, ending, file.format)
    if header.samples <= 0:
        raise SignalError(f"audio {ref} has zero length; record it again or take its row out")
    if header.samples >= UNKNOWN_SAMPLES:
        raise SignalError(
            f"audio {ref} does not state its length, as of a stream that was never closed; "
            "write it again (ffmpeg -i FILE NEW.flac)"
        )
    if not RATES_HZ[0] <= header.rate_hz <= RATES_HZ[1]:
        raise SignalError(
            f"audio {ref} has {header.rate_hz} samples per second; {RATES_HZ[0]} to "
            f"{RATES_HZ[1]} are read, so its header is damaged; export it again"
        )
    _refuse_truncated(ref, header, _stated_samples(file), header.samples)
    return _part_header(ref, header) if ref.is_part else header


def _part_header(ref: AudioRef, recording: AudioHeader) -> AudioHeader:
    """Header of the seconds of a recording that `ref` names."""
    available_s = recording.duration_s
    end_s = available_s if ref.end_s is None else ref.end_s
    if not 0 <= ref.start_s < min(end_s, available_s) or end_s > available_s + ROUNDED_S:
        raise SignalError(
            f"audio {ref} is not within the recording, which has {available_s:g} s; "
            "mend start_s and end_s"
        )
    first = round(ref.start_s * recording.rate_hz)
    last = min(round(end_s * recording.rate_hz), recording.samples)
    # Seconds shorter than half a sample would otherwise be an empty clip.
    return dataclasses.replace(recording, samples=max(1, last - first))


def _stated_samples(file: soundfile.SoundFile) -> int:
    """Samples that a file's chunks state, where libsndfile noted that fewer are there.

    `file.frames` is no answer: libsndfile counts the samples that are there itself.
    """
    sizes = [(int(stated), int(actual)) for stated, actual in _SHORT_CHUNK.findall(file.extra_info)]
    estimates = (
        file.frames * stated // actual
        for stated, actual in sizes
        if actual and stated < UNKNOWN_BYTES
    )
    return max(estimates, default=file.frames)


def _refuse_truncated(ref: AudioRef, header: AudioHeader, stated: int, actual: int) -> None:
    """Refuse a clip that has fewer samples than its header states."""
    # Without an index, an mp3's length is an estimate.
    slack_s = ROUNDED_S + (0.01 * stated / header.rate_hz if header.format == "MP3" else 0.0)
    if (stated - actual) / header.rate_hz > slack_s:
        stated_s, actual_s = stated / header.rate_hz, actual / header.rate_hz
        raise SignalError(
            f"audio {ref} is cut short: its header says {stated_s:.2f} s, "
            f"but {actual_s:.2f} s are there; copy it again"
        )


def pad_waveforms(clips: Sequence[Tensor], rate_hz: int) -> Waveform:
    """Right-pad clips [T_i] at `rate_hz` with silence to one batch [B, max T_i].

    Raises:
        SignalError: there is no clip.
    """
    if not clips:
        raise SignalError("a batch of audio needs a clip; leave out rows without audio")
    lengths = torch.tensor([len(clip) for clip in clips], dtype=torch.int64)
    samples = torch.nn.utils.rnn.pad_sequence(list(clips), batch_first=True)  # [B, T]
    return Waveform(samples=samples, lengths=lengths, rate_hz=rate_hz)


def _refuse_partial_ogg_page(ref: AudioRef, content: BinaryIO) -> None:
    """Refuse an Ogg file that ends within a page, of which libsndfile would play what is there.

    Source: RFC 3533, section 6: bytes of the segment table state the length of a page's body.
    """
    if content.read(4) == b"OggS":
        size = content.seek(0, io.SEEK_END)
        content.seek(max(0, size - OGG_PAGE_BYTES))
        page = content.read()
        page = page[max(0, page.rfind(b"OggS")) :]
        # Byte 26 counts the segments; a header that ends before it cannot be complete.
        segments = page[26] if len(page) > 26 else 255
        if len(page) < 27 + segments + sum(page[27 : 27 + segments]):
            raise SignalError(
                f"audio {ref} is cut short: its last page is not whole; copy it again"
            )
    content.seek(0)


# Cached, so that a folder of a million clips is warned of once.
@functools.lru_cache(maxsize=1024)
def _warn_wrong_ending(folder: Path, ending: str, format: str) -> None:
    if ending in ENDINGS and not format.startswith(ENDINGS[ending]):
        message = "files in %s end in %s and are %s; they are read as what they are"
        log.warning(message, folder, ending, format)


@functools.lru_cache(maxsize=1024)
def _warn_inverse(folder: Path) -> None:
    message = "files in %s have channels that are each other's inverse; one is turned over before"
    log.warning(message + " they are averaged, since they would cancel", folder)


def _unreadable_reason(ref: AudioRef, error: Exception) -> str:
    # Opened again: where the decoder left the file is unknown.
    with ref.open() as content:
        head = content.read(12)
    if not head:
        return "has no bytes at all; copy it again or take its row out"
    foreign = next((name for name, matches in FOREIGN.items() if matches(head)), None)
    if foreign:
        return (
            f"is {foreign}, which libsndfile does not read; "
            "convert it (ffmpeg -i FILE -c:a flac FILE.flac)"
        )
    return f"is not readable as audio ({_library_reason(error)}); give wav, flac, ogg, opus or mp3"


def _library_reason(error: Exception) -> str:
    """The library's reason without the path it repeats."""
    stated = getattr(error, "error_string", None) or getattr(error, "strerror", None)
    return (stated or str(error)).rstrip(".")
