"""The commands on the pages work."""

import re
import shlex
from pathlib import Path

import pytest

from echox.plugins import discover
from echox.recipe import list_recipes
from echox_cli import info, prepare, train

ROOT = Path(__file__).parent.parent


def commands(page):
    """The lines of a page's bash blocks that call a door."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines() if line.startswith("echox-")]


def test_the_plugin_page_can_be_followed(house):
    for door, *words in commands("plugins/README.md"):
        if door == "echox-prepare":
            assert prepare.main(words) == 0
        elif door == "echox-info":
            assert info.main(words) == 0
        elif list_recipes():
            assert train.main([*words, "--cfg"]) == 0
    assert discover().files == (Path("plugins/sharp_ear_encoder.py"),)


def test_the_plugin_page_names_the_test_that_is_written(house):
    assert "python -m pytest plugins/test_sharp_ear_encoder.py" in (ROOT / "plugins/README.md").read_text(encoding="utf-8")


def test_the_example_plugin_fits_on_a_page():
    assert len((ROOT / "plugins/mel_encoder.py").read_text(encoding="utf-8").splitlines()) <= 30


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_the_test_command_is_the_same_everywhere(page):
    assert '.venv/bin/pip install -c constraints.txt -e ".[test]" && .venv/bin/python -m pytest -q' in (ROOT / page).read_text(encoding="utf-8")


def test_the_readme_s_recipe_composes(house, write):
    (recipe,) = re.findall(r"```yaml\n(# echox-train recipe=my_run.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    write("recipes/my_run.yaml", recipe)
    assert train.main(["recipe=my_run", "--cfg"]) == 0
