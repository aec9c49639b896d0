"""Clips without speech: silence, noise, mains hum and knocks."""

import numpy as np

from echox.corpora.voices.base import Role, Voice
from echox.data.acoustics import pink, white

SECONDS = (0.5, 5.0)
LEVEL_DB = (-75.0, -25.0)  # of full scale
MAINS_HZ = (50.0, 60.0)  # of Europe and most of the world, of North America
OVERTONES = 8  # the mains frequency itself included
MOST_KNOCKS = 6


class NoVoice(Voice):
    """Digital silence, white or pink noise, mains hum or knocks, drawn by the seed.

    Clips are samples [T] of 0.5 to 5 seconds at 16 kHz. The text is not used; it only tells the
    names of clips apart.
    """

    name, role, rate_hz = "silence", Role.SILENCE, 16_000

    def _render(self, text: str, seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        empty = np.zeros(round(rng.uniform(*SECONDS) * self.rate_hz), np.float32)
        # Part of the recorded corpora: another order of the sounds changes every silent clip.
        sound = (nothing, white, pink, hum, knocks)[rng.integers(5)](empty, rng)
        return sound * 10 ** (rng.uniform(*LEVEL_DB) / 20)


def nothing(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the zeros [T] as they are: digital silence."""
    return samples


def hum(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Generate the hum of the mains with its overtones, of about unit power.

    Args:
        samples: [T], of which only the length is used.
        rng: draws the frequency, and level and phase of each overtone.

    Returns:
        samples [T] float64 at `NoVoice.rate_hz`.
    """
    seconds = np.arange(len(samples)) / NoVoice.rate_hz
    base_hz = rng.choice(MAINS_HZ)
    waves = [
        rng.random() * np.sin(2 * np.pi * (base_hz * n * seconds + rng.random()))
        for n in range(1, OVERTONES + 1)
    ]
    return np.sum(waves, axis=0)


def knocks(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Generate a few short bursts of noise, each of which decays within about a tenth of a second.

    Args:
        samples: [T], of which only the length is used.
        rng: draws number, starts, decays and noise of the knocks.

    Returns:
        samples [T] float64 at `NoVoice.rate_hz`.
    """
    sounds = np.zeros(len(samples))
    for _ in range(rng.integers(1, MOST_KNOCKS + 1)):
        start = rng.integers(len(samples))
        decay_samples = rng.uniform(0.005, 0.05) * NoVoice.rate_hz
        decay = np.exp(-np.arange(len(samples) - start) / decay_samples)  # [T - start]
        sounds[start:] += 5 * rng.standard_normal(len(decay)) * decay
    return sounds
