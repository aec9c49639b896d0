"""Simulated acoustics for augmentation: room reverberation and additive noise, drawn at random."""

from __future__ import annotations

import numpy as np

from echox.data.resampling import resample

EARLY_REFLECTIONS = 6
# Seconds after the direct sound at which early reflections arrive: detours of 1.4 to 14 m.
EARLY_S = (0.004, 0.040)
BABBLERS = 6
# Root mean square amplitude up to which a clip counts as silent.
SILENT = 1e-6


def in_room(
    samples: np.ndarray, rate_hz: int, rt60_s: float, direct_db: float, rng: np.random.Generator
) -> np.ndarray:
    """Add the early reflections and the decaying reverberation of a randomly drawn room.

    Args:
        samples: dry clip [T].
        rate_hz: samples per second.
        rt60_s: seconds in which the reverberation falls by 60 dB.
        direct_db: power of the direct sound over that of everything after it, dB.
        rng: draws the room.

    Returns:
        samples [T + R - 1] float32, R about rt60_s * rate_hz; the direct sound keeps its level.
    """
    response = reverberation_tail(rate_hz, rt60_s, rng)
    response *= 10 ** (-direct_db / 20) / np.sqrt(np.sum(np.square(response)))
    # The direct sound has unit energy, so the line above sets the ratio of direct to reverberant.
    response[0] = 1.0
    return convolve(samples, response)


def convolve(samples: np.ndarray, response: np.ndarray) -> np.ndarray:
    """Convolve samples [T] with an impulse response [R]: [T + R - 1] float32."""
    T = len(samples) + len(response) - 1
    # Padded to a power of two of at least T, so that the circular convolution equals the linear.
    size = 1 << (T - 1).bit_length()
    wet = np.fft.irfft(np.fft.rfft(samples, size) * np.fft.rfft(response, size), size)
    return wet[:T].astype(np.float32)


def reverberation_tail(rate_hz: int, rt60_s: float, rng: np.random.Generator) -> np.ndarray:
    """Draw a room impulse response [R] without its direct sound.

    A few early reflections, then exponentially decaying noise; sample 0 is 0.

    Args:
        rate_hz: samples per second.
        rt60_s: seconds in which the noise falls by 60 dB.
        rng: draws the reflections and the noise.
    """
    first, last = (round(delay_s * rate_hz) for delay_s in EARLY_S)
    R = max(round(rt60_s * rate_hz), last + 1)
    decay = 10 ** (-3 * np.arange(R) / (rt60_s * rate_hz))
    response = rng.standard_normal(R) * decay
    # The dense tail sets in once the nearest walls have reflected.
    response[: round(EARLY_S[1] / 2 * rate_hz)] = 0.0
    early = rng.integers(first, last, EARLY_REFLECTIONS)
    # The tail's energy grows with the rate, and a reflection is one sample at any rate.
    gains = rng.choice([-1.0, 1.0], EARLY_REFLECTIONS) * decay[early] * np.sqrt(rate_hz) / 20
    response[early] += gains
    return response


def white(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """White noise [T] of unit power, as long as the clip [T]."""
    return rng.standard_normal(len(samples))


def pink(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Pink noise [T] of unit power, falling by 3 dB per octave, as long as the clip [T]."""
    spectrum = np.fft.rfft(rng.standard_normal(len(samples)))
    # The constant bin is divided by 1: dividing by its frequency would be infinite.
    spectrum /= np.sqrt(np.maximum(np.arange(len(spectrum)), 1))
    return normalize_power(np.fft.irfft(spectrum, len(samples)))


def babble(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Babble noise [T] of unit power, made from the clip [T] itself.

    The clip is reversed, so that no word of it is intelligible, and several copies are summed,
    each at its own speed and offset.
    """
    babble_sum = np.zeros(len(samples))
    for speed in rng.uniform(0.8, 1.2, BABBLERS):
        talker = np.resize(resample(samples[::-1], speed), len(samples))
        babble_sum += np.roll(talker, rng.integers(len(samples)))
    return normalize_power(babble_sum)


NOISES = (white, pink, babble)


def normalize_power(samples: np.ndarray) -> np.ndarray:
    """Scale samples [T] to a mean power of 1; silence stays silent."""
    # The floor keeps a silent clip from being divided by zero.
    return samples / max(float(np.sqrt(np.mean(np.square(samples)))), SILENT)
