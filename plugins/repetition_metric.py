"""A worked example of a metric: the share of an answer that repeats itself, as in a loop.

    echox-train recipe=echo_tiny s2t.task.metrics.repetition=repetition

A language model that was tuned too long or on too little says the same words over and over; its
loss hardly shows that, since it never hears itself in training.
"""

from __future__ import annotations

from dataclasses import dataclass

from echox.core.errors import ConfigError
from echox.data.text import words_of
from echox.metrics.base import METRICS, Metric, MetricConfig


@dataclass(kw_only=True, slots=True)
class RepetitionConfig(MetricConfig):
    """Repeated runs of words."""

    words: int = 3
    """Words of a run; a run counts as repeated where it stood in the text before."""

    def __post_init__(self) -> None:
        if self.words < 1:
            raise ConfigError(f"words must be at least 1, and is {self.words}")


@METRICS.register("repetition", RepetitionConfig)
class Repetition(Metric):
    """Runs of words that stood in the generated text before, per run; 0 without any loop."""

    def measure(self, reference: str, hypothesis: str) -> tuple[float, float]:
        """Count the repeated runs and all runs of the hypothesis; the reference is not read."""
        words, size = words_of(hypothesis), self.config.words
        runs = [tuple(words[start : start + size]) for start in range(len(words) - size + 1)]
        return len(runs) - len(set(runs)), len(runs)
