"""Starts a plugin: a working skeleton and its contract test, to be changed into one's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from string import Template

import echox_plugins
from omegaconf import MISSING

from echox.config import near
from echox.errors import ConfigError
from echox.plugins import REGISTRIES

TEMPLATES = Path(echox_plugins.__file__).parent / "templates"


@dataclass(kw_only=True, slots=True)
class ScaffoldConfig:
    """Write the skeleton of a plugin and its test."""

    name: str = MISSING
    """Name of the new part, in lower_case."""
    kind: str = "encoder"
    """Kind of the part: encoder."""
    folder: str = "plugins"
    """Folder to write to; ./plugins is found by every command."""

    def __post_init__(self) -> None:
        if not self.name.isidentifier() or self.name != self.name.lower() or self.name.startswith("_"):
            raise ConfigError(f"{self.name!r} cannot be a plugin's name; use lower-case letters, digits and underscores")
        if self.kind not in (kinds := template_kinds()):
            raise ConfigError(f"no template for a plugin of kind {self.kind!r}{near(self.kind, kinds)}; kinds are {', '.join(kinds)}")


def template_kinds() -> list[str]:
    """The kinds a skeleton can be written for."""
    return sorted(path.name.removesuffix(".py.txt") for path in TEMPLATES.glob("*.py.txt") if not path.name.startswith("test_"))


def write_plugin(config: ScaffoldConfig) -> None:
    """Write `<folder>/<name>_<kind>.py` and its test, and say how to go on.

    Raises:
        ConfigError: the name is taken, or a file is already there.
    """
    if taken := REGISTRIES[config.kind].get(config.name):
        raise ConfigError(f"{config.kind} {config.name!r} is already registered by {taken.origin}; choose another name")
    folder = Path(config.folder)
    module = f"{config.name}_{config.kind}"
    names = {"name": config.name, "module": module, "Name": "".join(word.capitalize() for word in config.name.split("_"))}
    files = {folder / f"{module}.py": f"{config.kind}.py.txt", folder / f"test_{module}.py": f"test_{config.kind}.py.txt"}
    for path in files:
        if path.exists():
            raise ConfigError(f"{path} is already there; choose another name or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    for path, template in files.items():
        path.write_text(Template((TEMPLATES / template).read_text(encoding="utf-8")).substitute(names), encoding="utf-8")
        print(f"wrote {path}")
    print(f"test it:  python -m pytest {folder / f'test_{module}.py'}")
    print(f"use it:   echox-train {config.kind}={config.name}" + ("" if folder == Path("plugins") else f" plugin_dirs=[{folder}]"))
