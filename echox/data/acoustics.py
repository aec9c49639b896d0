"""What stands between a mouth and a microphone: rooms and noises, drawn at random."""

from __future__ import annotations

import numpy as np

from echox.data.resampling import resample

EARLY_REFLECTIONS = 6
EARLY_S = (0.004, 0.040)
BABBLERS = 6
# The level below which a clip counts as silent.
SILENT = 1e-6


def in_room(samples: np.ndarray, rate_hz: int, rt60_s: float, direct_db: float, rng: np.random.Generator) -> np.ndarray:
    """Add a room's early reflections and its decaying echo.

    Args:
        samples: [T].
        rate_hz: samples per second.
        rt60_s: seconds in which the echo falls by 60 dB.
        direct_db: power of the direct sound over that of everything after it.
        rng: draws the room.
    Returns:
        samples [T + rt60_s * rate_hz] float32, the direct sound in its place and at its level.
    """
    echo = room_response(rate_hz, rt60_s, rng)
    echo *= 10 ** (-direct_db / 20) / np.sqrt(np.sum(np.square(echo)))
    echo[0] = 1.0
    return convolved(samples, echo)


def convolved(samples: np.ndarray, response: np.ndarray) -> np.ndarray:
    """Samples [T] heard through an impulse response [R]: [T + R - 1] float32."""
    T = len(samples) + len(response) - 1
    size = 1 << (T - 1).bit_length()
    wet = np.fft.irfft(np.fft.rfft(samples, size) * np.fft.rfft(response, size), size)
    return wet[:T].astype(np.float32)


def room_response(rate_hz: int, rt60_s: float, rng: np.random.Generator) -> np.ndarray:
    """What follows the direct sound: a few early reflections, then noise that decays; 0 at the first sample."""
    T = max(round(rt60_s * rate_hz), round(EARLY_S[1] * rate_hz) + 1)
    decay = 10 ** (-3 * np.arange(T) / (rt60_s * rate_hz))
    response = rng.standard_normal(T) * decay
    # The dense echo sets in once the first walls have answered.
    response[: round(EARLY_S[1] / 2 * rate_hz)] = 0.0
    early = rng.integers(round(EARLY_S[0] * rate_hz), round(EARLY_S[1] * rate_hz), EARLY_REFLECTIONS)
    response[early] += rng.choice([-1.0, 1.0], EARLY_REFLECTIONS) * decay[early] * np.sqrt(rate_hz) / 20
    return response


def white(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """White noise [T] of unit power, as long as the clip."""
    return rng.standard_normal(len(samples))


def pink(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Noise [T] of unit power that falls by 3 dB per octave, as long as the clip."""
    spectrum = np.fft.rfft(rng.standard_normal(len(samples)))
    spectrum /= np.sqrt(np.maximum(np.arange(len(spectrum)), 1))
    return of_unit_power(np.fft.irfft(spectrum, len(samples)))


def babble(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A crowd [T] of unit power: the clip itself backwards, several times, each at its own pace and start."""
    crowd = np.zeros(len(samples))
    for pace in rng.uniform(0.8, 1.2, BABBLERS):
        talker = np.resize(resample(samples[::-1], pace), len(samples))
        crowd += np.roll(talker, rng.integers(len(samples)))
    return of_unit_power(crowd)


NOISES = (white, pink, babble)


def of_unit_power(samples: np.ndarray) -> np.ndarray:
    """Scale samples [T] to a mean power of 1; silence stays silent."""
    return samples / max(float(np.sqrt(np.mean(np.square(samples)))), SILENT)
