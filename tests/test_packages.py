"""What is told where a package is missing or does not import."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

from echox import packages, plugins
from echox.errors import PackageError
from echox.packages import OptionalPackage, library_fault, missing_text, require

ROOT = Path(__file__).parent.parent
OPTIONAL = [value for value in vars(packages).values() if isinstance(value, OptionalPackage)]
BROKEN = "from ctypes import CDLL\nCDLL('libnowhere.so.13')\n"


@pytest.fixture
def library(tmp_path, monkeypatch):
    """Writes a library of some files and gives the folder to find it in; what is imported of it is forgotten afterwards."""

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
    """What is told of a module of echox with this code."""
    with pytest.raises(Exception) as caught:
        exec(code, {"__name__": "echox.somewhere"})
    # As if a command had run it, rather than this file.
    return library_fault(caught.value.with_traceback(caught.tb.tb_next))


@pytest.mark.parametrize("package", OPTIONAL, ids=lambda package: package.name)
def test_a_missing_package_is_one_sentence_with_the_command(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package.module, None)
    with pytest.raises(PackageError) as told:
        package.load()
    wanted = f"echox[{package.extra}]" if package.extra else package.name
    assert str(told.value) == f"{package.name} ({package.use}) is not installed; install it with: {sys.executable} -m pip install '{wanted}'"


def test_several_are_named_together():
    gone = [OptionalPackage(name, name, extra, "tests") for name, extra in (("b", "two"), ("a", "one"), ("c", "two"), ("d", None))]
    assert missing_text(gone) == (
        f"b (tests), a (tests), c (tests) and d (tests) are not installed; install them with: {sys.executable} -m pip install 'echox[one,two]' 'd'"
    )
    with pytest.raises(PackageError, match="^b .tests., a .tests. and c .tests. are"):
        require([*gone[:3], OptionalPackage("json", "json", None, "tests"), gone[0]])


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"__init__": BROKEN}, "libnowhere.so.13: cannot open shared object file"),
        ({"__init__": "from brittle import inner", "inner": BROKEN}, "libnowhere.so.13"),
        ({"__init__": "try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    raise OSError('outer') from e"}, "(division by zero)"),
        ({"__init__": "raise RuntimeError('compiled\\n for another')"}, "(compiled for another)"),
        ({"__init__": "def __getattr__(name):\n    raise ImportError(f'late {name}')"}, "(late part)"),
        ({"__init__": ""}, "(cannot import name 'part' from 'brittle'"),
    ],
)
def test_a_library_that_does_not_import_is_named(library, monkeypatch, files, told):
    library("brittle", **files)
    monkeypatch.setattr("importlib.metadata.packages_distributions", lambda: {"brittle": ["brittle-dist"]})
    monkeypatch.setattr("importlib.metadata.version", lambda name: {"brittle-dist": "1.2"}[name])
    fault = str(fault_of("from brittle import part"))
    assert fault.startswith("brittle-dist 1.2 does not import (") and told in fault
    assert fault.endswith(f"; install one that does with: {sys.executable} -m pip install --upgrade 'brittle-dist'")


def test_a_library_of_two_is_named_with_its_companion(library, monkeypatch):
    library("torchaudio", __init__="from torchaudio import extension", extension=BROKEN)
    monkeypatch.delitem(sys.modules, "torchaudio", raising=False)
    fault = str(fault_of("import torchaudio"))
    torch, torchaudio = map(importlib.metadata.version, ("torch", "torchaudio"))
    assert fault.startswith(f"torchaudio {torchaudio} does not import beside torch {torch} (libnowhere.so.13")
    command = fault.partition("install releases that fit each other with: ")[2]
    assert command.startswith(f"{sys.executable} -m pip install --upgrade 'torch") and " 'torchaudio" in command


def test_a_library_that_is_not_there_is_named():
    fault = str(fault_of("import gone_library.part"))
    assert fault == f"gone_library is not installed; install it with: {sys.executable} -m pip install 'gone_library'"


@pytest.mark.parametrize(
    "bug",
    [
        "import echox.nowhere",
        "from echox.errors import Nothing",
        "import json.nowhere",
        "raise OSError('odd')",
        "1 / 0",
        "import torch\ntorch.zeros(1).view(2)",
    ],
)
def test_a_bug_is_no_library_s_fault(bug):
    assert fault_of(bug) is None


@pytest.mark.parametrize("name", ["train", "generate", "prepare", "evaluate", "info", "bench"])
@pytest.mark.parametrize("entry", ["script", "module"])
def test_every_command_tells_it_in_one_line(library, tmp_path, name, entry):
    folder = library("torch", __init__=BROKEN)
    call = ["-c", f"import sys; from echox_cli.start import {name}; sys.exit({name}())"] if entry == "script" else ["-m", f"echox_cli.{name}"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(folder), str(ROOT)))}
    done = subprocess.run([sys.executable, *call, "--cfg"], capture_output=True, text=True, timeout=300, cwd=tmp_path, env=environment)
    assert done.returncode == 2
    assert done.stderr.startswith(f"echox-{name}: torch ") and done.stderr.count("\n") == 1 and "libnowhere.so.13" in done.stderr


def test_a_built_in_part_without_its_library_is_told_at_once(monkeypatch, library):
    library("brittle", __init__=BROKEN)
    monkeypatch.setattr(plugins, "_seen", set())
    monkeypatch.setattr(plugins, "FAILURES", [])
    monkeypatch.setattr(plugins, "_built_in_modules", lambda: ["echox.encoders.of_a_test"])
    monkeypatch.setattr("importlib.metadata.packages_distributions", lambda: {"brittle": ["numpy"]})
    monkeypatch.setattr(plugins.importlib, "import_module", lambda name: exec("import brittle", {"__name__": name}))
    with pytest.raises(PackageError, match="^numpy .* does not import .libnowhere"):
        plugins.discover()
