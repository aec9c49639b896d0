"""Cache of texts that take seconds to compute: help, explanations, and offers for completion.

Such an answer needs every part of echox, plugins included, and changes only when one of their
files does. So it is stored together with the state of each file and folder that was read for
it, and is valid while all of them are unchanged. Everything else it may depend on is part of
its key: the question, the working folder, the interpreter, the installed packages, the
environment variables and the machine. In doubt an answer is computed again.

Answers are JSON files in `answers/` of echox's cache folder; a folder that cannot be written is
no error.
"""

from __future__ import annotations

import fnmatch
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from echox.core.files import atomic_write, cache_folder
from echox.core.registry import (
    ENTRY_POINTS,
    FAILURES,
    RECIPE_ENTRY_POINTS,
    SUBJECT_ENTRY_POINTS,
)

LIMIT = 200
"""Answers that are kept, each of some ten kilobytes; the oldest are deleted first."""

PACKAGES = ("echox", "echox_cli", "echox_plugins", "echox_recipes")
"""Packages whose files are tracked wherever they lie, beside those of plugins.

Other libraries count by their versions.
"""
FOLDERS = ("plugins", "recipes")
"""Folders of the working folder that are tracked even before they exist."""

# Variables that tell one terminal from another; no answer depends on them.
_SESSION = (
    "_", "SHLVL", "OLDPWD", "COLUMNS", "LINES", "COMP_*", "*_SESSION_ID", "SSH_*", "TMUX*", "STY",
    "WINDOW", "WINDOWID", "GPG_TTY", "DISPLAY", "WAYLAND_DISPLAY", "XAUTHORITY", "DBUS_*",
    "XDG_SESSION*", "XDG_VTNR", "VTE_VERSION", "VSCODE_*", "KONSOLE_*", "INVOCATION_ID",
    "JOURNAL_STREAM",
)  # fmt: skip
_MACHINE = ("/proc/", "/sys/", "/dev/")  # no files: what they hold changes by itself
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class AnswerCache:
    """Answers for this machine, user, environment and working folder."""

    def __init__(self) -> None:
        self._folder = cache_folder() / "answers"
        self._environment = _environment_digest()
        self._observer: _Observer | None = None

    def get(self, question: Sequence[str]) -> Any | None:
        """Return a stored answer that is still valid, or None.

        After None, everything that the process reads is tracked for `put`.

        Args:
            question: the words that the answer depends on.
        """
        try:
            entry = json.loads(self._path(question).read_text(encoding="utf-8"))
            if _is_unchanged(entry):
                return entry["answer"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass  # there is none, or it was damaged
        # One observer for the process: Python cannot remove an audit hook.
        self._observer = self._observer or _Observer(self._folder)
        return None

    def put(self, question: Sequence[str], answer: Any) -> None:
        """Store an answer, unless a plugin failed to load.

        Args:
            question: as given to `get` before the answer was computed.
            answer: JSON-ready data.
        """
        # A plugin may fail because a package is missing; installing it changes no tracked file.
        if FAILURES or self._observer is None:
            return
        entry = {
            "files": self._observer.files,
            "folders": self._observer.folders,
            "answer": answer,
        }
        try:
            with atomic_write(self._path(question)) as unfinished:
                unfinished.write_text(json.dumps(entry), encoding="utf-8")
            _delete_oldest(self._folder)
        except OSError:
            pass  # without a cache the command is slower, not wrong

    def _path(self, question: Sequence[str]) -> Path:
        # 32 hex digits are 128 bits, far beyond an accidental collision.
        return self._folder / f"{_digest([self._environment, *question])[:32]}.json"


def _is_unchanged(entry: dict[str, Any]) -> bool:
    return all(_file_state(path) == state for path, state in entry["files"].items()) and all(
        _folder_state(path) == state for path, state in entry["folders"].items()
    )


class _Observer:
    """Records the files and folders that this process reads, in their state before the read."""

    def __init__(self, answers: Path) -> None:
        self.files: dict[str, list[int] | None] = {}
        self.folders: dict[str, str | None] = {}
        self._own = tuple(_own_prefixes())
        self._ignored = (*_MACHINE, f"{answers.absolute()}{os.sep}", *_library_prefixes())
        # What was read before the hook is added: modules, and folders that Python searched.
        # Of modules a copy, because asking a lazy module for its file may import others.
        for module in list(sys.modules.values()):
            self._record_file(getattr(module, "__file__", None))
        for folder in (*FOLDERS, *sys.path):
            self._record_folder(folder or ".")
        # An audit hook sees every read, whatever library does it.
        sys.addaudithook(self._on_audit_event)

    def _on_audit_event(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("os.listdir", "os.scandir"):
            self._record_folder(arguments[0] or ".")
        elif event == "open" and not arguments[2] & _WRITING:
            self._record_file(arguments[0])

    def _record_file(self, path: Any) -> None:
        path = self._tracked_path(path)
        if path and path.endswith(".pyc"):
            # Python writes compiled code anew for reasons of its own; the source decides.
            path = _source(path)
        if path and path not in self.files:
            self.files[path] = _file_state(path)

    def _record_folder(self, path: Any) -> None:
        path = self._tracked_path(path)
        if path and path not in self.folders:
            # First None: computing the state lists the folder, which is such an event too.
            self.folders[path] = None
            self.folders[path] = _folder_state(path)

    def _tracked_path(self, path: Any) -> str | None:
        """Return the absolute path of a file or folder to track, or None."""
        # `open` also takes descriptors, which have no path.
        if not isinstance(path, (str, bytes, os.PathLike)):
            return None
        path = os.path.abspath(os.fsdecode(path))
        # With a separator at the end, so that a folder lies within itself.
        inside = f"{path}{os.sep}"
        is_ignored = inside.startswith(self._ignored) and not inside.startswith(self._own)
        return None if is_ignored else path


def _environment_digest() -> str:
    """Return a digest of all that an answer may depend on beside files and the question."""
    variables = {
        name: value
        for name, value in os.environ.items()
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in _SESSION)
    }
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    # The flags, because `-OO` removes the docstrings that help consists of.
    interpreter = [sys.version, sys.flags, sys.executable, sys.path]
    packages = list(_distributions())
    machine = [list(os.uname()), cores]
    return _digest([os.getcwd(), interpreter, packages, sorted(variables.items()), *machine])


def _distributions() -> Iterator[tuple[str, int]]:
    """Yield the metadata of installed packages: path, whose name holds the version, and time."""
    for folder in filter(os.path.isdir, sys.path):
        # By folder names: reading the metadata of all packages would take longer than the rest.
        with os.scandir(folder) as entries:
            # The last two are those of editable installations.
            packages = [
                entry
                for entry in entries
                if entry.name.endswith((".dist-info", ".egg-info", ".egg-link", ".pth"))
            ]
        yield from sorted((entry.path, entry.stat().st_mtime_ns) for entry in packages)


def _own_prefixes() -> Iterator[str]:
    """Yield the folders of echox and of installed plugins, and plugins that are single files."""
    groups = (ENTRY_POINTS, RECIPE_ENTRY_POINTS, SUBJECT_ENTRY_POINTS)
    points = importlib.metadata.entry_points()
    plugins = (
        point.module.partition(".")[0] for group in groups for point in points.select(group=group)
    )
    for name in dict.fromkeys((*PACKAGES, *plugins)):
        if spec := importlib.util.find_spec(name):
            places = spec.submodule_search_locations or ([spec.origin] if spec.origin else [])
            yield from (f"{os.path.abspath(place)}{os.sep}" for place in places)


def _library_prefixes() -> Iterator[str]:
    """Yield the folders of installed libraries and of Python's own, which count by version."""
    folders = [
        folder
        for folder in sys.path
        if os.path.basename(folder) in ("site-packages", "dist-packages", "lib-dynload")
    ]
    yield from (
        f"{os.path.abspath(folder)}{os.sep}" for folder in (*folders, os.path.dirname(os.__file__))
    )


def _source(path: str) -> str:
    try:
        return importlib.util.source_from_cache(path)
    except ValueError:  # compiled code beside which no source is kept
        return path


def _file_state(path: str) -> list[int] | None:
    try:
        state = os.stat(path)
    except OSError:
        return None  # a file that is missing is a state too: it may appear
    # The change time shows changed permissions, and a modification time that was set back.
    return [state.st_mtime_ns, state.st_ctime_ns, state.st_size]


def _folder_state(path: str) -> str | None:
    """Return a digest of a folder's names and of which of its folders are packages."""
    try:
        with os.scandir(path) as entries:
            names = sorted(
                (entry.name, entry.is_dir() and os.path.isfile(f"{entry.path}/__init__.py"))
                for entry in entries
                # Compiled code appears by reading.
                if entry.name != "__pycache__"
            )
    except OSError:
        return None
    return _digest(names)


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data).encode()).hexdigest()


def _delete_oldest(folder: Path) -> None:
    answers = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in answers[LIMIT:]:
        # Another process may have deleted it at the same time.
        path.unlink(missing_ok=True)
