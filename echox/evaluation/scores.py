"""Scores with their number of rows, 95 % interval, protocol and scorer."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from echox.core.packages import JIWER
from echox.data.text import edit_distance, words_of

Z_95 = 1.959964  # standard deviations that hold 95 % of a normal distribution
DRAWS = 1000  # bootstrap samples


@dataclass(frozen=True, slots=True)
class Score:
    """One number of a report."""

    value: float | None  # None where nothing was counted
    count: int  # rows
    low: float | None  # lower end of the 95 % interval
    high: float | None  # upper end
    protocol: str  # how it is counted; numbers of two protocols do not compare
    scorer: str | None = None  # the model that scored, where one did


def accuracy(right: Sequence[bool], protocol: str, scorer: str | None = None) -> Score:
    """Return the share of rows that are right, with Wilson's interval.

    Args:
        right: of each row.
        protocol: how a row is counted.
        scorer: the model that scored, where one did.
    """
    N = len(right)
    if N == 0:
        return Score(None, 0, None, None, protocol, scorer)
    # Wilson's interval stays within 0 and 1, and has a width even where all rows are right.
    return Score(sum(right) / N, N, *wilson(sum(right), N), protocol, scorer)


def wilson(right: int, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a proportion.

    Args:
        right: successes.
        n: trials, at least one.

    Source: Wilson 1927, Probable Inference, the Law of Succession, and Statistical Inference.
    """
    share, z2 = right / n, Z_95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half_width = Z_95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # Bounded: at 0 and at 1 rounding would leave the share itself outside.
    return max(0.0, min(share, centre - half_width)), min(1.0, max(share, centre + half_width))


def word_error(pairs: Sequence[tuple[str, str]], protocol: str, scorer: str | None = None) -> Score:
    """Return the word error rate over all words, with a bootstrap interval over rows.

    Args:
        pairs: (reference, hypothesis) texts, compared in lower case, without punctuation, numbers
            in words.
        protocol: how a row is counted.
        scorer: the recogniser of the hypotheses, where there is one.

    Raises:
        PackageError: jiwer is not installed.
    """
    return _error_rate([word_errors(*pair) for pair in pairs], protocol, scorer)


def word_errors(reference: str, hypothesis: str) -> tuple[int, int]:
    """Return the number of substituted, deleted and inserted words, and of the reference's words.

    Raises:
        PackageError: jiwer is not installed.
    """
    expected, actual = words_of(reference), words_of(hypothesis)
    # jiwer has no rate for an empty reference.
    if not expected:
        return len(actual), 0
    output = JIWER.load().process_words(" ".join(expected), " ".join(actual))
    return output.substitutions + output.deletions + output.insertions, len(expected)


def token_error(pairs: Sequence[tuple[Sequence[int], Sequence[int]]], protocol: str) -> Score:
    """Return the token error rate over all tokens, with a bootstrap interval over rows.

    Args:
        pairs: (reference, hypothesis) token ids, [N] and [M].
        protocol: how a row is counted.
    """
    errors = [
        (edit_distance(hypothesis, reference), len(reference)) for reference, hypothesis in pairs
    ]
    return _error_rate(errors, protocol, None)


def _error_rate(errors: Sequence[tuple[int, int]], protocol: str, scorer: str | None) -> Score:
    """The rate of (errors, reference length) pairs, of sums: long rows count for more."""
    size = sum(length for _, length in errors)
    if not size:
        return Score(None, len(errors), None, None, protocol, scorer)
    low, high = _bootstrap([_Ratio(*pair) for pair in errors])
    rate = sum(count for count, _ in errors) / size
    return Score(rate, len(errors), low, high, protocol, scorer)


def mean(values: Sequence[float], protocol: str, scorer: str | None = None) -> Score:
    """Return the mean over rows, with a bootstrap interval over rows."""
    if not values:
        return Score(None, 0, None, None, protocol, scorer)
    low, high = _bootstrap([_Ratio(value, 1) for value in values])
    return Score(sum(values) / len(values), len(values), low, high, protocol, scorer)


def difference(
    left: Sequence[tuple[float, float]],
    right: Sequence[tuple[float, float]],
    protocol: str,
    scorer: str | None = None,
) -> Score:
    """Return the paired difference of two rates over the same rows.

    The bootstrap draws pairs, so what makes a row hard for both sides does not widen the interval.

    Args:
        left: (numerator, denominator) of each row.
        right: of the same rows.
        protocol: how a row is counted.
        scorer: the model that scored, where one did.

    Returns:
        the difference, negative where `left` is lower.
    """
    rows = list(zip(left, right, strict=True))
    if _difference(rows) is None:
        return Score(None, len(rows), None, None, protocol, scorer)
    # Seeded, so that a report does not change when it is made again.
    rng = random.Random(0)
    samples = (_difference(rng.choices(rows, k=len(rows))) for _ in range(DRAWS))
    # A sample of rows whose denominators are all 0 has no rate.
    values = sorted(value for value in samples if value is not None)
    return Score(_difference(rows), len(rows), *_middle_95(values), protocol, scorer)


def _difference(rows: Sequence[tuple[tuple[float, float], tuple[float, float]]]) -> float | None:
    """Rate of the left side minus that of the right side; None where a denominator is 0."""
    left, right = (
        (sum(pair[side][0] for pair in rows), sum(pair[side][1] for pair in rows))
        for side in (0, 1)
    )
    if not left[1] or not right[1]:
        return None
    return left[0] / left[1] - right[0] / right[1]


def word_f1(reference: str, hypothesis: str) -> float:
    """Return the F1 of two texts' words in any order: 1 for the same words, 0 for no common one.

    Source: Rajpurkar et al. 2016, SQuAD, arXiv:1606.05250.
    """
    expected, actual = words_of(reference), words_of(hypothesis)
    if not expected or not actual:
        return float(expected == actual)
    shared = sum((Counter(expected) & Counter(actual)).values())
    # The harmonic mean of precision and recall, without dividing by 0 where nothing is shared.
    return 2 * shared / (len(expected) + len(actual))


def same_words(reference: str, hypothesis: str) -> bool:
    """Return whether two texts are word for word the same."""
    return words_of(reference) == words_of(hypothesis)


@dataclass(frozen=True, slots=True)
class _Ratio:
    numerator: float
    denominator: float


def _bootstrap(rows: Sequence[_Ratio]) -> tuple[float, float]:
    """Percentile interval of a ratio of sums over rows."""
    # Seeded, so that a report does not change when it is made again.
    rng = random.Random(0)
    values = []
    for _ in range(DRAWS):
        sample = rng.choices(rows, k=len(rows))
        denominator = sum(row.denominator for row in sample)
        # A sample of rows whose denominators are all 0 has no ratio.
        if denominator:
            values.append(sum(row.numerator for row in sample) / denominator)
    return _middle_95(sorted(values))


def _middle_95(values: Sequence[float]) -> tuple[float, float]:
    """The 2.5 and 97.5 % quantiles of sorted values, rounded outwards."""
    return values[int(0.025 * (len(values) - 1))], values[math.ceil(0.975 * (len(values) - 1))]
