"""Keeps answers that take seconds to compute: help, explanations, what may follow a word.

Such an answer needs every part of echox, plugins included, and changes only when one of their files does. So it is kept
together with the state of each file and folder that was read for it, and given again while all of them are as they were.
Whatever else it may depend on is part of its name: the question, the working folder, the interpreter, the installed
packages, the environment and the machine. In doubt an answer is computed again.

Answers lie as JSON in `answers/` of echox's cache folder; a folder that cannot be written is no error.
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

from echox.data.writing import appearing
from echox.disk import cache_folder
from echox.registry import ENTRY_POINTS, FAILURES

LIMIT = 200
"""Answers that are kept, each of some ten kilobytes; the oldest go first."""

PACKAGES = ("echox", "echox_cli", "echox_plugins", "echox_recipes")
"""Packages whose files count wherever they lie, beside those of plugins; libraries count by their versions."""
FOLDERS = ("plugins", "recipes")
"""Folders of the working folder that count from the moment they appear."""

# What tells one terminal from another; no answer depends on it.
_SESSION = (
    "_", "SHLVL", "OLDPWD", "COLUMNS", "LINES", "COMP_*", "*_SESSION_ID", "SSH_*", "TMUX*", "STY", "WINDOW", "WINDOWID", "GPG_TTY", "DISPLAY",
    "WAYLAND_DISPLAY", "XAUTHORITY", "DBUS_*", "XDG_SESSION*", "XDG_VTNR", "VTE_VERSION", "VSCODE_*", "KONSOLE_*", "INVOCATION_ID", "JOURNAL_STREAM",
)  # fmt: skip
_MACHINE = ("/proc/", "/sys/", "/dev/")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class AnswerCache:
    """The answers that were kept for this machine, user, environment and working folder."""

    def __init__(self) -> None:
        self._folder = cache_folder() / "answers"
        self._circumstances = _circumstances()
        self._observer: _Observer | None = None

    def get(self, question: Sequence[str]) -> Any | None:
        """The answer that `put` kept, or None; then all that is read from here on is noted for `put`."""
        try:
            kept = json.loads(self._path(question).read_text(encoding="utf-8"))
            if all(_file(path) == state for path, state in kept["files"].items()) and all(
                _folder(path) == state for path, state in kept["folders"].items()
            ):
                return kept["answer"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass  # there is none, or it was damaged
        self._observer = self._observer or _Observer(self._folder)
        return None

    def put(self, question: Sequence[str], answer: Any) -> None:
        """Keep an answer of JSON-ready data, unless a plugin failed: what would mend that may be no file."""
        if FAILURES or self._observer is None:
            return
        kept = {"files": self._observer.files, "folders": self._observer.folders, "answer": answer}
        try:
            with appearing(self._path(question)) as unfinished:
                unfinished.write_text(json.dumps(kept), encoding="utf-8")
            _prune(self._folder)
        except OSError:
            pass

    def _path(self, question: Sequence[str]) -> Path:
        return self._folder / f"{_digest([self._circumstances, *question])[:32]}.json"


class _Observer:
    """Notes the files and folders that this process reads, in the state that they had just before."""

    def __init__(self, answers: Path) -> None:
        self.files: dict[str, list[int] | None] = {}
        self.folders: dict[str, str | None] = {}
        self._own = tuple(_own())
        self._uncounted = (*_MACHINE, f"{answers.absolute()}{os.sep}", *_library_folders())
        for module in list(sys.modules.values()):
            self._note_file(getattr(module, "__file__", None))
        for folder in (*FOLDERS, *sys.path):
            self._note_folder(folder or ".")
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("os.listdir", "os.scandir"):
            self._note_folder(arguments[0] or ".")
        elif event == "open" and not arguments[2] & _WRITING:
            self._note_file(arguments[0])

    def _note_file(self, path: Any) -> None:
        path = self._counted(path)
        if path and path.endswith(".pyc"):
            path = _source(path)
        if path and path not in self.files:
            self.files[path] = _file(path)

    def _note_folder(self, path: Any) -> None:
        path = self._counted(path)
        if path and path not in self.folders:
            self.folders[path] = None  # to look into it is such an event too
            self.folders[path] = _folder(path)

    def _counted(self, path: Any) -> str | None:
        """The whole path of what counts, or None."""
        if not isinstance(path, (str, bytes, os.PathLike)):
            return None
        path = os.path.abspath(os.fsdecode(path))
        inside = f"{path}{os.sep}"
        return None if inside.startswith(self._uncounted) and not inside.startswith(self._own) else path


def _circumstances() -> str:
    environment = {
        name: value for name, value in os.environ.items() if not any(fnmatch.fnmatchcase(name, pattern) for pattern in _SESSION)
    }
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    interpreter = [sys.version, sys.flags, sys.executable, sys.path]
    return _digest([os.getcwd(), interpreter, list(_distributions()), sorted(environment.items()), list(os.uname()), cores])


def _distributions() -> Iterator[tuple[str, int]]:
    """What is installed: the metadata folder of each package, whose name holds its version."""
    for folder in filter(os.path.isdir, sys.path):
        with os.scandir(folder) as entries:
            found = [entry for entry in entries if entry.name.endswith((".dist-info", ".egg-info", ".egg-link", ".pth"))]
        yield from sorted((entry.path, entry.stat().st_mtime_ns) for entry in found)


def _own() -> Iterator[str]:
    """The folders of echox and of installed plugins, or the file of a plugin that is no package."""
    plugins = (point.module.partition(".")[0] for point in importlib.metadata.entry_points(group=ENTRY_POINTS))
    for name in dict.fromkeys((*PACKAGES, *plugins)):
        if spec := importlib.util.find_spec(name):
            places = spec.submodule_search_locations or [spec.origin]
            yield from (f"{os.path.abspath(place)}{os.sep}" for place in places)


def _library_folders() -> Iterator[str]:
    folders = [folder for folder in sys.path if os.path.basename(folder) in ("site-packages", "dist-packages", "lib-dynload")]
    yield from (f"{os.path.abspath(folder)}{os.sep}" for folder in (*folders, os.path.dirname(os.__file__)))


def _source(path: str) -> str:
    try:
        return importlib.util.source_from_cache(path)
    except ValueError:  # compiled code beside which no source is kept
        return path


def _file(path: str) -> list[int] | None:
    try:
        state = os.stat(path)
    except OSError:
        return None
    return [state.st_mtime_ns, state.st_ctime_ns, state.st_size]  # the second tells of changed permissions, too


def _folder(path: str) -> str | None:
    """What is in a folder: names, and which of its folders are packages; not the compiled code, which appears by reading."""
    try:
        with os.scandir(path) as entries:
            names = sorted((entry.name, entry.is_dir() and os.path.isfile(f"{entry.path}/__init__.py")) for entry in entries if entry.name != "__pycache__")
    except OSError:
        return None
    return _digest(names)


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data).encode()).hexdigest()


def _prune(folder: Path) -> None:
    answers = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in answers[LIMIT:]:
        path.unlink(missing_ok=True)
