"""The code of a part: its file, its package, the parts inside it; installed packages by version."""

import importlib
import importlib.metadata
import sys

import pytest
from torch import nn

from echox.core import sources
from echox.core.sources import code_of
from echox.encoders.ssl import SslConfig, SslEncoder

PART = """
from torch import nn
class Part(nn.Module):
    def fingerprint(self):
        return "part"
"""
PACKAGE = {
    "__init__.py": "from .part import Part",
    "part.py": "from .wave import TWO\n" + PART,
    "wave.py": "TWO = 2",
}


@pytest.fixture
def imported(tmp_path, monkeypatch):
    """Imports `Part` of a module or package anew, from files by name."""
    monkeypatch.setattr(sources, "_FILES", {})

    def part(files, folder="here", name="some_part"):
        root = tmp_path / folder
        for path, text in files.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)
        monkeypatch.setattr(sys, "path", [str(root), *sys.path])
        for module in [it for it in sys.modules if it.partition(".")[0] == name]:
            del sys.modules[module]
        sources._FILES.clear()
        importlib.invalidate_caches()
        return importlib.import_module(name).Part()

    yield part
    for module in [it for it in sys.modules if it.partition(".")[0] == "some_part"]:
        del sys.modules[module]


def package(**changed):
    files = PACKAGE | {f"{name}.py": text for name, text in changed.items()}
    return {f"some_part/{name}": text for name, text in files.items()}


def test_the_file_of_a_module_counts_wherever_it_lies(imported):
    first = code_of(imported({"some_part.py": PART}, "one"))
    moved = code_of(imported({"some_part.py": PART}, "two"))
    changed = code_of(imported({"some_part.py": PART.replace('"part"', '"other"')}, "three"))
    assert first == moved and first.digest != changed.digest and not first.is_own


def test_all_modules_of_a_package_count(imported):
    first = code_of(imported(package(), "one"))
    assert code_of(imported(package(wave="TWO = 2  # twice"), "two")) == first
    assert code_of(imported(package(wave="TWO = 3"), "three")) != first


def test_a_part_inside_a_part_counts(imported):
    own = SslEncoder(SslConfig(weights="random"))
    assert code_of(own).is_own and code_of(own) == code_of(own, own)
    own.inner = imported({"some_part.py": PART})
    inside = code_of(own)
    assert not inside.is_own and inside == code_of(SslEncoder(SslConfig(weights="random")), own)
    own.inner = nn.Linear(1, 1)  # a layer is no part
    assert code_of(own).is_own


def test_an_installed_package_counts_by_its_version(imported, monkeypatch):
    versions = {"its-name": "1.0"}
    monkeypatch.setattr(
        importlib.metadata, "packages_distributions", lambda: {"some_part": ["its-name"]}
    )
    monkeypatch.setattr(importlib.metadata, "version", versions.__getitem__)
    first = code_of(imported(package(), "site-packages"))
    assert code_of(imported(package(wave="TWO = 3"), "a/site-packages")) == first
    versions["its-name"] = "1.1"
    assert code_of(imported(package(), "b/site-packages")) != first
