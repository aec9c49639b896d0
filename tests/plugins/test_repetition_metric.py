"""The worked example of a metric, and how a recipe gives it to a task."""

import pytest

from echox.core.errors import ConfigError, EchoxError
from echox.metrics.base import METRICS, text_scores
from echox.metrics.text import WordErrorConfig
from echox.pipeline.plugins import discover
from echox.pipeline.recipe import from_dict, load_recipe, to_dict


def test_a_loop_is_seen():
    discover()
    metrics = {"loops": METRICS["repetition"].config_type(words=2)}
    # "a b", "b a", "a b", "b c": one of four runs stood before.
    assert text_scores(metrics, [("", "a b a b c")]) == {"loops": 0.25}
    assert text_scores(metrics, [("", "a b c d")]) == {"loops": 0.0}
    assert text_scores(metrics, [("a", "short"), ("", "")]) == {}
    with pytest.raises(ConfigError, match="words must be at least 1"):
        METRICS["repetition"].config_type(words=0)


def test_a_recipe_adds_metrics_by_name(workspace, write):
    discover()
    words = ["s2t.task.metrics.wer=wer", "s2t.task.metrics.loops=repetition"]
    recipe = load_recipe("echo_tiny", [*words, "s2t.task.metrics.loops.words=2"])
    metrics = recipe.plan("s2t").task.metrics
    assert metrics["wer"] == WordErrorConfig() and metrics["loops"].words == 2
    assert from_dict(to_dict(recipe)) == recipe
    write(
        "recipes/scored.yaml",
        "defaults:\n  - echo_tiny\n  - metric@stages.s2t.task.metrics.words: wer\n  - _self_\n",
    )
    assert load_recipe("scored").plan("s2t").task.metrics == {"words": WordErrorConfig()}
    with pytest.raises(EchoxError, match="no metric named 'wre'; did you mean 'wer'"):
        load_recipe("echo_tiny", ["s2t.task.metrics.x=wre"])
