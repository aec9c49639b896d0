"""Recipes built on others, and recipes as text that is read back."""

import dataclasses

import pytest

from echox.core.errors import ConfigError
from echox.encoders.base import ENCODERS
from echox.pipeline.plugins import discover
from echox.pipeline.recipe import load_recipe
from echox.pipeline.recipe_text import recipe_text
from echox.pipeline.run import run_recipe
from echox_cli import train


@pytest.fixture(autouse=True)
def plugins(workspace):
    discover()


def test_a_recipe_replaces_a_part_of_the_one_it_builds_on(write):
    write("recipes/ear.yaml", "defaults: [echo_mini, override encoder: mel, _self_]\n")
    mel, recipe = ENCODERS["mel"].config_type, load_recipe("ear")
    # What echo_mini says of its own encoder is not said of this one.
    assert recipe.encoder == mel()
    assert recipe.backbone == load_recipe("echo_mini").backbone
    write(
        "recipes/forty.yaml",
        "defaults: [ear, override criterion@stages.s2t.criterion: focal, _self_]\n"
        "encoder: {bins: 40}\n",
    )
    forty = load_recipe("forty")
    assert forty.encoder == mel(bins=40)
    assert type(forty.plan("s2t").criterion).__name__ == "FocalConfig"
    write("recipes/back.yaml", "defaults: [forty, override encoder: whisper, _self_]\n")
    assert load_recipe("back").encoder.tail_s == type(load_recipe("echo_mini").encoder)().tail_s


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("echo_tiny", ["backbone=spoken_style", "s2t.task.metrics.loops=repetition"]),
        ("echo_mini", ["encoder.train=true", "seed=7", "stage=t2c", r"doc='\${x} 1e-3'"]),
        ("turn_taking", ["run_dir=1e-3", "turn_taking.train.lr=1e-9"]),
    ],
)
def test_what_is_printed_is_the_same_recipe_when_it_is_read(write, capsys, name, overrides):
    assert train.main([f"recipe={name}", *overrides, "--cfg"]) == 0
    write("c.yaml", capsys.readouterr().out)
    assert load_recipe("c.yaml") == load_recipe(name, overrides)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("stages: {align: {task: turns}}", "write '- task@stages.align.task: turns' in its"),
        ("stages: {align: {criterion: ctc}}", "'- override criterion@stages.align.criterion: ctc'"),
        ("stages: {align: turns}", "stages.align takes a plan, {task: ..., train: ...}, or null"),
        ("stages: [align]", "stages takes a mapping of names to plans"),
        ("encoder: {name: mel, bins: 40}", "names the encoder 'mel' in its body, at encoder; "),
        (
            "stages: {s2t: {task: {metrics: {loops: repetition}}}}",
            "'- metric@stages.s2t.task.metrics.loops: NAME'",
        ),
    ],
)
def test_a_name_where_fields_belong_is_refused_with_its_place(write, body, sentence):
    write("recipes/wrong.yaml", f"defaults: [echo_mini, _self_]\n{body}\n")
    # Of an inherited file too, which is named.
    write("recipes/heir.yaml", "defaults: [wrong, _self_]\n")
    for name in ("wrong", "heir"):
        with pytest.raises(ConfigError) as error:
            load_recipe(name)
        assert sentence in str(error.value) and "\n" not in str(error.value)


def test_a_run_leaves_its_recipe(workspace, monkeypatch):
    monkeypatch.setattr("echox.pipeline.run.run_step", lambda *_: None)
    recipe = load_recipe("echo_tiny", ["run_dir=runs/mine", "s2t.train.steps=7", "report=null"])
    run_recipe(dataclasses.replace(recipe, overwrite=True))
    assert load_recipe("runs/mine/recipe.yaml") == recipe
    assert (workspace / "runs/mine/recipe.yaml").read_text("utf-8").startswith("# echox-train rec")
    assert recipe_text(load_recipe("runs/mine/recipe.yaml")) == recipe_text(recipe)
