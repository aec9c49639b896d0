"""What every voice is: text and a seed in, a mono waveform out."""

from abc import ABC, abstractmethod
from enum import Enum

import numpy as np

from echox.errors import SignalError
from echox.packages import OptionalPackage


class Role(str, Enum):
    """What a voice may be used for, so that a voice heard in a test never trained anything."""

    ANSWER = "answer"
    TRAIN = "train"
    VALID = "valid"
    TEST = "test"
    SILENCE = "silence"


class Voice(ABC):
    """A speaker that reads English text aloud, the same way each time for the same text and seed.

    Attributes:
        name: the name under which `voice` finds it.
        rate_hz: samples per second of what `speak` returns.
        packages: what it speaks with, beside echox.
        role: answers, or questions for training, validation or the test, or clips in which nobody speaks.
    """

    name: str
    rate_hz: int
    role: Role
    packages: tuple[OptionalPackage, ...] = ()

    def speak(self, text: str, seed: int) -> np.ndarray:
        """Read a text aloud.

        Args:
            text: English, any number of sentences.
            seed: fixes whatever is random in the voice.
        Returns:
            samples [T] float32 in [-1, 1] at `self.rate_hz`.
        Raises:
            SignalError: the text holds nothing this voice can say, or the engine failed on it.
            AssetError, PackageError: the engine or its weights cannot be had.
        """
        samples = np.zeros(0, np.float32)
        if any(character.isalnum() for character in text):
            samples = np.asarray(self._render(text, seed), dtype=np.float32)
        if samples.size == 0:
            raise SignalError(f"voice '{self.name}' found nothing to say in {text!r}; give it a text with words")
        return within_full_scale(samples)

    @abstractmethod
    def _render(self, text: str, seed: int) -> np.ndarray:
        """Samples [T] at `self.rate_hz`, of any peak; empty when there is nothing to say."""


def within_full_scale(samples: np.ndarray, ceiling: float = 0.98) -> np.ndarray:
    """Turn a waveform down where its peak would clip.

    Args:
        samples: [..., T] float32.
        ceiling: the highest peak let through, as a share of full scale.
    Returns:
        the same shape, untouched when the peak is below the ceiling.
    """
    peak = float(np.abs(samples).max(initial=0.0))
    return samples if peak <= ceiling else samples * np.float32(ceiling / peak)
