"""Scores: each a number with what it counts, its 95 % interval, and the protocol and scorer it came from."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from echox.data.text import edit_distance, words_of
from echox.packages import JIWER

Z_95 = 1.959964  # standard deviations that hold 95 % of a normal distribution
DRAWS = 1000  # bootstrap samples


@dataclass(frozen=True, slots=True)
class Score:
    """One number of a report."""

    value: float | None  # None where nothing was counted
    count: int  # rows behind it
    low: float | None  # 95 % interval
    high: float | None
    protocol: str  # how it is counted; numbers of two protocols do not compare
    scorer: str | None = None  # the model that judged, where one did


def accuracy(right: Sequence[bool], protocol: str, scorer: str | None = None) -> Score:
    """The share that is right, with Wilson's interval."""
    n = len(right)
    if n == 0:
        return Score(None, 0, None, None, protocol, scorer)
    share = sum(right) / n
    return Score(share, n, *wilson(sum(right), n), protocol, scorer)


def wilson(right: int, n: int) -> tuple[float, float]:
    """95 % interval of a proportion.

    Source: Wilson 1927, Probable Inference, the Law of Succession, and Statistical Inference.
    """
    share, z2 = right / n, Z_95**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    reach = Z_95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # At 0 and at 1 rounding would leave the share itself outside.
    return max(0.0, min(share, middle - reach)), min(1.0, max(share, middle + reach))


def word_error(pairs: Sequence[tuple[str, str]], protocol: str, scorer: str | None = None) -> Score:
    """Word error rate over all words: (reference, hypothesis) pairs, lower-cased, without punctuation, numbers spelled out."""
    return _error_rate([word_errors(reference, hypothesis) for reference, hypothesis in pairs], protocol, scorer)


def word_errors(reference: str, hypothesis: str) -> tuple[int, int]:
    """Substituted, deleted and inserted words, and words of the reference."""
    said, heard = words_of(reference), words_of(hypothesis)
    if not said:
        return len(heard), 0
    found = JIWER.load().process_words(" ".join(said), " ".join(heard))
    return found.substitutions + found.deletions + found.insertions, len(said)


def token_error(pairs: Sequence[tuple[Sequence[int], Sequence[int]]], protocol: str) -> Score:
    """Token error rate over all tokens: (reference, hypothesis) pairs of ids."""
    return _error_rate([(edit_distance(hypothesis, reference), len(reference)) for reference, hypothesis in pairs], protocol, None)


def _error_rate(errors: Sequence[tuple[int, int]], protocol: str, scorer: str | None) -> Score:
    if not sum(size for _, size in errors):
        return Score(None, len(errors), None, None, protocol, scorer)
    low, high = _bootstrap([_Ratio(*pair) for pair in errors])
    return Score(sum(count for count, _ in errors) / sum(size for _, size in errors), len(errors), low, high, protocol, scorer)


def mean(values: Sequence[float], protocol: str, scorer: str | None = None) -> Score:
    """The mean, with a bootstrap interval over rows."""
    if not values:
        return Score(None, 0, None, None, protocol, scorer)
    low, high = _bootstrap([_Ratio(value, 1) for value in values])
    return Score(sum(values) / len(values), len(values), low, high, protocol, scorer)


def difference(
    left: Sequence[tuple[float, float]], right: Sequence[tuple[float, float]], protocol: str, scorer: str | None = None
) -> Score:
    """Paired difference of two rates over the same rows: each a (numerator, denominator) per row; negative where `left` is lower."""
    rows = list(zip(left, right, strict=True))
    if not rows or not sum(d for (_, d), _ in rows) or not sum(d for _, (_, d) in rows):
        return Score(None, len(rows), None, None, protocol, scorer)
    drawn = random.Random(0)
    gaps = (_gap(drawn.choices(rows, k=len(rows))) for _ in range(DRAWS))
    values = sorted(gap for gap in gaps if gap is not None)
    return Score(_gap(rows), len(rows), *_middle_95(values), protocol, scorer)


def _gap(rows: Sequence[tuple[tuple[float, float], tuple[float, float]]]) -> float | None:
    below = [sum(pair[side][1] for pair in rows) for side in (0, 1)]
    if not all(below):
        return None
    return sum(pair[0][0] for pair in rows) / below[0] - sum(pair[1][0] for pair in rows) / below[1]


def word_f1(reference: str, hypothesis: str) -> float:
    """Overlap of two texts' words, order left aside: 1 where they are the same words, 0 where they share none (SQuAD's F1)."""
    said, heard = words_of(reference), words_of(hypothesis)
    if not said or not heard:
        return float(said == heard)
    shared = sum((Counter(said) & Counter(heard)).values())
    return 2 * shared / (len(said) + len(heard))


def same_words(reference: str, hypothesis: str) -> bool:
    """Whether two texts are word for word the same."""
    return words_of(reference) == words_of(hypothesis)


@dataclass(frozen=True, slots=True)
class _Ratio:
    above: float
    below: float


def _bootstrap(rows: Sequence[_Ratio]) -> tuple[float, float]:
    """Percentile interval of a ratio of sums over rows; seeded, so that a report does not change when it is made again."""
    drawn = random.Random(0)
    values = []
    for _ in range(DRAWS):
        sample = drawn.choices(rows, k=len(rows))
        below = sum(row.below for row in sample)
        if below:
            values.append(sum(row.above for row in sample) / below)
    return _middle_95(sorted(values))


def _middle_95(values: Sequence[float]) -> tuple[float, float]:
    return values[int(0.025 * (len(values) - 1))], values[math.ceil(0.975 * (len(values) - 1))]
