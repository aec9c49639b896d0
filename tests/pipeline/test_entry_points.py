"""What an installed package brings by entry point: recipes, presets and subjects of commands."""

import sys

import pytest

from echox.core.errors import EchoxError
from echox.core.registry import FAILURES
from echox.pipeline.recipe import load_recipe
from echox.pipeline.recipe_files import list_recipes
from echox_cli import evaluate, prepare

ENTRY_POINTS = """
    [echox.recipes]
    lab = lab_of_tests.recipes
    broken = lab_of_tests.nowhere
    module = lab_of_tests.frequencies

    [echox.subjects]
    prepare.frequencies = lab_of_tests.frequencies:subject
    evaluate.frequencies = lab_of_tests.frequencies:subject
    prepare.faulty = lab_of_tests.frequencies:gone
    prepare.wrong = lab_of_tests.frequencies:count
    prepare.manifest = lab_of_tests.frequencies:subject
"""
FREQUENCIES = """
    from dataclasses import dataclass, field
    from pathlib import Path

    from echox.core.errors import ConfigError
    from echox.pipeline.subjects import Subject


    @dataclass(kw_only=True, slots=True)
    class FrequenciesConfig:
        \"\"\"Count letters.\"\"\"

        texts: list[str] = field(default_factory=list)
        \"\"\"Texts to count.\"\"\"
        letter: str = "a"
        \"\"\"Letter to look for.\"\"\"


    def count(config: FrequenciesConfig) -> None:
        if not config.texts:
            raise ConfigError("no text was named")
        print(sum(text.count(config.letter) for text in config.texts))


    subject = Subject(FrequenciesConfig, count, "texts")
"""


@pytest.fixture
def package(toy_workspace, write, monkeypatch):
    """An installed distribution, whose metadata and package lie in a folder of the path."""
    site = "site/lab_of_tests-1.0.dist-info"
    write(f"{site}/METADATA", "Metadata-Version: 2.1\nName: lab-of-tests\nVersion: 1.0\n")
    write(f"{site}/entry_points.txt", ENTRY_POINTS)
    write("site/lab_of_tests/__init__.py", "")
    write("site/lab_of_tests/frequencies.py", FREQUENCIES)
    write("site/lab_of_tests/recipes/of_lab.yaml", "doc: Of a lab.\ndefaults: [_lab, _self_]\n")
    write("site/lab_of_tests/recipes/_lab.yaml", "defaults: [toy, _self_]\nseed: 11\n")
    write("site/lab_of_tests/recipes/echo_tiny.yaml", "doc: A thief of a name.\n")
    preset = "defaults: [toy_ear, _self_]\nwidth: 77\n"
    write("site/lab_of_tests/recipes/encoder/lab_ear.yaml", preset)
    monkeypatch.syspath_prepend(toy_workspace / "site")
    yield toy_workspace / "site"
    for name in [name for name in sys.modules if name.startswith("lab_of_tests")]:
        del sys.modules[name]


def reasons():
    return {failure.origin: failure.reason for failure in FAILURES}


def test_recipes_and_presets_of_a_package_are_found(package):
    recipe = load_recipe("of_lab", ["encoder=lab_ear"])
    assert (recipe.seed, recipe.encoder.width) == (11, 77)
    assert load_recipe("toy", ["encoder=lab_ear"]).encoder.width == 77


def test_a_package_replaces_no_recipe_of_echox(package):
    assert not list_recipes()["echo_tiny"].is_relative_to(package)


def test_entry_points_without_recipes_are_named_where_one_is_missing(package):
    with pytest.raises(
        EchoxError, match="no recipe named 'of_lbo'; did you mean 'of_lab'"
    ) as error:
        load_recipe("of_lbo")
    for name in ("nowhere", "frequencies"):
        assert f"lab_of_tests.{name} is no package or folder of a package" in str(error.value)
    # Searched twice, recorded once.
    assert len([origin for origin in reasons() if "lab_of_tests.nowhere" in origin]) == 1


@pytest.mark.parametrize("command", [prepare, evaluate])
def test_a_subject_of_a_package_is_run(package, capsys, command):
    assert command.main(["frequencies", "banana", "aha", "letter=a"]) == 0
    assert capsys.readouterr().out == "5\n"
    assert command.main(["frequencies"]) == 2
    assert f"{command.PROGRAM} frequencies: no text was named\n" in capsys.readouterr().err


def test_a_subject_of_a_package_explains_itself(package, capsys):
    assert prepare.main(["--help"]) == 0
    assert "frequencies Count letters." in capsys.readouterr().out
    assert evaluate.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "frequencies    Count letters." in text and "ablation" in text
    assert prepare.main(["frequencies", "--help"]) == 0
    assert "Letter to look for." in capsys.readouterr().out
    assert "frequencies" in prepare.offers([]).candidates
    assert "frequencies" in evaluate.offers([]).candidates
    assert "letter=" in evaluate.offers(["frequencies"]).candidates


def test_subjects_that_do_not_load_end_no_command_and_are_named(package, capsys):
    assert prepare.main(["faulty"]) == 2
    text = capsys.readouterr().err
    assert "no command 'faulty'" in text and "has no attribute 'gone'" in text
    assert "frequencies:count must be a Subject" in text
    assert "prepare.manifest is there already; choose another name" in text
    assert prepare.main(["manifest", "nowhere"]) == 2
    assert "the source nowhere does not exist" in capsys.readouterr().err
