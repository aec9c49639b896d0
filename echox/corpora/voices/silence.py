"""What a microphone hears where nobody speaks."""

import numpy as np

from echox.corpora.voices.base import Role, Voice
from echox.data.acoustics import pink, white

SECONDS = (0.5, 5.0)
LEVEL_DB = (-75.0, -25.0)  # of full scale
MAINS_HZ = (50.0, 60.0)
OVERTONES = 8
MOST_KNOCKS = 6


class NoVoice(Voice):
    """Digital silence, noise, the hum of the mains or knocks, drawn by the seed; the text only tells clips apart."""

    name, role, rate_hz = "silence", Role.SILENCE, 16_000

    def _render(self, text: str, seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        empty = np.zeros(round(rng.uniform(*SECONDS) * self.rate_hz), np.float32)
        noise = (nothing, white, pink, hum, knocks)[rng.integers(5)](empty, rng)
        return noise * 10 ** (rng.uniform(*LEVEL_DB) / 20)


def nothing(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Zeros [T]."""
    return samples


def hum(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The mains and its overtones [T], of about unit power."""
    seconds = np.arange(len(samples)) / NoVoice.rate_hz
    base_hz = rng.choice(MAINS_HZ)
    waves = [rng.random() * np.sin(2 * np.pi * (base_hz * n * seconds + rng.random())) for n in range(1, OVERTONES + 1)]
    return np.sum(waves, axis=0)


def knocks(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A few short bursts of noise [T], each of which decays within a tenth of a second or so."""
    sounds = np.zeros(len(samples))
    for _ in range(rng.integers(1, MOST_KNOCKS + 1)):
        start = rng.integers(len(samples))
        decay = np.exp(-np.arange(len(samples) - start) / (rng.uniform(0.005, 0.05) * NoVoice.rate_hz))
        sounds[start:] += 5 * rng.standard_normal(len(decay)) * decay
    return sounds
