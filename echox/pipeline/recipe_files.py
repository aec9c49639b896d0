"""Where recipe files are: their folders, their names, and the plugin folders that they ask for.

An installed package brings recipes and presets by an entry point in the group `echox.recipes`. Its
value is the package, or the folder inside it, that holds them, in the notation of imports:

    [project.entry-points."echox.recipes"]
    my_lab = "my_lab.recipes"
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import echox_recipes

from echox.core.config import near
from echox.core.errors import ConfigError
from echox.core.registry import RECIPE_ENTRY_POINTS, add_failure, failures
from echox.pipeline.compose import parse_overrides
from echox.pipeline.plugins import reason_of
from echox.pipeline.yaml_files import check_files, read_yaml

FOLDERS_VARIABLE = "ECHOX_RECIPES"
DEFAULT_FOLDER = "recipes"


def recipe_folders(recipe_dirs: Sequence[str | Path] = ()) -> list[Path]:
    """Return the folders of recipes and presets in the order of their precedence.

    Args:
        recipe_dirs: folders that come first; then ECHOX_RECIPES, ./recipes, that of echox, those
            of installed packages.

    Raises:
        ConfigError: a folder that was asked for does not exist.
    """
    variable = os.environ.get(FOLDERS_VARIABLE, "").split(os.pathsep)
    named = [(Path(folder), "the recipe folder") for folder in recipe_dirs]
    named += [(Path(folder), FOLDERS_VARIABLE) for folder in variable if folder]
    for folder, origin in named:
        if not folder.is_dir():
            raise ConfigError(f"{origin} {str(folder)!r} does not exist")
    own = Path(echox_recipes.__file__).parent
    # Packages last: none may replace a recipe of echox without the user's asking for it.
    others = _folders_of_packages()
    candidates = [*(folder for folder, _ in named), Path(DEFAULT_FOLDER), own, *others]
    # In a checkout ./recipes may be the installed folder, which Hydra must not search twice.
    return list({folder.resolve(): folder for folder in candidates if folder.is_dir()}.values())


def _folders_of_packages() -> Iterator[Path]:
    """Yield the recipe folders that installed packages bring; a failure is recorded, not raised."""
    # Sorted, so that of two recipes of one name the same one is found on every machine.
    for point in sorted(importlib.metadata.entry_points(group=RECIPE_ENTRY_POINTS)):
        origin = f"entry point {point.name} = {point.value}"
        try:
            # The packages around the folder are imported, which may fail in any way.
            spec = importlib.util.find_spec(point.value)
        except (Exception, SystemExit) as error:
            add_failure(origin, reason_of(error))
            continue
        # A folder without __init__.py has locations too; a module has none.
        if spec is None or not spec.submodule_search_locations:
            add_failure(origin, f"{point.value} is no package or folder of a package")
            continue
        yield from map(Path, spec.submodule_search_locations)


def list_recipes(recipe_dirs: Sequence[str | Path] = ()) -> dict[str, Path]:
    """List the recipes that can be run.

    Returns:
        name -> file; a file whose name begins with an underscore is only a building block.

    Raises:
        ConfigError: a folder that was asked for does not exist.
    """
    files = [
        path
        for folder in recipe_folders(recipe_dirs)
        for path in sorted(folder.glob("*.yaml"))
        if not path.name.startswith("_")
    ]
    # Reversed, so that of two files of one name that of the earlier folder stays.
    return {path.stem: path for path in reversed(files)}


def recipe_doc(path: Path) -> str:
    """Return the sentence that a recipe file holds about itself, or what is wrong with the file."""
    try:
        return str(read_yaml(path).get("doc", ""))
    # One broken file must not hide the list of all others.
    except ConfigError as error:
        return str(error)


def find_recipe(name: str, recipe_dirs: Sequence[str | Path] = ()) -> Path:
    """Return the file of a recipe, by its name or by its path.

    Raises:
        ConfigError: there is none, and the message lists the recipes that exist; or the path ends
            in .yml.
    """
    # A path needs no suffix, and a name may not contain a separator.
    if name.endswith(".yml"):
        # Hydra looks for this ending alone.
        raise ConfigError(f"recipe files end in .yaml, and the path is {name!r}; rename the file")
    if name.endswith(".yaml") or os.sep in name:
        path = Path(name) if name.endswith(".yaml") else Path(f"{name}.yaml")
        if not path.is_file():
            raise ConfigError(
                f"no recipe file {str(path)!r}; give the path of a YAML file, or one of the names "
                f"{', '.join(list_recipes(recipe_dirs))}"
            )
        return path
    recipes = list_recipes(recipe_dirs)
    if name not in recipes:
        raise ConfigError(
            f"no recipe named {name!r}{near(name, recipes)}; "
            f"known: {', '.join(sorted(recipes)) or 'none'}{failures()}"
        )
    return recipes[name]


def plugin_dirs_of(
    name: str, overrides: Sequence[str] = (), recipe_dirs: Sequence[str | Path] = ()
) -> list[str]:
    """Return the plugin folders that a recipe asks for, before it is composed.

    They are those that the composed recipe has: the recipe's own list, or else that of the last
    recipe in its defaults list that has one.

    Args:
        name: a recipe's name, or the path of a YAML file.
        overrides: as typed; one of `plugin_dirs` replaces the list of the file.
        recipe_dirs: folders to search before all others.

    Raises:
        ConfigError: there is no such recipe, a file cannot be read or inherits from itself, or
            `plugin_dirs` is no list.
    """
    path = find_recipe(name, recipe_dirs)
    # Composing needs the plugins to be loaded, so the files are read as plain YAML here.
    searched = [path.parent, *recipe_folders(recipe_dirs)]
    check_files(path.stem, searched)
    folders = _plugin_dirs_in(path, searched) or []
    for assignment in parse_overrides(overrides):
        if assignment.key == "plugin_dirs":
            folders = assignment.value
    return plugin_folders(folders)


def plugin_folders(value: Any) -> list[str]:
    """Return the value of `plugin_dirs`, a list of texts.

    Raises:
        ConfigError: it is something else.
    """
    # A folder may be named by a number, as YAML reads it.
    if not isinstance(value, list) or not all(isinstance(each, str | int) for each in value):
        raise ConfigError(f"plugin_dirs takes a list of folders, plugin_dirs=[a,b], not {value!r}")
    return [str(folder) for folder in value]


def _plugin_dirs_in(path: Path, folders: Sequence[Path]) -> Any:
    """Return `plugin_dirs` of a recipe file with those it inherits from; None where none has any.

    Args:
        path: of the file, which `check_files` accepts.
        folders: in which inherited files are found; the first that has a file wins.
    """
    body = read_yaml(path)
    defaults = body.get("defaults") or []
    found = None
    # In the order in which Hydra merges; where `_self_` is not named, the file itself comes last.
    for entry in defaults if "_self_" in defaults else [*defaults, "_self_"]:
        if entry == "_self_":
            folders_of_entry = body.get("plugin_dirs")
        # A mapping, `encoder: mel`, names a part, which has no such field.
        elif isinstance(entry, str) and (file := _inherited_file(entry, folders)):
            folders_of_entry = _plugin_dirs_in(file, folders)
        else:
            continue
        found = folders_of_entry if folders_of_entry is not None else found
    return found


def _inherited_file(entry: str, folders: Sequence[Path]) -> Path | None:
    """Return the file that an entry of a defaults list merges into the recipe itself, or None."""
    name, _, place = entry.partition("@")
    if place not in ("", "_global_"):
        return None
    files = (folder / f"{name.removeprefix('/')}.yaml" for folder in folders)
    # One that is missing is named by the error of composing.
    return next((file for file in files if file.is_file()), None)
