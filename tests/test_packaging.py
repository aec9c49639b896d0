"""What pyproject.toml installs is what lies on the disk."""

import ast
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_package_is_listed():
    folders = {path.parent for name in ("echox", "echox_cli") for path in (ROOT / name).rglob("*.py")}
    on_disk = {".".join(folder.relative_to(ROOT).parts) for folder in folders} | {"echox_plugins", "echox_recipes"}
    assert sorted(on_disk) == PROJECT["tool"]["setuptools"]["packages"]


def test_every_door_has_a_script():
    doors = [path.stem for path in (ROOT / "echox_cli").glob("*.py") if "def main(" in path.read_text(encoding="utf-8")]
    assert PROJECT["project"]["scripts"] == {f"echox-{door}": f"echox_cli.start:{door}" for door in sorted(doors)}


def test_the_top_level_stays_as_it_is():
    expected = {
        "echox",
        "echox_cli",
        "plugins",
        "recipes",
        "tests",
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
    }
    made_by_running = {"runs", "outputs", "build", "dist", "corpora", "echox.egg-info", "__pycache__"}
    assert {path.name for path in ROOT.iterdir() if not path.name.startswith(".")} - made_by_running <= expected


def oldest_python():
    """The (major, minor) that pyproject.toml promises to run on."""
    return tuple(map(int, PROJECT["project"]["requires-python"].removeprefix(">=").split(".")))


@pytest.mark.parametrize("room", ["echox", "echox_cli", "plugins", "recipes", "tests"])
def test_every_file_keeps_to_the_oldest_python(room):
    newer = {
        "hashlib": "file_digest",
        "contextlib": "chdir",
        "datetime": "UTC",
        "enum": "StrEnum",
        "typing": "Self",
        "itertools": "batched",
    }
    for path in sorted((ROOT / room).rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path), feature_version=oldest_python())
        named = {
            f"{node.value.id}.{node.attr}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        }
        named |= {f"{node.module}.{name.name}" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for name in node.names}
        assert not named & {f"{module}.{name}" for module, name in newer.items()}, f"{path} uses what {oldest_python()} does not have"


def test_the_classifiers_begin_with_the_oldest_python():
    versions = [word for line in PROJECT["project"]["classifiers"] if (word := line.rpartition(" :: ")[2]).startswith("3.")]
    assert versions[0] == ".".join(map(str, oldest_python()))
