"""Discovery of plugins: built-in parts, installed packages by entry point, and folders of the user.

`discover` is called by the commands and by tests, never at import. A plugin that fails to load is
recorded in `registry.FAILURES` and named in the error of a part that is missing; none of its parts
stays registered.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import pkgutil
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from echox.backbones.base import BACKBONES
from echox.codecs.base import CODECS
from echox.core.errors import ConfigError, PluginError
from echox.core.packages import library_fault
from echox.core.registry import (
    ENTRY_POINTS,
    FAILURES,
    Entry,
    Failure,
    Registry,
    add_failure,
    registering_from,
)
from echox.core.sources import code_of_types, remember_source
from echox.criteria.base import CRITERIA
from echox.encoders.base import ENCODERS
from echox.metrics.base import METRICS
from echox.tasks.base import TASKS

REGISTRIES: dict[str, Registry] = {
    registry.kind: registry for registry in (ENCODERS, BACKBONES, CODECS, TASKS, CRITERIA, METRICS)
}
"""Kind -> registry; a kind is also the name of its Hydra config group."""

FOLDERS_VARIABLE = "ECHOX_PLUGINS"
DEFAULT_FOLDER = "plugins"
BUILT_INS = (
    "echox.encoders",
    "echox.backbones",
    "echox.codecs",
    "echox.criteria",
    "echox.metrics",
    "echox.tasks",
)

# Of this process, because a module that is run twice would register its parts twice.
_seen: set[str] = set()  # modules, entry points, paths and file digests that were run
_ran: list[Path] = []  # files and packages of folders that were run
_published: dict[tuple[str, str], type] = {}  # (kind, name) -> config in Hydra's store


@dataclass(frozen=True, slots=True)
class Discovery:
    """Plugins that were loaded in this process so far."""

    files: tuple[Path, ...]  # plugin files and packages from folders, whose code was run
    failures: tuple[Failure, ...]


def discover(plugin_dirs: Iterable[str | Path] = ()) -> Discovery:
    """Load every plugin that was not loaded yet, and store all configs in Hydra's ConfigStore.

    Args:
        plugin_dirs: folders beside `./plugins` (where it exists) and those in ECHOX_PLUGINS.

    Raises:
        ConfigError: a folder that was asked for does not exist.
        PackageError: a library that echox itself imports is missing or broken.
    """
    # Built-in parts first, so that of two parts of one name the plugin is the second.
    for name in _built_in_modules():
        _load(name, name, functools.partial(importlib.import_module, name))
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        origin = _point_origin(point)
        _load(origin, origin, functools.partial(_load_entry_point, point, origin))
    for folder in _folders(plugin_dirs):
        for path in _plugin_paths(folder):
            _load_path(path)
    return Discovery(tuple(_ran), tuple(FAILURES))


def plugin_origins(parts: Iterable[tuple[str, Any]]) -> dict[str, str]:
    """Name the file or the package of each part that is a plugin, as checkpoints record it.

    Args:
        parts: kind and config.

    Returns:
        "encoder mel" -> where it came from; built-in parts are left out.
    """
    return {name: _full_origin(entry.origin) for name, entry in _plugins_of(parts)}


def plugin_code(parts: Iterable[tuple[str, Any]]) -> dict[str, str]:
    """Return a digest of the code of each part that is a plugin, as checkpoints record it.

    Args:
        parts: kind and config.

    Returns:
        "encoder mel" -> digest (`echox.core.sources`); built-in parts are left out.
    """
    return {name: code_of_types(entry.implementation).digest for name, entry in _plugins_of(parts)}


def code_of_named(names: Iterable[str]) -> dict[str, str]:
    """Return the digests of `plugin_code` by its names, of those plugins that are here.

    Args:
        names: such as "encoder mel".
    """
    named = ((name, *name.partition(" ")[::2]) for name in names)
    return {
        name: code_of_types(REGISTRIES[kind][part].implementation).digest
        for name, kind, part in named
        if kind in REGISTRIES and part in REGISTRIES[kind]
    }


def inner_parts(config: Any) -> Iterator[tuple[str, Any]]:
    """Yield the kind and the config of every part inside a config, such as a codec's encoder."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            for kind, registry in REGISTRIES.items():
                if registry.name_of(value) is not None:
                    yield kind, value
            yield from inner_parts(value)


def _plugins_of(parts: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Entry]]:
    """Yield "encoder mel" and its entry for each part that is no built-in one."""
    for kind, config in parts:
        entry = REGISTRIES[kind].entry_of(config)
        if not entry.origin.startswith("echox."):
            yield f"{kind} {entry.name}", entry


def _full_origin(origin: str) -> str:
    """Return an absolute path, or an entry point with its package and version."""
    if Path(origin).exists():
        return str(Path(origin).absolute())
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        if origin == _point_origin(point) and point.dist is not None:
            return f"the package {point.dist.name}=={point.dist.version}"
    return origin


def _built_in_modules() -> Iterator[str]:
    """Yield the names of the modules and packages one level below the packages of the kinds."""
    for package in BUILT_INS:
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
            if module.name != "base":
                yield f"{package}.{module.name}"


def _point_origin(point: importlib.metadata.EntryPoint) -> str:
    return f"entry point {point.name} = {point.value}"


def _load_entry_point(point: importlib.metadata.EntryPoint, origin: str) -> None:
    with registering_from(origin):
        point.load()
    source = getattr(sys.modules[point.module], "__file__", None)
    # By its digest too, because the same file may be in a checkout's ./plugins.
    if source:
        _seen.update((source, _digest(Path(source))))


def _folders(plugin_dirs: Iterable[str | Path]) -> Iterator[Path]:
    if Path(DEFAULT_FOLDER).is_dir():
        yield Path(DEFAULT_FOLDER)
    variable = os.environ.get(FOLDERS_VARIABLE, "").split(os.pathsep)
    named = [(folder, "plugin_dirs") for folder in plugin_dirs]
    named += [(folder, FOLDERS_VARIABLE) for folder in variable if folder]
    for folder, origin in named:
        path = Path(folder).expanduser()
        if not path.is_dir():
            raise ConfigError(
                f"{origin} names the plugin folder {str(folder)!r}, which does not exist; "
                "create it or remove it there"
            )
        yield path


def _plugin_paths(folder: Path) -> Iterator[Path]:
    """Yield the modules and packages in a folder that are neither private nor tests."""
    # Sorted, so that two machines load them in the same order.
    for path in sorted(folder.iterdir()):
        is_plugin = path.suffix == ".py" or (path / "__init__.py").is_file()
        if is_plugin and not path.name.startswith(("_", ".", "test_", "conftest")):
            yield path


def _load_path(path: Path) -> None:
    source = path / "__init__.py" if path.is_dir() else path
    digest = _digest(source)
    # A worked example that is installed and also in ./plugins of a checkout is one plugin.
    if path.is_file() and digest in _seen:
        return
    key = str(path.resolve())
    if key not in _seen:
        _ran.append(path)
    _load(key, str(path), lambda: _run_file(path, source))
    _seen.add(digest)


def _run_file(path: Path, source: Path) -> ModuleType:
    """Execute a plugin file or package under a module name of its own."""
    # By the path too, since two folders may have files of one name.
    path_digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()
    name = f"echox_plugin_{path.stem}_{path_digest[:8]}"
    # Search locations make it a package, whose relative imports work.
    locations = [str(path)] if path.is_dir() else None
    spec = importlib.util.spec_from_file_location(
        name, source, submodule_search_locations=locations
    )
    if spec is None or spec.loader is None:
        raise PluginError(f"{path} is no Python module; name a .py file or a package's folder")
    module = importlib.util.module_from_spec(spec)
    # Before it is executed, because dataclasses look up their module there.
    sys.modules[name] = module
    try:
        with registering_from(str(path)):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    remember_source(name)
    return module


def _digest(source: Path) -> str:
    return hashlib.sha256(source.read_bytes()).hexdigest()


def _load(key: str, origin: str, run: Callable[[], object]) -> None:
    """Run a plugin once; if it fails, record the failure and withdraw what it registered."""
    if key in _seen:
        return
    _seen.add(key)
    try:
        run()
        _publish()
    # A plugin may fail in any way, `sys.exit` included, and must not end other commands.
    except (Exception, SystemExit) as error:
        for registry in REGISTRIES.values():
            registry.withdraw(origin)
        # Without a library that echox itself imports, no other part would do instead.
        if origin.startswith("echox.") and (fault := library_fault(error)) is not None:
            raise fault from error
        add_failure(origin, reason_of(error))


def reason_of(error: BaseException) -> str:
    """Return one line: the error, and the innermost line of code outside echox."""
    text = " ".join(str(error).split())
    kind = "" if isinstance(error, PluginError) else f"{type(error).__name__}: "
    if isinstance(error, SyntaxError):
        return f"{kind}{error.msg} ({error.filename}:{error.lineno})"
    package = Path(__file__).parents[1]
    stack = traceback.extract_tb(error.__traceback__)
    frames = [frame for frame in stack if "importlib" not in frame.filename]
    # A fault in a built-in part has no line outside.
    outside = [frame for frame in frames if package not in Path(frame.filename).parents] or frames
    return f"{kind}{text} ({outside[-1].filename}:{outside[-1].lineno})"


def _publish() -> None:
    """Store every registered config in Hydra: group = kind, option = name.

    Raises:
        PluginError: a config has a field that Hydra cannot type.
    """
    for kind, registry in REGISTRIES.items():
        for name in registry:
            config_type = registry[name].config_type
            if _published.get((kind, name)) is config_type:
                continue
            _check_typed(kind, name, config_type)
            ConfigStore.instance().store(group=kind, name=name, node=config_type, provider="echox")
            _published[kind, name] = config_type


def _check_typed(kind: str, name: str, config_type: type) -> None:
    # Here, since the same error while composing would name neither plugin nor field.
    try:
        OmegaConf.structured(config_type)
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        reason = str(error).splitlines()[0]
        names = ", ".join(field.name for field in dataclasses.fields(config_type))
        fields = getattr(error, "full_key", None) or names
        raise PluginError(
            f"{kind} {name!r}: Hydra cannot type {config_type.__name__} ({fields}): {reason}; "
            "use int, float, str, bool, Path, Enum (not Literal), list, dict or dataclass fields"
        ) from error
