"""Audio from a microphone or a network: any rate and encoding, in chunks of any size."""

from __future__ import annotations

import enum
import math

import numpy as np
import torch
import torchaudio
from torch import Tensor

from echox.core.errors import SignalError

LOWPASS_WIDTH = 6  # zero crossings of torchaudio's sinc on either side
ROLLOFF = 0.99  # its cutoff, as a share of the lower Nyquist rate


class Encoding(enum.Enum):
    """How the samples of a stream are written."""

    pcm16 = "audio/pcm"  # 16-bit little-endian
    mu_law = "audio/pcmu"  # G.711, 8 kHz
    a_law = "audio/pcma"  # G.711, 8 kHz


class StreamResampler:
    """Changes the sampling rate of a stream; joined chunks equal the whole, resampled at once."""

    def __init__(self, source_hz: int, rate_hz: int) -> None:
        """Begin a stream.

        Args:
            source_hz: samples per second that are pushed.
            rate_hz: samples per second that come out.

        Raises:
            SignalError: a rate is not a whole number from 1 to 768,000.
        """
        for rate in (source_hz, rate_hz):
            if not 1 <= rate <= 768_000:
                raise SignalError(f"the sampling rate must be 1 to 768000 Hz, and is {rate}")
        self.source_hz, self.rate_hz = source_hz, rate_hz
        common = math.gcd(source_hz, rate_hz)
        self._old, self._new = source_hz // common, rate_hz // common
        reach = math.ceil(LOWPASS_WIDTH * self._old / (min(self._old, self._new) * ROLLOFF))
        # In whole periods of the two rates, after which the filter's phases repeat.
        self._reach = math.ceil((reach + 1) / self._old) * self._old
        self._kept = torch.zeros(0)  # input of which some output is still due, with its context
        self._done = 0  # how much of it, from the first, already was resampled; in whole periods

    def push(self, samples: Tensor) -> Tensor:
        """Resample what is final.

        Args:
            samples: the next samples [T] float32.

        Returns:
            the samples [T'] that no later input changes.
        """
        if self._old == self._new:
            return samples
        self._kept = torch.cat([self._kept, samples])
        final = max(self._done, (len(self._kept) - self._reach) // self._old * self._old)
        return self._take(final)

    def finish(self) -> Tensor:
        """Return the rest [T'], as silence follows; the resampler begins anew after it."""
        rest = self._take(len(self._kept))
        self._kept, self._done = torch.zeros(0), 0
        return rest

    def _take(self, final: int) -> Tensor:
        if final <= self._done:
            return torch.zeros(0)
        resampled = torchaudio.functional.resample(
            self._kept, self._old, self._new, LOWPASS_WIDTH, ROLLOFF
        )
        first, end = (math.ceil(at * self._new / self._old) for at in (self._done, final))
        cut = max(0, final - self._reach) // self._old * self._old
        self._kept, self._done = self._kept[cut:], final - cut
        return resampled[first:end]


def decoded(content: bytes, encoding: Encoding) -> Tensor:
    """Decode bytes of a stream to samples [T] float32 in [-1, 1].

    Raises:
        SignalError: the bytes end within a sample.
    """
    if encoding is Encoding.pcm16:
        if len(content) % 2:
            raise SignalError(
                f"{len(content)} bytes of 16-bit samples came, an odd number; send whole samples"
            )
        return torch.from_numpy(np.frombuffer(content, "<i2").astype(np.float32) / 32768)
    codes = np.frombuffer(content, np.uint8)
    table = _mu_law_table() if encoding is Encoding.mu_law else _a_law_table()
    return torch.from_numpy(table[codes])


def encoded(samples: Tensor, encoding: Encoding) -> bytes:
    """Encode samples [T] in [-1, 1] to bytes; larger ones are clipped."""
    # By 32767 on both sides: 32768 would overflow at 1.0.
    values = (samples.clamp(-1.0, 1.0) * 32767).round().to(torch.int16).numpy()
    if encoding is Encoding.pcm16:
        return values.astype("<i2").tobytes()
    table = _mu_law_table() if encoding is Encoding.mu_law else _a_law_table()
    order = np.argsort(table, kind="stable")
    levels = table[order]
    wanted = values.astype(np.float32) / 32768
    # The nearest level: the border between two lies in their middle.
    nearest = np.searchsorted((levels[1:] + levels[:-1]) / 2, wanted)
    return order[nearest].astype(np.uint8).tobytes()


def _mu_law_table() -> np.ndarray:
    """Levels [256] of mu-law codes, float32 in [-1, 1]. Source: ITU-T G.711."""
    codes = ~np.arange(256, dtype=np.uint8)
    sign, exponent, mantissa = codes & 0x80, (codes >> 4) & 7, codes & 15
    magnitude = ((mantissa.astype(np.int32) << 3) + 0x84 << exponent.astype(np.int32)) - 0x84
    return (np.where(sign, -magnitude, magnitude) / 32768).astype(np.float32)


def _a_law_table() -> np.ndarray:
    """Levels [256] of A-law codes, float32 in [-1, 1]. Source: ITU-T G.711."""
    codes = np.arange(256, dtype=np.uint8) ^ 0x55
    sign, exponent = codes & 0x80, ((codes >> 4) & 7).astype(np.int32)
    mantissa = (codes & 15).astype(np.int32)
    base = (mantissa << 4) + 8
    magnitude = np.where(exponent == 0, base, (base + 0x100) << np.maximum(exponent - 1, 0))
    return (np.where(sign, magnitude, -magnitude) / 32768).astype(np.float32)
