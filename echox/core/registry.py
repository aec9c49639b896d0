"""Registries: the names by which people choose encoders, backbones, codecs, tasks and so on.

A plugin is a config dataclass and a class:

    @ENCODERS.register("mel", MelConfig)
    class MelEncoder(Encoder): ...

People use the name, code the type: `build` dispatches on `type(config)`, checkpoints store
`describe(config)`, and loading uses `parse(dict)`.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from echox.core.config import from_plain, near, register_names, to_plain
from echox.core.errors import PluginError


class Part(Protocol):
    """What a registry builds: an object that its config, and what its kind adds, construct."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None: ...


T = TypeVar("T", bound=Part)

ENTRY_POINTS = "echox.plugins"
"""The group of entry points by which installed packages add parts: each names a module."""
RECIPE_ENTRY_POINTS = "echox.recipes"
"""The group by which they add recipes and presets: each names a package, or a folder in one."""
SUBJECT_ENTRY_POINTS = "echox.subjects"
"""The group by which they add subjects of commands, such as `prepare.frequencies`."""
KINDS = ("encoder", "backbone", "codec", "task", "criterion", "metric")
"""The kinds of parts, here so that they can be named without importing any part.

`echox.pipeline.plugins.REGISTRIES` has a registry for each.
"""

# A context variable rather than an argument, because a plugin's decorator runs while the plugin
# is imported, where nothing can be passed to it.
_origin: ContextVar[str | None] = ContextVar("origin", default=None)


@contextlib.contextmanager
def registering_from(origin: str) -> Iterator[None]:
    """Record names that are registered within a block as coming from `origin`.

    Outside such a block their module is recorded.

    Args:
        origin: an entry point or a file, as errors should name it.
    """
    token = _origin.set(origin)
    try:
        yield
    finally:
        _origin.reset(token)


@dataclass(frozen=True, slots=True)
class Failure:
    """A plugin that did not load."""

    origin: str
    reason: str


FAILURES: list[Failure] = []
"""Plugins that failed to load in this process, in order; errors for an unknown name list them."""


def add_failure(origin: str, reason: str) -> None:
    """Record a plugin that did not load, once.

    Args:
        origin: an entry point or a file, as errors should name it.
        reason: one line.
    """
    failure = Failure(origin, reason)
    # What a package brings besides parts is looked up more than once.
    if failure not in FAILURES:
        FAILURES.append(failure)


def failures() -> str:
    """Return the plugins that failed to load, as the end of an error; "" if all loaded."""
    return "".join(
        f"; plugin {failure.origin} failed to load: {failure.reason}" for failure in FAILURES
    )


@dataclass(frozen=True, slots=True)
class Entry(Generic[T]):
    """One registered name with its config dataclass and its class."""

    name: str
    config_type: type
    implementation: type[T]
    origin: str  # who registered it: a module, an entry point or a file


class Registry(Mapping[str, Entry[T]]):
    """Name -> entry of one kind; a read-only mapping that only `register` extends.

    Args:
        kind: the kind's name in the singular, such as "encoder".
        config_base: the dataclass that configs of this kind inherit.
    """

    def __init__(self, kind: str, config_base: type) -> None:
        self.kind = kind
        self.config_base = config_base
        self._entries: dict[str, Entry[T]] = {}
        self._by_type: dict[type, Entry[T]] = {}
        # A name that was registered twice -> the origin that came second.
        self._contested: dict[str, str] = {}
        register_names(config_base, self)

    def register(self, name: str, config_type: type) -> Callable[[type[T]], type[T]]:
        """Return a class decorator that registers an implementation.

        Args:
            name: the name in recipes and checkpoints.
            config_type: the dataclass of the implementation's settings.

        Raises:
            PluginError: the name or the config type is registered already, or the config is
                not a dataclass that inherits this kind's base.
        """
        self._check_config_type(name, config_type)
        origin = _origin.get() or config_type.__module__
        self._check_unregistered(name, config_type, origin)

        def add(implementation: type[T]) -> type[T]:
            entry = Entry(name, config_type, implementation, origin)
            self._entries[name] = self._by_type[config_type] = entry
            return implementation

        return add

    def _check_config_type(self, name: str, config_type: type) -> None:
        inherits = issubclass(config_type, self.config_base)
        if not (inherits and dataclasses.is_dataclass(config_type)):
            raise PluginError(
                f"{self.kind} {name!r}: its config {config_type.__name__} must be a dataclass "
                f"that inherits {self.config_base.__name__}"
            )
        if "name" in (field.name for field in dataclasses.fields(config_type)):
            raise PluginError(
                f"{self.kind} {name!r}: {config_type.__name__} may not have a field called "
                f"'name'; that key holds {name!r} in checkpoints"
            )

    def _check_unregistered(self, name: str, config_type: type, origin: str) -> None:
        for entry in (self._entries.get(name), self._by_type.get(config_type)):
            if entry is not None:
                # Remembered, because the plugin that fails here may be skipped with a warning.
                self._contested[name] = origin
                raise PluginError(
                    f"{self._conflict_text(entry, origin)}; "
                    "choose another name and config class for one of them"
                )

    def contested(self, name: str) -> str | None:
        """Return the origin that registered a name a second time, or None."""
        return self._contested.get(name)

    def _conflict_text(self, entry: Entry[T], origin: str) -> str:
        return f"{self.kind} {entry.name!r} is registered twice, by {entry.origin} and by {origin}"

    def withdraw(self, origin: str) -> None:
        """Remove every name that came from `origin`, a plugin that failed while it was loaded.

        Args:
            origin: as given to `registering_from`, or a module, whose submodules are included.
        """
        # With a dot at both ends, so that `a.b` is no submodule of `a.bc`.
        entries = [
            entry for entry in self._entries.values() if f"{entry.origin}.".startswith(f"{origin}.")
        ]
        for entry in entries:
            del self._entries[entry.name], self._by_type[entry.config_type]

    def __getitem__(self, name: str) -> Entry[T]:
        """Return the entry of a name.

        Raises:
            PluginError: the name is not registered; the text lists plugins that did not load.
        """
        if name not in self._entries:
            raise PluginError(
                f"no {self.kind} named {name!r}{near(name, self._entries)}; {self._known_text()}"
            )
        return self._entries[name]

    def _known_text(self) -> str:
        return f"known: {', '.join(sorted(self._entries)) or 'none'}{failures()}"

    # Mapping's own versions of these two expect a KeyError for a missing name, and would let
    # the PluginError of `__getitem__` through.
    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def get(self, name: str, default: Any = None) -> Any:
        """Return the entry of a name, or `default` if it is not registered."""
        return self._entries.get(name, default)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def entry_of(self, config: Any) -> Entry[T]:
        """Return the entry whose config type is exactly `type(config)`.

        Raises:
            PluginError: the type is not registered, or its name was registered twice.
        """
        entry = self._by_type.get(type(config))
        if entry is None:
            raise PluginError(
                f"{type(config).__name__} is not the config of any registered {self.kind}; "
                f"{self._known_text()}"
            )
        # Which of two plugins loads first is chance, so neither is used silently.
        if entry.name in self._contested:
            conflict = self._conflict_text(entry, self._contested[entry.name])
            raise PluginError(f"{conflict}; rename one of them")
        return entry

    def name_of(self, config: Any) -> str | None:
        """Return the name of a config's exact type, or None if it is not registered."""
        entry = self._by_type.get(type(config))
        return None if entry is None else entry.name

    def build(self, config: Any, *args: Any, **kwargs: Any) -> T:
        """Construct the implementation that belongs to `type(config)`.

        Args:
            config: the implementation's settings, its first argument.
            *args: the implementation's further arguments.
            **kwargs: as `args`, by name.

        Raises:
            PluginError: the type is not registered, or its name was registered twice.
        """
        return self.entry_of(config).implementation(config, *args, **kwargs)

    def describe(self, config: Any) -> dict[str, Any]:
        """Return a config as `{"name": ..., field: value, ...}`, JSON-ready, for `parse`.

        Raises:
            PluginError: the type is not registered, or its name was registered twice.
        """
        # `to_plain` leaves an unknown name out; a checkpoint without it could not be loaded.
        self.entry_of(config)
        return to_plain(config)

    def parse(self, data: Mapping[str, Any]) -> Any:
        """Return the config that `describe` wrote.

        Raises:
            PluginError: the data has no name, or one that is not registered.
            ConfigError: a field is unknown.
        """
        if "name" not in data:
            raise PluginError(
                f"a described {self.kind} needs the key 'name'; "
                f"it has {', '.join(data) or 'no key'}"
            )
        return from_plain(self[data["name"]].config_type, data)
