"""The commands on the pages work."""

import re
import shlex
from pathlib import Path

import pytest

from echox.pipeline.plugins import discover
from echox.pipeline.recipe_files import list_recipes
from echox_cli import info, prepare, train

ROOT = Path(__file__).parent.parent


def commands(page):
    """The lines of a page's bash blocks that call a command."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    return [
        shlex.split(line)
        for block in blocks
        for line in block.splitlines()
        if line.startswith("echox-")
    ]


def test_the_plugin_page_can_be_followed(workspace):
    for command, *words in commands("plugins/README.md"):
        if command == "echox-prepare":
            assert prepare.main(words) == 0
        elif command == "echox-info":
            assert info.main(words) == 0
        elif list_recipes():
            assert train.main([*words, "--cfg"]) == 0
    assert discover().files == (Path("plugins/sharp_ear_encoder.py"),)


def test_the_plugin_page_names_the_test_that_is_written(workspace):
    assert "python -m pytest plugins/test_sharp_ear_encoder.py" in (
        ROOT / "plugins/README.md"
    ).read_text(encoding="utf-8")


def test_the_example_plugin_fits_on_a_page():
    lines = (ROOT / "plugins/mel_encoder.py").read_text(encoding="utf-8").splitlines()
    assert len([line for line in lines if line.strip() and not line.strip().startswith("#")]) <= 40


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_the_test_command_is_the_same_everywhere(page):
    assert (
        '.venv/bin/pip install -c constraints.txt -e ".[test]" && .venv/bin/python -m pytest -q'
        in (ROOT / page).read_text(encoding="utf-8")
    )


def test_the_readme_s_recipe_composes(workspace, write):
    (recipe,) = re.findall(
        r"```yaml\n(# echox-train recipe=my_run.*?)```",
        (ROOT / "README.md").read_text(encoding="utf-8"),
        re.DOTALL,
    )
    write("recipes/my_run.yaml", recipe)
    assert train.main(["recipe=my_run", "--cfg"]) == 0
