"""Skeletons of plugins, each a working part and its contract test, for `echox-prepare plugin`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from string import Template

import echox_plugins
from omegaconf import MISSING

from echox.core.config import near
from echox.core.errors import ConfigError
from echox.core.files import atomic_write
from echox.pipeline.plugins import REGISTRIES

TEMPLATES = Path(echox_plugins.__file__).parent / "templates"
USES = {
    "encoder": "echox-train recipe=echo_tiny encoder={name}",
    "backbone": "echox-train recipe=echo_tiny backbone={name}",
    "codec": "echox-train recipe=echo_tiny codec={name}",
    "task": "echox-train recipe={name} {name}.task.data.train=[train.jsonl]",
    "criterion": "echox-train recipe=echo_tiny s2t.criterion={name}",
    "metric": "echox-train recipe=echo_tiny s2t.task.metrics.{name}={name}",
}
"""Kind -> the command that uses a new part, in the recipe that takes less than a minute."""


@dataclass(kw_only=True, slots=True)
class ScaffoldConfig:
    """Write the skeleton of a plugin and its test."""

    name: str = MISSING
    """Name of the new part, in lower_case."""
    kind: str = "encoder"
    """Kind of the part: encoder, backbone, codec, task, criterion or metric; a task comes with a
    criterion and a recipe."""
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

    For a task, `recipes/<name>.yaml` is written too.

    Raises:
        ConfigError: the name is registered already, or a file exists.
    """
    # A task's criterion has the task's name.
    for kind in (config.kind, "criterion") if config.kind == "task" else (config.kind,):
        if entry := REGISTRIES[kind].get(config.name):
            raise ConfigError(
                f"{kind} {config.name!r} is already registered by {entry.origin}; "
                "choose another name"
            )
    folder, module = Path(config.folder), f"{config.name}_{config.kind}"
    files = _files(config)
    # All before any is written, so that a refusal leaves nothing behind.
    for path in files:
        if path.exists():
            raise ConfigError(f"{path} is already there; choose another name or remove it")
    class_name = "".join(word.capitalize() for word in config.name.split("_"))
    names = {"name": config.name, "module": module, "Name": class_name}
    for path, template in files.items():
        text = Template((TEMPLATES / template).read_text(encoding="utf-8")).substitute(names)
        with atomic_write(path) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
        print(f"wrote {path}")
    # ./plugins is loaded by every command, other folders only where they are named.
    plugin_dirs = "" if folder == Path("plugins") else f" plugin_dirs=[{folder}]"
    print(f"test it:  python -m pytest {folder / f'test_{module}.py'}")
    print(f"use it:   {USES[config.kind].format(name=config.name)}{plugin_dirs}")


def _files(config: ScaffoldConfig) -> dict[Path, str]:
    """Return the files to write, each with the name of its template."""
    kind, folder = config.kind, Path(config.folder)
    module = f"{config.name}_{kind}"
    files = {
        folder / f"{module}.py": f"{kind}.py.txt",
        folder / f"test_{module}.py": f"test_{kind}.py.txt",
    }
    # A stage needs a recipe that names it, and ./recipes is found by every command.
    if kind == "task":
        files[Path(f"recipes/{config.name}.yaml")] = "recipe.yaml.txt"
    return files
