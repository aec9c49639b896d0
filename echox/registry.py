"""Registries: the names by which people ask for encoders, backbones, codecs, tasks and criteria.

A plugin is a config dataclass and a class:

    @ENCODERS.register("mel", MelConfig)
    class MelEncoder(Encoder): ...

The name is for the door, the type is for the house: `build` dispatches on `type(config)`, checkpoints store `describe(config)`,
and loading uses `parse(dict)`.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from echox.config import from_plain, name_below, near, to_plain
from echox.errors import PluginError

T = TypeVar("T")

ENTRY_POINTS = "echox.plugins"
"""The group of entry points by which installed packages add parts."""
KINDS = ("encoder", "backbone", "codec", "task", "criterion")
"""The kinds of parts; `echox.plugins.REGISTRIES` has a registry for each. Here, so that they can be named without loading any."""

_origin: ContextVar[str | None] = ContextVar("origin", default=None)


@contextlib.contextmanager
def registering_from(origin: str) -> Iterator[None]:
    """Names registered inside are recorded as coming from `origin` (an entry point, a file); outside, from their module."""
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
"""Plugins that failed to load in this process, in order; named by every registry that misses a name."""


def failures() -> str:
    """The plugins that failed to load, to be appended where a name is missed; "" when all loaded."""
    return "".join(f"; plugin {failure.origin} failed to load: {failure.reason}" for failure in FAILURES)


@dataclass(frozen=True, slots=True)
class Entry(Generic[T]):
    """One registered name."""

    name: str
    config_type: type
    implementation: type[T]
    origin: str


class Registry(Mapping[str, Entry[T]]):
    """Names -> (config dataclass, class) of one kind; a read-only mapping that only `register` extends."""

    def __init__(self, kind: str, config_base: type) -> None:
        self.kind = kind
        self.config_base = config_base
        self._entries: dict[str, Entry[T]] = {}
        self._by_type: dict[type, Entry[T]] = {}
        self._contested: dict[str, str] = {}  # a name that was asked for twice -> who came second
        name_below(config_base, self)

    def register(self, name: str, config_type: type) -> Callable[[type[T]], type[T]]:
        """Class decorator that gives `name` and `config_type` to an implementation.

        Raises:
            PluginError: the name or the config type is taken, or the config is not a dataclass below this kind's base.
        """
        if not (dataclasses.is_dataclass(config_type) and issubclass(config_type, self.config_base)):
            raise PluginError(
                f"{self.kind} {name!r}: its config {config_type.__name__} must be a dataclass that inherits {self.config_base.__name__}"
            )
        if "name" in (f.name for f in dataclasses.fields(config_type)):
            raise PluginError(
                f"{self.kind} {name!r}: {config_type.__name__} may not have a field called 'name'; that key holds {name!r} in checkpoints"
            )
        origin = _origin.get() or config_type.__module__
        for taken in (self._entries.get(name), self._by_type.get(config_type)):
            if taken is not None:
                self._contested[name] = origin
                raise PluginError(f"{self._contest(taken, origin)}; choose another name and config class for one of them")

        def add(implementation: type[T]) -> type[T]:
            entry = Entry(name, config_type, implementation, origin)
            self._entries[name] = self._by_type[config_type] = entry
            return implementation

        return add

    def contested(self, name: str) -> str | None:
        """Who else asked for a name, or None."""
        return self._contested.get(name)

    def _contest(self, taken: Entry[T], origin: str) -> str:
        return f"{self.kind} {taken.name!r} is registered twice, by {taken.origin} and by {origin}"

    def withdraw(self, origin: str) -> None:
        """Forget every name that came from `origin` (a plugin that failed half way leaves nothing behind)."""
        for entry in [entry for entry in self._entries.values() if f"{entry.origin}.".startswith(f"{origin}.")]:
            del self._entries[entry.name], self._by_type[entry.config_type]

    def __getitem__(self, name: str) -> Entry[T]:
        """The entry of a name.

        Raises:
            PluginError: nobody registered it; the text names what did not load.
        """
        if name not in self._entries:
            known = ", ".join(sorted(self._entries)) or "none"
            raise PluginError(f"no {self.kind} named {name!r}{near(name, self._entries)}; known: {known}{failures()}")
        return self._entries[name]

    # A missing name is a PluginError, not a KeyError, so Mapping's own versions of these two would raise it.
    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def get(self, name: str, default: Any = None) -> Any:
        return self._entries.get(name, default)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def entry_of(self, config: Any) -> Entry[T]:
        """The entry whose config type is exactly `type(config)`.

        Raises:
            PluginError: the type was never registered, or its name was registered twice.
        """
        entry = self._by_type.get(type(config))
        if entry is None:
            known = ", ".join(sorted(self._entries)) or "none"
            raise PluginError(f"{type(config).__name__} is not the config of any registered {self.kind}; known: {known}{failures()}")
        # Whoever uses a doubtful name must not silently get the part that happened to load first.
        if entry.name in self._contested:
            raise PluginError(f"{self._contest(entry, self._contested[entry.name])}; rename one of them")
        return entry

    def name_of(self, config: Any) -> str | None:
        """The name of a config's exact type, or None where it was never registered."""
        entry = self._by_type.get(type(config))
        return entry and entry.name

    def build(self, config: Any, *args: Any, **kwargs: Any) -> T:
        """Construct the implementation that belongs to `type(config)`."""
        return self.entry_of(config).implementation(config, *args, **kwargs)

    def describe(self, config: Any) -> dict[str, Any]:
        """`{"name": ..., field: value, ...}`, JSON-ready; `parse` reads it back."""
        self.entry_of(config)
        return to_plain(config)

    def parse(self, data: Mapping[str, Any]) -> Any:
        """The config that `describe` wrote.

        Raises:
            PluginError: it has no name, or one that is not registered. ConfigError: a field is unknown.
        """
        if "name" not in data:
            raise PluginError(f"a described {self.kind} needs the key 'name'; it has {', '.join(data) or 'no key'}")
        return from_plain(self[data["name"]].config_type, data)
