"""The worked example of a backbone: another one, asked for answers that can be said aloud."""

import inspect

import pytest
import torch

from echox.backbones.base import BACKBONES, Backbone, Turn
from echox.backbones.hub import HubBackboneConfig
from echox.pipeline.plugins import discover
from echox.pipeline.recipe import from_dict, load_recipe, to_dict
from echox.testing import offline_config


@pytest.fixture
def config():
    discover()
    return offline_config(BACKBONES["spoken_style"].config_type)


def test_an_offline_config_is_offline_inside_too(config):
    assert config.inner == HubBackboneConfig(weights="random")


def test_the_style_stands_at_the_end_of_every_system_message(config):
    backbone = BACKBONES.build(config)
    for turns in ([], [Turn("system", "Be kind.")]):
        ids = backbone.prompt([*turns, Turn("user", "Why?")])
        system = Turn("system", " ".join([*(turn.text for turn in turns), config.style]))
        assert ids == backbone.inner.prompt([system, Turn("user", "Why?")])


def test_the_style_is_part_of_the_fingerprint(config):
    first = BACKBONES.build(config).fingerprint()
    config.style = "Sing."
    assert BACKBONES.build(config).fingerprint() != first


def test_nothing_of_the_inner_backbone_is_lost(config):
    """A method that is not passed on would silently be the base class's default."""
    backbone = BACKBONES.build(config)
    methods = {name for name, value in vars(Backbone).items() if inspect.isfunction(value)}
    assert methods <= set(vars(type(backbone)))
    embeddings, mask = torch.randn(2, 3, 64), torch.ones(2, 3, dtype=torch.bool)
    for name in ("forward", "forward_lower", "forward_upper"):
        result = getattr(backbone, name)(embeddings, mask)
        expected = getattr(backbone.inner, name)(embeddings, mask)
        hidden = (getattr(it, "hidden", it) for it in (result, expected))
        torch.testing.assert_close(*hidden)


def test_a_recipe_sets_the_backbone_inside(workspace):
    discover()
    recipe = load_recipe("echo_tiny", ["backbone=spoken_style", "backbone.inner.weights=random"])
    assert recipe.backbone.inner.weights == "random"
    assert from_dict(to_dict(recipe)) == recipe
    implementation = BACKBONES.entry_of(recipe.backbone).implementation
    outline = implementation.outline(recipe.backbone)
    assert all(parameter.is_meta for parameter in outline.parameters())
