"""The contract of a metric; see `echox.metrics.base.Metric`."""

from __future__ import annotations

import math

from echox.metrics.base import METRICS, MetricConfig
from echox.testing.rules import survives_a_checkpoint

# Pairs of (reference, hypothesis): equal, different, empty on either side, and other scripts.
PAIRS = (
    ("It is Paris.", "It is Paris."),
    ("It is Paris.", "it was rome, rome, rome, and 3 more"),
    ("It is Paris.", ""),
    ("", "It is Paris."),
    ("", ""),
    ("日本語のテキスト 🙂", "Привет, мир"),
)


def numbers_can_be_added(config: MetricConfig) -> None:
    """Check that every pair gives two finite numbers, the second of them 0 or more.

    Raises:
        AssertionError: it does not, or no pair at all is counted.
    """
    metric = METRICS.build(config)
    wholes = []
    for pair in PAIRS:
        part, whole = metric.measure(*pair)
        assert all(isinstance(it, (int, float)) and math.isfinite(it) for it in (part, whole)), (
            f"measure must return two finite numbers, and gave {part!r} and {whole!r} for {pair}"
        )
        # The sum of the second numbers is a divisor.
        assert whole >= 0, f"the second number must not be negative, and is {whole} for {pair}"
        wholes.append(whole)
    assert any(wholes), "no pair is counted: the second number is 0 for all of them"


def the_same_pair_measures_the_same(config: MetricConfig) -> None:
    """Check that a measure depends on its pair alone, and not on the pairs before.

    Raises:
        AssertionError: measured again, in another order, a pair gives other numbers.
    """
    metric = METRICS.build(config)
    forward = [metric.measure(*pair) for pair in PAIRS]
    backward = [metric.measure(*pair) for pair in reversed(PAIRS)]
    assert forward == backward[::-1], "measure gave other numbers the second time"


def config_survives_a_checkpoint(config: MetricConfig) -> None:
    """Check that the config comes back from the data that a checkpoint records of it.

    Raises:
        AssertionError: another config comes back.
    """
    survives_a_checkpoint(METRICS, config)


CHECKS = (
    numbers_can_be_added,
    the_same_pair_measures_the_same,
    config_survives_a_checkpoint,
)
