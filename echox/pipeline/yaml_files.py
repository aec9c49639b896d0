"""Recipe and preset files read as plain YAML within limits of size, depth and aliases.

Hydra and OmegaConf have no limits: a file of a few kilobytes can expand to billions of values by
its aliases, and a deep one ends in a RecursionError. Every file that a config is composed of is
read here first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from echox.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class InheritedFile:
    """A config file, as one that is composed finds it."""

    name: str  # without its suffix, such as "echo_mini" or "encoder/mel"
    path: Path
    body: Mapping[str, Any]
    overridden: frozenset[str]  # places of parts that its heirs replace, such as "encoder"


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


def check_files(name: str, folders: Sequence[Path]) -> None:
    """Read a config file and all that its defaults lists name, so that Hydra meets no other.

    Args:
        name: of the file without its suffix, such as "echo_mini" or "encoder/mel".
        folders: of configs and presets; the first that has a file wins. One that is in none of
            them is named by the error of composing.

    Raises:
        ConfigError: a file cannot be read, exceeds a limit, or inherits from itself.
    """
    for _ in inherited_files(name, folders):
        pass


def inherited_files(
    name: str,
    folders: Sequence[Path],
    overridden: frozenset[str] = frozenset(),
    heirs: Sequence[Path] = (),
) -> Iterator[InheritedFile]:
    """Yield a config file and all that its defaults lists name.

    Args:
        name, folders: as `check_files` takes them.
        overridden: places of the parts that files that inherit from this one replace.
        heirs: the files that inherit from this one.

    Raises:
        ConfigError: as `check_files`.
    """
    path = next((file for f in folders if (file := f / f"{name}.yaml").is_file()), None)
    if path is None:
        return
    if path in heirs:
        names = " -> ".join(file.stem for file in [*heirs[heirs.index(path) :], path])
        raise ConfigError(f"files inherit from each other in a circle: {names}; break it in one")
    body = read_yaml(path)
    yield InheritedFile(name, path, body, overridden)
    defaults = body.get("defaults")
    overridden |= frozenset(_overridden(defaults))
    for inherited in _inherited(defaults, name.rpartition("/")[0]):
        yield from inherited_files(inherited, folders, overridden, (*heirs, path))


def _overridden(defaults: Any) -> Iterator[str]:
    """Yield the places of the parts that a defaults list replaces: `override encoder: mel`."""
    for entry in defaults if isinstance(defaults, list) else ():
        for key in entry if isinstance(entry, dict) else ():
            words, (group, _, place) = str(key).split(" "), str(key).split(" ")[-1].partition("@")
            if "override" in words[:-1]:
                yield place or group


def without_overridden(name: str, folders: Sequence[Path]) -> dict[str, str]:
    """Return the texts of inherited recipes without the fields of parts that are replaced.

    Fields of a part may not exist in the part that stands in its place, and mean another thing
    where they do.

    Args:
        name: of the recipe without its suffix.
        folders: of recipes and presets; the first that has a file wins.

    Returns:
        name -> text of each file that holds such fields.

    Raises:
        ConfigError: as `check_files`.
    """
    texts = {}
    for file in inherited_files(name, folders):
        # Files of presets, such as encoder/mel, hold the fields of the part that was chosen.
        if "/" in file.name:
            continue
        # By OmegaConf's reader, to which `1e-3` is a number as it is to Hydra.
        body: Any = OmegaConf.to_container(OmegaConf.load(file.path))
        left_out = [place for place in file.overridden if _delete(body, place.split("."))]
        if left_out:
            texts[file.name] = OmegaConf.to_yaml(OmegaConf.create(body))
    return texts


def _delete(body: Any, place: Sequence[str]) -> bool:
    """Delete the value at a place of nested mappings, and return whether there was one."""
    for key in place[:-1]:
        body = body.get(key) if isinstance(body, dict) else None
    return isinstance(body, dict) and body.pop(place[-1], None) is not None


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
