"""The metric interface: reference and generated text -> two numbers, whose sums make a score."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from echox.core.registry import Registry


@dataclass(kw_only=True, slots=True)
class MetricConfig:
    """Base class of every metric's config."""


class Metric(ABC):
    """A score of generated texts: a ratio of two sums over rows, which batches and ranks add up.

    Needed: `measure`.

    Optional: none.
    """

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def measure(self, reference: str, hypothesis: str) -> tuple[float, float]:
        """Compare one text with its reference; either may be empty.

        Args:
            reference: the text of the manifest.
            hypothesis: the generated text.

        Returns:
            what is counted, such as wrong words, and what it is counted of, such as all words of
            the reference. The score is the sum of the first over the sum of the second.
        """


METRICS: Registry[Metric] = Registry("metric", MetricConfig)


def text_scores(
    metrics: Mapping[str, MetricConfig], pairs: Iterable[tuple[str, str]]
) -> dict[str, float]:
    """Score generated texts, for `Task.score`.

    Args:
        metrics: name of the score -> config of the metric.
        pairs: (reference, hypothesis) of each row.

    Returns:
        name -> score over all rows; one whose second sum is 0 is left out.

    Raises:
        PluginError: a metric is not registered, or its name was registered twice.
    """
    pairs, scores = list(pairs), {}
    for name, config in metrics.items():
        metric = METRICS.build(config)
        measured = [metric.measure(*pair) for pair in pairs]
        count = sum(whole for _, whole in measured)
        if count:
            scores[name] = float(sum(part for part, _ in measured) / count)
    return scores
