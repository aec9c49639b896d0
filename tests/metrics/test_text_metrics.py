import pytest

from echox.core.errors import PluginError
from echox.metrics.base import MetricConfig, text_scores
from echox.metrics.text import CharacterErrorConfig, WordErrorConfig


def test_scores_are_of_sums_over_rows_and_not_means_of_rows():
    pairs = [("one two three four", "one two three four"), ("cat", "cut up")]
    metrics = {"wer": WordErrorConfig(), "letters": CharacterErrorConfig()}
    # Two of five words; "cat" -> "cut up" takes four edits, and there are 18 + 3 characters.
    scores = text_scores(metrics, pairs)
    assert scores["wer"] == 2 / 5
    assert scores["letters"] == pytest.approx(4 / 21)


def test_numbers_case_and_punctuation_are_no_errors():
    assert text_scores({"wer": WordErrorConfig()}, [("It is 23.", "it is twenty three")]) == {
        "wer": 0.0
    }


def test_without_any_reference_there_is_no_score():
    assert text_scores({"wer": WordErrorConfig()}, [("", "words")]) == {}
    assert text_scores({"wer": WordErrorConfig()}, []) == {}


def test_a_config_of_no_metric_is_refused():
    with pytest.raises(PluginError, match="MetricConfig is not the config of any"):
        text_scores({"x": MetricConfig()}, [])
