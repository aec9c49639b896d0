"""Errors for packages that are missing or do not import."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

from echox.core import packages
from echox.core.errors import PackageError
from echox.core.packages import OptionalPackage, library_fault, missing_text, require
from echox.pipeline import plugins

ROOT = Path(__file__).parents[2]
OPTIONAL = [value for value in vars(packages).values() if isinstance(value, OptionalPackage)]
BROKEN = "from ctypes import CDLL\nCDLL('libnowhere.so.13')\n"


@pytest.fixture
def library(tmp_path, monkeypatch):
    """Writes a library and returns the folder to import it from; its modules are removed after."""

    def write(name, **files):
        for file, text in files.items():
            path = tmp_path / "libraries" / name / f"{file}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        monkeypatch.syspath_prepend(tmp_path / "libraries")
        return tmp_path / "libraries"

    yield write
    written = str(tmp_path)
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(written):
            del sys.modules[name]


def fault_of(code):
    """Returns the error for a module of echox with this code."""
    with pytest.raises(Exception) as caught:
        exec(code, {"__name__": "echox.somewhere"})
    # As if a command had run it, rather than this file.
    return library_fault(caught.value.with_traceback(caught.tb.tb_next))


@pytest.mark.parametrize("package", OPTIONAL, ids=lambda package: package.name)
def test_a_missing_package_is_one_sentence_with_the_command(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package.module, None)
    with pytest.raises(PackageError) as caught:
        package.load()
    requirement = f"echox[{package.extra}]" if package.extra else package.name
    assert str(caught.value) == (
        f"{package.name} ({package.use}) is not installed; "
        f"install it with: {sys.executable} -m pip install '{requirement}'"
    )


def test_several_missing_packages_are_one_sentence():
    missing = [
        OptionalPackage(name, name, extra, "tests")
        for name, extra in (("b", "two"), ("a", "one"), ("c", "two"), ("d", None))
    ]
    assert missing_text(missing) == (
        "b (tests), a (tests), c (tests) and d (tests) are not installed; "
        f"install them with: {sys.executable} -m pip install 'echox[one,two]' 'd'"
    )
    with pytest.raises(PackageError, match="^b .tests., a .tests. and c .tests. are"):
        require([*missing[:3], OptionalPackage("json", "json", None, "tests"), missing[0]])


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"__init__": BROKEN}, "libnowhere.so.13: cannot open shared object file"),
        ({"__init__": "from brittle import inner", "inner": BROKEN}, "libnowhere.so.13"),
        (
            {
                "__init__": "try:\n    1 / 0\nexcept ZeroDivisionError as e:\n"
                "    raise OSError('outer') from e"
            },
            "(division by zero)",
        ),
        ({"__init__": "raise RuntimeError('compiled\\n for another')"}, "(compiled for another)"),
        (
            {"__init__": "def __getattr__(name):\n    raise ImportError(f'late {name}')"},
            "(late part)",
        ),
        ({"__init__": ""}, "(cannot import name 'part' from 'brittle'"),
    ],
)
def test_a_library_that_does_not_import_is_named(library, monkeypatch, files, reason):
    library("brittle", **files)
    monkeypatch.setattr(
        "importlib.metadata.packages_distributions", lambda: {"brittle": ["brittle-dist"]}
    )
    monkeypatch.setattr("importlib.metadata.version", lambda name: {"brittle-dist": "1.2"}[name])
    fault = str(fault_of("from brittle import part"))
    assert fault.startswith("brittle-dist 1.2 does not import (") and reason in fault
    assert fault.endswith(
        f"; install one that does with: {sys.executable} -m pip install --upgrade 'brittle-dist'"
    )


def test_a_library_that_depends_on_another_release_is_named_with_it(library, monkeypatch):
    library("torchaudio", __init__="from torchaudio import extension", extension=BROKEN)
    monkeypatch.delitem(sys.modules, "torchaudio", raising=False)
    fault = str(fault_of("import torchaudio"))
    torch, torchaudio = map(importlib.metadata.version, ("torch", "torchaudio"))
    assert fault.startswith(
        f"torchaudio {torchaudio} does not import beside torch {torch} (libnowhere.so.13"
    )
    command = fault.partition("install releases that fit each other with: ")[2]
    assert command.startswith(f"{sys.executable} -m pip install --upgrade 'torch")
    assert " 'torchaudio" in command


def test_a_missing_library_is_named():
    fault = str(fault_of("import gone_library.part"))
    assert fault == (
        "gone_library is not installed; "
        f"install it with: {sys.executable} -m pip install 'gone_library'"
    )


@pytest.mark.parametrize(
    "bug",
    [
        "import echox.nowhere",
        "from echox.core.errors import Nothing",
        "import json.nowhere",
        "raise OSError('odd')",
        "1 / 0",
        "import torch\ntorch.zeros(1).view(2)",
    ],
)
def test_a_bug_is_not_blamed_on_a_library(bug):
    assert fault_of(bug) is None


@pytest.mark.parametrize("name", ["train", "generate", "prepare", "evaluate", "info", "bench"])
@pytest.mark.parametrize("entry", ["script", "module"])
def test_every_command_prints_it_in_one_line(library, tmp_path, name, entry):
    folder = library("torch", __init__=BROKEN)
    call = (
        ["-c", f"import sys; from echox_cli.start import {name}; sys.exit({name}())"]
        if entry == "script"
        else ["-m", f"echox_cli.{name}"]
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(folder), str(ROOT)))}
    result = subprocess.run(
        [sys.executable, *call, "--cfg"],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
        env=environment,
    )
    assert result.returncode == 2
    assert result.stderr.startswith(f"echox-{name}: torch ") and result.stderr.count("\n") == 1
    assert "libnowhere.so.13" in result.stderr


def test_a_built_in_part_without_its_library_is_an_error_at_once(monkeypatch, library):
    library("brittle", __init__=BROKEN)
    monkeypatch.setattr(plugins, "_seen", set())
    monkeypatch.setattr(plugins, "FAILURES", [])
    monkeypatch.setattr(plugins, "_built_in_modules", lambda: ["echox.encoders.of_a_test"])
    monkeypatch.setattr("importlib.metadata.packages_distributions", lambda: {"brittle": ["numpy"]})
    monkeypatch.setattr(
        plugins.importlib, "import_module", lambda name: exec("import brittle", {"__name__": name})
    )
    with pytest.raises(PackageError, match="^numpy .* does not import .libnowhere"):
        plugins.discover()
