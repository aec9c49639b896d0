"""Distributions and counts in memory that does not grow with what is counted."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

# Names told apart in a tally; of more, the rest are counted together.
TALLY_NAMES = 100_000


@dataclass(slots=True)
class Histogram:
    """Values by bins: bin i holds edges[i] <= value < edges[i + 1]; the first and last take what lies beyond."""

    edges: list[float]
    counts: list[int] = field(default_factory=list)
    count: int = 0
    total: float = 0.0
    low: float = math.inf
    high: float = -math.inf

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * (len(self.edges) - 1)

    def add(self, value: float) -> None:
        """Count one value."""
        self.counts[min(max(bisect_right(self.edges, value) - 1, 0), len(self.counts) - 1)] += 1
        self.count += 1
        self.total += value
        self.low, self.high = min(self.low, value), max(self.high, value)

    @property
    def mean(self) -> float:
        """Exact; NaN of nothing."""
        return self.total / self.count if self.count else math.nan

    def quantile(self, share: float) -> float:
        """Where so much of the values lies below, to within a bin; NaN of nothing."""
        left = share * self.count
        for number, count in enumerate(self.counts):
            if count and left <= count:
                start, end = max(self.edges[number], self.low), min(self.edges[number + 1], self.high)
                return start + (end - start) * left / count
            left -= count
        return self.high if self.count else math.nan

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        if not self.count:
            return {"count": 0}
        quantiles = {f"p{round(100 * share)}": self.quantile(share) for share in (0.01, 0.05, 0.5, 0.95, 0.99)}
        return {"count": self.count, "mean": self.mean, "min": self.low, **quantiles, "max": self.high, "edges": self.edges, "counts": self.counts}


def even(low: float, high: float, bins: int) -> Histogram:
    """Bins of equal width."""
    return Histogram([low + (high - low) * number / bins for number in range(bins + 1)])


def geometric(low: float, high: float, bins: int) -> Histogram:
    """Bins of equal ratio."""
    return Histogram([low * (high / low) ** (number / bins) for number in range(bins + 1)])


class Tally:
    """How often each name occurs."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.others = 0  # occurrences of names beyond the first TALLY_NAMES

    def add(self, name: str, count: int = 1) -> None:
        """Count a name."""
        if name in self.counts or len(self.counts) < TALLY_NAMES:
            self.counts[name] += count
        else:
            self.others += count

    @property
    def names(self) -> str:
        """How many there are."""
        return f"more than {TALLY_NAMES:,}" if self.others else f"{len(self.counts):,}"

    def most(self, count: int = 20) -> Sequence[tuple[str, int]]:
        """The commonest."""
        return self.counts.most_common(count)
