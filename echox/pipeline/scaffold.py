"""Skeletons of plugins, each a working part and its contract test, for `echox-prepare plugin`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from string import Template

import echox_plugins
from omegaconf import MISSING

from echox.core.config import near
from echox.core.errors import ConfigError
from echox.pipeline.plugins import REGISTRIES

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
        is_lower = self.name.isidentifier() and self.name == self.name.lower()
        # Files whose name begins with an underscore are not loaded as plugins.
        if not is_lower or self.name.startswith("_"):
            raise ConfigError(
                f"{self.name!r} cannot be a plugin's name; "
                "use lower-case letters, digits and underscores"
            )
        if self.kind not in (kinds := template_kinds()):
            raise ConfigError(
                f"no template for a plugin of kind {self.kind!r}{near(self.kind, kinds)}; "
                f"kinds are {', '.join(kinds)}"
            )


def template_kinds() -> list[str]:
    """List the kinds of parts that have a template."""
    # Named .py.txt, so that neither Python nor pytest takes a template for code.
    names = [path.name.removesuffix(".py.txt") for path in TEMPLATES.glob("*.py.txt")]
    return sorted(name for name in names if not name.startswith("test_"))


def write_plugin(config: ScaffoldConfig) -> None:
    """Write `<folder>/<name>_<kind>.py` and its test, and print the commands that come next.

    Raises:
        ConfigError: the name is registered already, or a file exists.
    """
    if entry := REGISTRIES[config.kind].get(config.name):
        raise ConfigError(
            f"{config.kind} {config.name!r} is already registered by {entry.origin}; "
            "choose another name"
        )
    folder, module = Path(config.folder), f"{config.name}_{config.kind}"
    files = {
        folder / f"{module}.py": f"{config.kind}.py.txt",
        folder / f"test_{module}.py": f"test_{config.kind}.py.txt",
    }
    # Both before either is written, so that a refusal leaves nothing behind.
    for path in files:
        if path.exists():
            raise ConfigError(f"{path} is already there; choose another name or remove it")
    class_name = "".join(word.capitalize() for word in config.name.split("_"))
    names = {"name": config.name, "module": module, "Name": class_name}
    folder.mkdir(parents=True, exist_ok=True)
    for path, template in files.items():
        text = Template((TEMPLATES / template).read_text(encoding="utf-8")).substitute(names)
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path}")
    # ./plugins is loaded by every command, other folders only where they are named.
    plugin_dirs = "" if folder == Path("plugins") else f" plugin_dirs=[{folder}]"
    print(f"test it:  python -m pytest {folder / f'test_{module}.py'}")
    print(f"use it:   echox-train {config.kind}={config.name}{plugin_dirs}")
