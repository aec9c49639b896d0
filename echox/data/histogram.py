"""Histograms and counts of names in memory that has a bound, whatever is counted."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

# Values that a histogram keeps, 8 bytes each; of more its quantiles are estimates.
EXACT_VALUES = 2_000_000
# Names told apart in a tally; those beyond them are counted together.
TALLY_NAMES = 100_000


@dataclass(slots=True)
class Histogram:
    """Counts [N] of values by bins with edges [N + 1]: edges[i] <= value < edges[i + 1].

    The first and the last bin also count what lies beyond them. Up to `EXACT_VALUES` the values
    themselves are kept too, so that quantiles are exact.
    """

    edges: list[float]
    counts: list[int] = field(default_factory=list)
    count: int = 0
    total: float = 0.0
    low: float = math.inf
    high: float = -math.inf
    values: array[float] | None = field(default_factory=lambda: array("d"))  # None where too many

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * (len(self.edges) - 1)

    def add(self, value: float) -> None:
        """Count one value."""
        # By bisection, for edges may be of any spacing.
        position = bisect_right(self.edges, value) - 1
        self.counts[min(max(position, 0), len(self.counts) - 1)] += 1
        self.count += 1
        self.total += value
        self.low, self.high = min(self.low, value), max(self.high, value)
        if self.values is not None:
            self.values.append(value)
            if len(self.values) > EXACT_VALUES:
                self.values = None

    @property
    def mean(self) -> float:
        """Exact mean of the values; NaN without any."""
        return self.total / self.count if self.count else math.nan

    def quantile(self, share: float) -> float:
        """Return the value below which a share, 0 to 1, of the values lies; NaN without any.

        Of more than `EXACT_VALUES` it is known to within a bin, and interpolated linearly there.
        """
        if self.values:
            return float(np.quantile(np.frombuffer(self.values), share))
        remaining = share * self.count
        for number, count in enumerate(self.counts):
            if count and remaining <= count:
                # The outermost bins hold values beyond their edges, none beyond low and high.
                start = max(self.edges[number], self.low)
                end = min(self.edges[number + 1], self.high)
                return start + (end - start) * remaining / count
            remaining -= count
        # Rounding may leave a remainder after the last bin.
        return self.high if self.count else math.nan

    def plain(self) -> dict[str, Any]:
        """Return the histogram as JSON values."""
        if not self.count:
            return {"count": 0}
        quantiles = {
            f"p{round(100 * share)}": self.quantile(share)
            for share in (0.01, 0.05, 0.5, 0.95, 0.99)
        }
        return {
            "count": self.count,
            "mean": self.mean,
            "min": self.low,
            **quantiles,
            "max": self.high,
            "edges": self.edges,
            "counts": self.counts,
        }


def number_text(value: float) -> str:
    """Return a number to three digits, or all of them before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def uniform_histogram(low: float, high: float, bins: int) -> Histogram:
    """Return an empty histogram with bins [N] of equal width."""
    return Histogram([low + (high - low) * number / bins for number in range(bins + 1)])


def geometric_histogram(low: float, high: float, bins: int) -> Histogram:
    """Return an empty histogram with bins [N] of equal ratio, for values over magnitudes."""
    return Histogram([low * (high / low) ** (number / bins) for number in range(bins + 1)])


class Tally:
    """Counts of how often each name occurs."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.others = 0  # occurrences of names beyond the first TALLY_NAMES

    def add(self, name: str, count: int = 1) -> None:
        """Count a name."""
        # The first names are kept, whichever are the most frequent: a bound on memory, not a rank.
        if name in self.counts or len(self.counts) < TALLY_NAMES:
            self.counts[name] += count
        else:
            self.others += count

    @property
    def names(self) -> str:
        """Number of different names, as text for a report."""
        return f"more than {TALLY_NAMES:,}" if self.others else f"{len(self.counts):,}"

    def most(self, count: int = 20) -> Sequence[tuple[str, int]]:
        """Return the most frequent names with their counts, the most frequent first."""
        return self.counts.most_common(count)
