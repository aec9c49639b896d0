"""Scores on examples small enough to count by hand."""

import random

import jiwer
import pytest

from echox.data.text import words_of
from echox.evaluation.scores import (
    accuracy,
    difference,
    mean,
    same_words,
    token_error,
    wilson,
    word_error,
    word_errors,
    word_f1,
)


def test_accuracy_and_its_interval():
    score = accuracy([True, True, False, True], "s2t-em", "asr")
    assert (score.value, score.count, score.protocol, score.scorer) == (0.75, 4, "s2t-em", "asr")
    # Newcombe 1998, table I: 81 of 263 and 0 of 20.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson(20, 20) == pytest.approx((0.8389, 1.0), abs=1e-4)


@pytest.mark.parametrize(
    "score",
    [
        accuracy([], "p"),
        word_error([], "p"),
        word_error([("", "a b")], "p"),
        token_error([], "p"),
        mean([], "p"),
        difference([], [], "p"),
    ],
)
def test_without_rows_there_is_no_value(score):
    assert score.value is score.low is score.high is None


def test_words_are_compared_as_they_are_spoken():
    assert word_errors("Seven plus nine is sixteen.", "7 plus 9 is 16") == (0, 5)
    assert word_errors("The capital is Bogotá!", "the capital is bogota") == (0, 4)
    assert word_errors("one two three", "one three four five") == (3, 3)
    assert word_errors("one two", "") == (2, 2)
    assert word_errors("", "one two") == (2, 0)


def test_word_error_is_over_all_words_not_over_rows():
    score = word_error([("a b c d e f g h", "a b c d e f g h"), ("a b", "c d")], "asr-wer")
    assert score.value == pytest.approx(2 / 10) and score.count == 2
    assert 0.0 <= score.low <= score.value <= score.high <= 1.0


def test_word_error_equals_jiwer_on_a_corpus():
    rng = random.Random(5)
    pairs = [
        (
            " ".join(rng.choices("abcde", k=rng.randint(1, 9))),
            " ".join(rng.choices("abcde", k=rng.randint(0, 9))),
        )
        for _ in range(50)
    ]
    references, hypotheses = ([" ".join(words_of(text)) for text in side] for side in zip(*pairs))
    assert word_error(pairs, "asr-wer").value == pytest.approx(
        jiwer.wer(list(references), list(hypotheses))
    )


def test_token_error():
    assert token_error([([1, 2, 3, 4], [1, 3, 4]), ([5], [5])], "ctc").value == pytest.approx(1 / 5)
    assert token_error([([1], [2, 3, 4])], "ctc").value == pytest.approx(3.0)


def test_an_interval_is_the_same_every_time():
    values = [float(number % 7) for number in range(40)]
    assert mean(values, "mos") == mean(values, "mos")
    assert mean([3.0] * 5, "mos").low == mean([3.0] * 5, "mos").high == 3.0


def test_a_paired_difference_has_a_narrow_interval():
    left = [(float(number % 2), 1) for number in range(60)]
    right = [(left[number][0] + (number % 6 == 0), 1) for number in range(60)]
    score = difference(left, right, "paired")
    assert score.value == pytest.approx(-10 / 60)
    assert score.low < score.value < score.high < 0
    assert difference(left, left, "paired").high == 0.0


def test_overlap_of_words():
    assert word_f1("The sky is blue.", "the sky is BLUE") == 1.0
    assert word_f1("a a b", "a b b") == pytest.approx(2 / 3)
    assert word_f1("a", "b") == word_f1("a", "") == 0.0 and word_f1("", "!") == 1.0
    assert same_words("It's 3.", "its three") and not same_words("a b", "b a")
