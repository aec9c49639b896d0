"""Recipe and preset files read as plain YAML within limits of size, depth and aliases.

Hydra and OmegaConf have no limits: a file of a few kilobytes can expand to billions of values by
its aliases, and a deep one ends in a RecursionError. Every file that a config is composed of is
read here first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from echox.core.errors import ConfigError

# The largest recipe that comes with echox has 10 kB and some 400 values at depth 7.
MOST_BYTES = 1 << 18
MOST_VALUES = 20_000  # aliases expanded
DEEPEST = 40
# libyaml's parser where PyYAML was built with it, else the one in Python.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping that a recipe file holds, without composing it.

    Raises:
        ConfigError: the file cannot be read, exceeds a limit, or is no YAML mapping.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        _refuse_excess(content, path)
        data = yaml.load(content, _LOADER)
    except yaml.MarkedYAMLError as error:
        place = f" at line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path} is not valid YAML{place}: {error.problem}") from error
    # ValueError: a number of thousands of digits, or a date that no calendar has.
    except (OSError, ValueError, yaml.YAMLError) as error:
        # The library's message may have several lines, and an error here is one sentence.
        raise ConfigError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if data is not None and not isinstance(data, dict):
        raise ConfigError(f"{path} is not a recipe; it must hold `key: value` lines")
    return data or {}  # an empty file is an empty mapping


def check_files(name: str, folders: Sequence[Path], heirs: Sequence[Path] = ()) -> None:
    """Read a config file and all that its defaults lists name, so that Hydra meets no other.

    Args:
        name: of the file without its suffix, such as "echo_mini" or "encoder/mel".
        folders: of configs and presets; the first that has a file wins. One that is in none of
            them is named by the error of composing.
        heirs: the files that inherit from this one.

    Raises:
        ConfigError: a file cannot be read, exceeds a limit, or inherits from itself.
    """
    path = next((file for f in folders if (file := f / f"{name}.yaml").is_file()), None)
    if path is None:
        return
    if path in heirs:
        names = " -> ".join(file.stem for file in [*heirs[heirs.index(path) :], path])
        raise ConfigError(f"files inherit from each other in a circle: {names}; break it in one")
    for inherited in _inherited(read_yaml(path).get("defaults"), name.rpartition("/")[0]):
        check_files(inherited, folders, (*heirs, path))


def _inherited(defaults: Any, group: str) -> Iterator[str]:
    """Yield the names of the files of a defaults list; `group` is the folder of its own file."""
    for entry in defaults if isinstance(defaults, list) else ():
        # `mel`, `mel@place`, `/encoder/mel`, or a mapping: `optional encoder@place: mel`.
        items = entry.items() if isinstance(entry, dict) else [("", entry)]
        for key, value in items:
            place = str(key).split(" ")[-1].partition("@")[0]
            if isinstance(value, str) and value != "_self_":
                name = "/".join(filter(None, (place, value.partition("@")[0])))
                is_absolute = name.startswith("/") or not group
                yield name.removeprefix("/") if is_absolute else f"{group}/{name}"


def _refuse_excess(content: bytes, path: Path) -> None:
    """Refuse a file that is too large, too deep, or too large once its aliases are expanded.

    The parser's events are read one after another, which takes no memory and no recursion.
    """
    if len(content) > MOST_BYTES:
        raise ConfigError(f"{path} is larger than {MOST_BYTES >> 10} kB, so it is no recipe")
    sizes: dict[str, int] = {}  # anchor -> values below it
    open_nodes: list[tuple[str | None, int]] = []  # anchor, and values before it
    values = 0
    for event in yaml.parse(content, _LOADER):
        if isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, values))
            if len(open_nodes) > DEEPEST:
                raise ConfigError(f"{path} is nested more than {DEEPEST} levels deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_nodes.pop()
            if anchor is not None:
                sizes[anchor] = values - before + 1
        elif isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in open_nodes):
                raise ConfigError(f"{path} has an alias of what it stands in, *{event.anchor}")
            values += sizes.get(event.anchor or "", 1)
        values += isinstance(event, (yaml.ScalarEvent, yaml.CollectionStartEvent))
        if values > MOST_VALUES:
            raise ConfigError(f"{path} has more than {MOST_VALUES:,} values, aliases expanded")
