"""Error rates of generated texts."""

from __future__ import annotations

from dataclasses import dataclass

from echox.data.text import edit_distance, words_of
from echox.metrics.base import METRICS, Metric, MetricConfig


@dataclass(kw_only=True, slots=True)
class WordErrorConfig(MetricConfig):
    """Word error rate, in lower case, without punctuation, numbers in words."""


@METRICS.register("wer", WordErrorConfig)
class WordErrorRate(Metric):
    """Substituted, deleted and inserted words per word of the references."""

    def measure(self, reference: str, hypothesis: str) -> tuple[float, float]:
        words = words_of(reference)
        return edit_distance(words, words_of(hypothesis)), len(words)


@dataclass(kw_only=True, slots=True)
class CharacterErrorConfig(MetricConfig):
    """Character error rate of the same words, with the spaces between them."""


@METRICS.register("cer", CharacterErrorConfig)
class CharacterErrorRate(Metric):
    """Substituted, deleted and inserted characters per character of the references."""

    def measure(self, reference: str, hypothesis: str) -> tuple[float, float]:
        letters = " ".join(words_of(reference))
        return edit_distance(letters, " ".join(words_of(hypothesis))), len(letters)
