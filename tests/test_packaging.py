"""What pyproject.toml installs is what lies on the disk."""

import ast
import functools
import importlib.metadata
import re
import sys
import tempfile
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from echox.core import packages
from echox.core.packages import OptionalPackage

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_package_is_listed():
    folders = {
        path.parent for name in ("echox", "echox_cli") for path in (ROOT / name).rglob("*.py")
    }
    on_disk = {".".join(folder.relative_to(ROOT).parts) for folder in folders} | {
        "echox_plugins",
        "echox_recipes",
    }
    assert sorted(on_disk) == PROJECT["tool"]["setuptools"]["packages"]


def test_every_command_has_a_script():
    commands = [
        path.stem
        for path in (ROOT / "echox_cli").glob("*.py")
        if "def main(" in path.read_text(encoding="utf-8")
    ]
    assert PROJECT["project"]["scripts"] == {
        f"echox-{command}": f"echox_cli.start:{command}" for command in sorted(commands)
    }


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
        "constraints.txt",
    }
    made_by_running = {
        "runs",
        "outputs",
        "build",
        "dist",
        "corpora",
        "echox.egg-info",
        "__pycache__",
    }
    assert {
        path.name for path in ROOT.iterdir() if not path.name.startswith(".")
    } - made_by_running <= expected


def oldest_python():
    """The (major, minor) that pyproject.toml promises to run on."""
    return tuple(map(int, PROJECT["project"]["requires-python"].removeprefix(">=").split(".")))


@pytest.mark.parametrize("folder", ["echox", "echox_cli", "plugins", "recipes", "tests"])
def test_every_file_keeps_to_the_oldest_python(folder):
    newer = {
        "hashlib": "file_digest",
        "contextlib": "chdir",
        "datetime": "UTC",
        "enum": "StrEnum",
        "typing": "Self",
        "itertools": "batched",
    }
    for path in sorted((ROOT / folder).rglob("*.py")):
        tree = ast.parse(
            path.read_text(encoding="utf-8"), filename=str(path), feature_version=oldest_python()
        )
        named = {
            f"{node.value.id}.{node.attr}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        }
        named |= {
            f"{node.module}.{name.name}"
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            for name in node.names
        }
        assert not named & {f"{module}.{name}" for module, name in newer.items()}, (
            f"{path} uses what {oldest_python()} does not have"
        )


def test_the_classifiers_begin_with_the_oldest_python():
    versions = [
        word
        for line in PROJECT["project"]["classifiers"]
        if (word := line.rpartition(" :: ")[2]).startswith("3.")
    ]
    assert versions[0] == ".".join(map(str, oldest_python()))


PYTHONS = ("3.10", "3.11", "3.12", "3.13")
OPTIONAL = [value for value in vars(packages).values() if isinstance(value, OptionalPackage)]
# (torch, torchaudio): whether `import torchaudio` succeeds, tried with the builds for Linux.
PAIRS = {
    ("2.11.0", "2.11.0"): True,
    ("2.11.0", "2.11.1"): False,
    ("2.12.0", "2.11.0"): True,
    ("2.12.0", "2.11.1"): False,
    ("2.12.1", "2.11.0"): True,
    ("2.12.1", "2.11.1"): False,
    ("2.13.0", "2.11.0"): True,
    ("2.14.0", "2.11.0"): True,
    ("2.14.1", "2.11.0"): True,
    ("2.15.0", "2.11.0"): False,
}


def requirements(texts):
    return [Requirement(text) for text in texts]


def needed(extra=None):
    """Name -> requirement of the core or of an extra, the extras that it names included."""
    found = {}
    for requirement in requirements(
        PROJECT["project"]["optional-dependencies"][extra]
        if extra
        else PROJECT["project"]["dependencies"]
    ):
        if requirement.name == "echox":
            for other in requirement.extras:
                found |= needed(other)
        else:
            found[canonicalize_name(requirement.name)] = requirement
    return found


EXTRAS = tuple(PROJECT["project"]["optional-dependencies"])
ALL = {
    name: requirement for extra in (None, *EXTRAS) for name, requirement in needed(extra).items()
}


def constraints(python):
    """Name -> release on a Python."""
    lines = [
        line
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if not line.startswith("#")
    ]
    found = {}
    for requirement in requirements(lines):
        if requirement.marker is None or requirement.marker.evaluate({"python_version": python}):
            (pin,) = requirement.specifier
            assert pin.operator == "==" and requirement.name not in found, requirement
            found[canonicalize_name(requirement.name)] = pin.version
    return found


@pytest.mark.parametrize("python", PYTHONS)
def test_the_constraints_are_what_the_ranges_allow(python):
    pinned = constraints(python)
    for name, requirement in ALL.items():
        if requirement.marker is None or requirement.marker.evaluate(
            {"python_version": python, "platform_system": "Linux"}
        ):
            assert requirement.specifier.contains(pinned[name]), (name, pinned[name])


def test_the_constraints_are_whole():
    """What the pinned packages ask for is pinned too."""
    pinned, open_, seen = (
        constraints(f"{sys.version_info[0]}.{sys.version_info[1]}"),
        [(name, "") for name in ALL],
        set(),
    )
    while open_:
        name, extra = open_.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            asked = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # of an extra that the tests do not need
        for requirement in requirements(asked):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                wanted = canonicalize_name(requirement.name)
                assert wanted in pinned, f"{name} asks for {requirement}"
                open_ += [(wanted, more) for more in ("", *requirement.extras)]


@pytest.mark.parametrize("pair", PAIRS, ids=" ".join)
def test_no_range_admits_a_pair_that_does_not_import(pair):
    ranges = [needed()[name].specifier for name in ("torch", "torchaudio")]
    assert all(found.contains(release) for found, release in zip(ranges, pair)) == PAIRS[pair]


def test_only_what_has_a_reason_is_bounded_above():
    bounded = {
        name
        for name, requirement in ALL.items()
        if any(part.operator in ("<", "<=", "==", "~=") for part in requirement.specifier)
    }
    assert bounded == {"torch", "torchaudio", "hibari-tts", "espeakng-loader"}


@functools.cache
def imported():
    """Top-level name -> files of the toolkit that import it, anywhere in them."""
    found = {}
    for path in (
        path
        for folder in ("echox", "echox_cli", "plugins")
        for path in (ROOT / folder).rglob("*.py")
    ):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            for name in names:
                found.setdefault(name.partition(".")[0], []).append(path)
    return found


def test_every_import_is_in_the_core_or_asked_for():
    known = {*sys.stdlib_module_names, "echox", "echox_cli", "echox_plugins", "echox_recipes"}
    known.add("_typeshed")  # of type checkers, which alone import it
    names = importlib.metadata.packages_distributions()
    for module, paths in imported().items():
        if module not in known:
            allowed = {*needed(), *(needed("serve") if are_of_the_server(paths) else ())}
            assert {canonicalize_name(name) for name in names[module]} & allowed, (
                f"{module} of {paths[0]} is in no dependency; ask for it by echox.core.packages"
            )


def are_of_the_server(paths):
    """Whether all files are of the server, which is imported after its extra was asked for."""
    return all(path.is_relative_to(ROOT / "echox" / "serving") for path in paths)


@pytest.mark.parametrize("package", OPTIONAL, ids=lambda package: package.name)
def test_an_extra_brings_what_is_asked_for(package):
    assert package.name not in needed()
    assert package.extra == "serve" or package.module not in imported()
    assert package.extra is None or package.name in needed(package.extra)


def test_the_first_commands_install_the_constraints():
    installs = re.findall(
        r"pip install .*",
        "\n".join(
            re.findall(
                r"```bash\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL
            )
        ),
    )
    assert len(installs) == 3 and all(
        line.startswith("pip install -c constraints.txt ") for line in installs
    )
    assert '".[demo]" && .venv/bin/echox-train recipe=echo_mini' in installs[0]
    assert 'install --quiet --no-compile -c constraints.txt ".[test]"' in (
        ROOT / ".ci/run"
    ).read_text(encoding="utf-8")


def script(name):
    """A script of .ci as a module."""
    loader = SourceFileLoader(name, str(ROOT / ".ci" / name))
    module = module_from_spec(spec_from_loader(name, loader))
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    loader.exec_module(module)
    sys.dont_write_bytecode = before
    return module


def test_constraints_have_markers_where_pythons_differ():
    found = [
        ("3.10", {"a": "1", "b": "1", "c": "1"}),
        ("3.11", {"a": "1", "b": "2", "c": "2"}),
        ("3.12", {"a": "1", "b": "2", "c": "1", "d": "4"}),
    ]
    assert script("constraints").merged(found) == [
        "a==1",
        "b==1; python_version < '3.11'",
        "b==2; python_version >= '3.11'",
        "c==1; python_version < '3.11'",
        "c==2; python_version >= '3.11' and python_version < '3.12'",
        "c==1; python_version >= '3.12'",
        "d==4",
    ]


@pytest.fixture
def environments(monkeypatch, tmp_path):
    """The script that tries sets, with nothing to install."""
    # Its logs stay, and would stay in the machine's folder of temporary files.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    module = script("environments")
    create = module.venv.create
    monkeypatch.setattr(
        module.venv, "create", lambda folder, with_pip: create(folder, with_pip=False)
    )
    monkeypatch.setattr(module.shutil, "copytree", lambda source, target, ignore: target.mkdir())
    monkeypatch.setattr(module, "SETS", {"whole": [], "broken": [["nothing"]]})
    monkeypatch.setattr(
        module,
        "CHECKS",
        {"first": ["{bin}/python", "-c", "print('said')"], "second": ["false"], "third": ["true"]},
    )
    return module


def test_environments_go_on_after_a_failure(environments, capsys):
    assert environments.main(["broken", "whole"]) == 1
    told = capsys.readouterr().out
    broken, whole = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in told.splitlines()
        if line.startswith("| ")
    ][2:]
    assert (
        broken[0] == "broken" and broken[-4].startswith("failed") and broken[-3:] == ["-", "-", "-"]
    )
    assert whole[0] == "whole" and [cell.partition(" ")[0] for cell in whole[-4:]] == [
        "ok",
        "ok",
        "failed",
        "ok",
    ]
    (logs,) = (line.partition(": ")[2] for line in told.splitlines() if line.startswith("logs: "))
    assert "\nsaid\n" in (Path(logs) / "whole.log").read_text(encoding="utf-8")


def test_environments_are_green_where_all_goes_well(environments, monkeypatch, capsys):
    monkeypatch.setattr(environments, "CHECKS", {"only": ["true"]})
    assert environments.main(["whole"]) == 0 and "| ok 0 s |" in capsys.readouterr().out
    assert environments.main(["unknown"]) == 2 == environments.main([])


def test_the_oldest_set_is_what_the_lower_bounds_promise():
    (words,) = script("environments").SETS["oldest"]
    oldest = {
        requirement.name: requirement.specifier
        for requirement in requirements(word for word in words if not word.startswith("."))
    }
    for name in ("torch", "torchaudio", "triton", "transformers"):
        (pin,) = oldest[name]
        bound = next(part.version for part in needed()[name].specifier if part.operator == ">=")
        assert pin.operator == "==" and pin.version.removesuffix(".0") == bound
