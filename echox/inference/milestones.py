"""When a streamed answer gave the first of its text, units and speech."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from torch import Tensor

AUDIBLE = 0.01  # -40 dBFS, from which a sample is heard


@dataclass(slots=True)
class Milestones:
    """Seconds from a question to the first of each kind that its answer gives.

    Attributes:
        seconds: by kind: "encoded", "first_text", "first_segment" (whose units are decoded from
            then on), "first_unit", "first_audio" (samples), "first_audible" (the first sample above
            -40 dBFS, if samples are played as they come) and "done".
    """

    seconds: dict[str, float] = field(default_factory=dict)
    _begun_s: float = field(default_factory=time.perf_counter)
    _played_s: float = 0.0  # when a player has played all samples so far

    @property
    def is_audible(self) -> bool:
        """Whether there was an audible sample."""
        return "first_audible" in self.seconds

    def mark(self, name: str) -> None:
        """Note that something was reached; later times of one name do not count."""
        if name not in self.seconds:
            self.seconds[name] = self._now_s()

    def play(self, samples: Tensor, rate_hz: int) -> None:
        """Note samples [T] of the speech, as a player takes them that plays all that it has."""
        self.mark("first_audio")
        begins_s = max(self._played_s, self._now_s())
        self._played_s = begins_s + len(samples) / rate_hz
        loud = (samples.abs() > AUDIBLE).nonzero()
        if len(loud) and not self.is_audible:
            self.seconds["first_audible"] = round(begins_s + int(loud[0]) / rate_hz, 4)

    def _now_s(self) -> float:
        return round(time.perf_counter() - self._begun_s, 4)
