"""Where speech begins and ends in a stream, by Silero's detector."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from echox.core.errors import ConfigError
from echox.core.packages import ONNXRUNTIME_SERVE, SILERO_VAD, require

RATE_HZ = 16_000
WINDOW_SAMPLES = 512  # that the detector takes at a time
# Below the threshold by this much, a window counts as silence while somebody speaks.
HYSTERESIS = 0.15


@dataclass(kw_only=True, slots=True)
class VoiceActivityConfig:
    """When speech begins and ends.

    Raises:
        ConfigError: a field is out of range.
    """

    threshold: float = 0.5
    """Probability of speech in 32 ms from which they count as speech."""
    silence_ms: int = 500
    """Silence that ends a question, in milliseconds."""
    padding_ms: int = 300
    """Audio before the detected beginning that belongs to the question, in milliseconds."""

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise ConfigError(f"threshold must be between 0 and 1, and is {self.threshold}")
        if not 0 <= self.silence_ms <= 10_000 or not 0 <= self.padding_ms <= 10_000:
            raise ConfigError(
                f"silence_ms is {self.silence_ms} and padding_ms {self.padding_ms}; "
                "use 0 to 10000 milliseconds"
            )


@dataclass(frozen=True, slots=True)
class Activity:
    """A border of speech in a stream."""

    begins: bool  # False: speech has ended
    sample: int  # of the stream at 16 kHz, where the question begins or ends
    known_at: int  # samples that had come when it was known


class VoiceActivity:
    """Finds the borders of speech in a stream at 16 kHz, 32 ms at a time."""

    def __init__(self, config: VoiceActivityConfig) -> None:
        """Load the detector.

        Raises:
            PackageError: the extra `serve` is not installed.
        """
        require([SILERO_VAD, ONNXRUNTIME_SERVE])
        threads = torch.get_num_threads()
        self._model = SILERO_VAD.load().load_silero_vad(onnx=True)
        # The package sets the whole process to one thread when it is imported.
        torch.set_num_threads(threads)
        self.config = config
        self.reset()

    def reset(self) -> None:
        """Begin a stream."""
        self._model.reset_states()
        self._pending = torch.zeros(0)
        self._seen = 0  # samples that the detector has taken
        self._speaks = False
        self._silent_from: int | None = None  # where the silence began that may end the speech

    def push(self, samples: Tensor) -> list[Activity]:
        """Look at the next samples [T] of the stream.

        Returns:
            borders that are known now, in their order.
        """
        self._pending = torch.cat([self._pending, samples])
        windows = len(self._pending) // WINDOW_SAMPLES
        found = [
            self._window(self._pending[at * WINDOW_SAMPLES : (at + 1) * WINDOW_SAMPLES])
            for at in range(windows)
        ]
        self._pending = self._pending[windows * WINDOW_SAMPLES :]
        return [activity for activity in found if activity is not None]

    def _window(self, samples: Tensor) -> Activity | None:
        probability = float(self._model(samples, RATE_HZ))
        begin, self._seen = self._seen, self._seen + WINDOW_SAMPLES
        if probability >= self.config.threshold:
            self._silent_from = None
            if self._speaks:
                return None
            self._speaks = True
            padding = self.config.padding_ms * RATE_HZ // 1000
            return Activity(True, max(0, begin - padding), self._seen)
        if not self._speaks or probability >= self.config.threshold - HYSTERESIS:
            return None
        self._silent_from = begin if self._silent_from is None else self._silent_from
        if self._seen - self._silent_from < self.config.silence_ms * RATE_HZ // 1000:
            return None
        end, self._speaks, self._silent_from = self._silent_from, False, None
        return Activity(False, end, self._seen)
