"""The interface of a voice: text and a seed in, a mono waveform out."""

from abc import ABC, abstractmethod
from enum import Enum

import numpy as np

from echox.core.errors import SignalError
from echox.core.packages import OptionalPackage


class Role(str, Enum):
    """What a voice may be used for, so that the voices of a test are never trained on."""

    # The values are keys of fingerprints and of `corpus.json`.
    ANSWER = "answer"
    TRAIN = "train"
    VALID = "valid"
    TEST = "test"
    SILENCE = "silence"


class Voice(ABC):
    """A text-to-speech voice for English, deterministic for a text and a seed.

    Attributes:
        name: the name under which `voice` finds it.
        rate_hz: samples per second of what `synthesize` returns.
        role: answers, or questions for training, validation or the test, or clips without speech.
        packages: optional packages that synthesis needs.
    """

    name: str
    rate_hz: int
    role: Role
    packages: tuple[OptionalPackage, ...] = ()

    def synthesize(self, text: str, seed: int) -> np.ndarray:
        """Synthesize a text.

        Args:
            text: English, any number of sentences.
            seed: fixes whatever is random in the voice.

        Returns:
            samples [T] float32 in [-1, 1] at `self.rate_hz`.

        Raises:
            SignalError: the text holds nothing that can be spoken, or the engine failed on it.
            AssetError: the engine or its weights cannot be had.
            PackageError: an optional package is not installed.
        """
        samples = np.zeros(0, np.float32)
        # No engine has to cope with a text of punctuation alone.
        if any(character.isalnum() for character in text):
            samples = np.asarray(self._render(text, seed), dtype=np.float32)
        if samples.size == 0:
            raise SignalError(
                f"voice '{self.name}' found nothing to say in {text!r}; give it a text with words"
            )
        return within_full_scale(samples)

    @abstractmethod
    def _render(self, text: str, seed: int) -> np.ndarray:
        """Samples [T] at `self.rate_hz`, of any peak; empty when nothing can be spoken."""


def within_full_scale(samples: np.ndarray, ceiling: float = 0.98) -> np.ndarray:
    """Scale a waveform down where its peak would clip.

    Args:
        samples: [..., T] float32.
        ceiling: the highest peak let through, as a share of full scale.

    Returns:
        [..., T] float32, the samples themselves when their peak is within the ceiling.
    """
    # `initial` for an empty waveform, which has no maximum.
    peak = float(np.abs(samples).max(initial=0.0))
    return samples if peak <= ceiling else samples * np.float32(ceiling / peak)
