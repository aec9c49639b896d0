"""What pyproject.toml installs is what lies on the disk."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_package_is_listed():
    folders = {path.parent for name in ("echox", "echox_cli") for path in (ROOT / name).rglob("*.py")}
    on_disk = {".".join(folder.relative_to(ROOT).parts) for folder in folders} | {"echox_plugins", "echox_recipes"}
    assert sorted(on_disk) == PROJECT["tool"]["setuptools"]["packages"]


def test_every_door_has_a_script():
    scripts = {target.partition(":")[0] for target in PROJECT["project"]["scripts"].values()}
    doors = {f"echox_cli.{path.stem}" for path in (ROOT / "echox_cli").glob("*.py") if "def main(" in path.read_text(encoding="utf-8")}
    assert doors == scripts


def test_the_top_level_stays_as_it_is():
    expected = {"echox", "echox_cli", "plugins", "recipes", "tests", "pyproject.toml", "README.md", "LICENSE", "CONTRIBUTING.md", "CHANGELOG.md"}
    made_by_running = {"runs", "outputs", "build", "dist", "corpora", "echox.egg-info", "__pycache__"}
    assert {path.name for path in ROOT.iterdir() if not path.name.startswith(".")} - made_by_running <= expected
