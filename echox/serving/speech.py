"""Text to speech over HTTP: what a request asks for, and its audio as it is made."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from echox.data.audio import encoded_audio
from echox.inference.audio_input import Encoding, StreamResampler, encoded
from echox.inference.tts import TTSPipeline
from echox.serving.settings import EventError, text_in

TYPES = {"wav": "audio/wav", "pcm": "audio/pcm", "flac": "audio/flac"}
PCM_HZ = 24_000  # of the API's raw samples
TEXT_CHARACTERS = 4_096
UNKNOWN_BYTES = 0xFFFFFFFF  # in the header of a stream whose length nobody knows yet


@dataclass(frozen=True, slots=True)
class SpeechRequest:
    """A text to read, and how its audio is written."""

    text: str
    format: str

    @classmethod
    def of(cls, body: Any) -> SpeechRequest:
        """Read a request's JSON.

        Raises:
            EventError: a field is missing or cannot be used.
        """
        if not isinstance(body, Mapping):
            raise EventError("the request must be a JSON object")
        text = text_in(body.get("input"), "input", TEXT_CHARACTERS)
        format = body.get("response_format") or "wav"
        if not text.strip():
            raise EventError("input is empty; send the text that is to be read", "input")
        if format not in TYPES:
            raise EventError(
                f"response_format must be one of {', '.join(TYPES)}, and is {str(format)[:40]!r}",
                "response_format",
            )
        return cls(text, format)

    def chunks(self, tts: TTSPipeline) -> Iterator[bytes]:
        """Yield the audio as it is made; of flac, which has no streams, all at the end."""
        rate_hz, samples = tts.codec.rate_hz, tts.stream(self.text)
        if self.format == "flac":
            yield encoded_audio(torch.cat([torch.zeros(0), *samples]), rate_hz, "flac")
        elif self.format == "wav":
            # With the first samples: a fault is known before anything is sent.
            header = wav_header(rate_hz)
            for chunk in samples:
                yield header + encoded(chunk, Encoding.pcm16)
                header = b""
            if header:
                yield header
        else:
            yield from _resampled(samples, rate_hz)


def _resampled(samples: Iterator[Tensor], rate_hz: int) -> Iterator[bytes]:
    resampler = StreamResampler(rate_hz, PCM_HZ)
    for chunk in samples:
        yield encoded(resampler.push(chunk), Encoding.pcm16)
    yield encoded(resampler.finish(), Encoding.pcm16)


def wav_header(rate_hz: int) -> bytes:
    """Return the header of a .wav stream of 16-bit mono samples, of unknown length."""
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate_hz, 2 * rate_hz, 2, 16)
    riff = struct.pack("<4sI4s", b"RIFF", UNKNOWN_BYTES, b"WAVE")
    return riff + form + struct.pack("<4sI", b"data", UNKNOWN_BYTES)
