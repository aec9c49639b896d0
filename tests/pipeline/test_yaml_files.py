"""Recipes of any size, depth and number of aliases are refused in a sentence and at once."""

import time

import pytest

from echox.core.errors import ConfigError
from echox.pipeline.plugins import discover
from echox.pipeline.recipe import load_recipe
from echox.pipeline.recipe_files import list_recipes, recipe_doc, recipe_folders
from echox.pipeline.yaml_files import check_files, read_yaml

# Each name stands for nine of the one before: 9 ** 9 values.
BOMB = "a0: &a0 [x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
)
HOSTILE = {
    "deep": ("doc: " + "[" * 1_000 + "]" * 1_000, "nested more than 40|maximum nesting depth"),
    "deep mappings": ("doc: " + "{a: " * 500 + "1" + "}" * 500, "nested more than 40"),
    "aliases": (BOMB, "more than 20,000 values, aliases expanded"),
    "an alias of itself": ("doc: &a [*a]\n", "has an alias of what it stands in, [*]a"),
    "keys": ("".join(f"k{n}: 1\n" for n in range(20_000)), "more than 20,000 values"),
    "a long line": ("doc: " + "x" * (1 << 20), "is larger than 256 kB"),
    "a long number": ("seed: " + "9" * 5_000, "cannot be read: Exceeds the limit"),
    "no date": ("doc: 2024-13-45\n", "cannot be read: month must be in 1..12"),
    "half a character": (b"doc: \xff\xfe\xff", "cannot be read|not valid"),
    "a list": ("[1]", "is not a recipe"),
}


@pytest.mark.parametrize("content, reason", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_is_refused_at_once_wherever_it_is_read(tmp_path, content, reason):
    discover()
    (tmp_path / "encoder").mkdir()
    raw = content if isinstance(content, bytes) else content.encode()
    for name in ("bad", "encoder/bad"):
        (tmp_path / f"{name}.yaml").write_bytes(raw)
    (tmp_path / "heir.yaml").write_text("defaults: [bad, _self_]\n")
    (tmp_path / "user.yaml").write_text("defaults: [echo_tiny, {override encoder: bad}, _self_]\n")
    started = time.monotonic()
    with pytest.raises(ConfigError, match=reason):
        read_yaml(tmp_path / "bad.yaml")
    # In the list of all recipes the sentence stands in its place.
    assert "bad.yaml" in recipe_doc(list_recipes([tmp_path])["bad"])
    for name in ("bad", "heir", "user"):
        with pytest.raises(ConfigError, match=reason) as error:
            load_recipe(name, recipe_dirs=[tmp_path])
        assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match=reason):
        load_recipe("echo_tiny", ["encoder=bad"], recipe_dirs=[tmp_path])
    assert time.monotonic() - started < 20


def test_files_that_inherit_from_each_other_across_folders(tmp_path):
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder/a.yaml").write_text("defaults: [b, _self_]\n")
    (tmp_path / "encoder/b.yaml").write_text("defaults: [/encoder/a@here, _self_]\n")
    with pytest.raises(ConfigError, match="in a circle: a -> b -> a; break it in one"):
        check_files("encoder/a", [tmp_path])


def test_an_ending_that_hydra_does_not_find_is_refused(tmp_path):
    (tmp_path / "one.yml").write_text("defaults: [echo_tiny, _self_]\n")
    with pytest.raises(ConfigError, match="files end in .yaml, and the path is .*one.yml'; rename"):
        load_recipe(str(tmp_path / "one.yml"))


def test_the_recipes_of_echox_are_within_the_limits():
    recipes = list_recipes()
    assert len(recipes) > 5
    for name in recipes:
        check_files(name, recipe_folders())
