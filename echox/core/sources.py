"""Code that computes what caches hold: a digest of the files that a part's classes come from.

A cache that is named by it is made again when a plugin was edited. A plugin's file counts, a plugin
that is a package with all its modules, an installed package by its version, and of echox itself the
module or package of the part. Comments, docstrings and layout change no number and do not count.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import sys
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from echox.core.files import json_hash

# Classes of these are in every part; the interfaces (`echox.*.base`) compute nothing themselves.
_EVERYWHERE = {*sys.stdlib_module_names, "torch"}
_INSTALLED = {"site-packages", "dist-packages"}

_FILES: dict[str, dict[str, bytes]] = {}  # module or package -> its files, by name


@dataclass(frozen=True, slots=True)
class Code:
    """The code of parts."""

    digest: str  # 8 hexadecimal digits
    is_own: bool  # whether all of it is echox's own


def code_of(*parts: nn.Module) -> Code:
    """Return the code of parts, and of the parts inside them, such as the encoder of a codec."""
    types = {
        type(module)
        for part in parts
        for module in part.modules()
        # What has a fingerprint is a part; other modules are its layers.
        if callable(getattr(module, "fingerprint", None))
    }
    return code_of_types(*types)


def code_of_types(*types: type) -> Code:
    """Return the code of classes, without the parts that their objects are built of."""
    roots = {
        _root(cls.__module__) for each in types for cls in each.__mro__ if _counts(cls.__module__)
    }
    # Without the names, which hold the path of a plugin's file.
    digest = json_hash(sorted({_digest(root) for root in roots}), 8)
    return Code(digest, all(root.startswith("echox.") for root in roots))


def remember_source(module: str) -> None:
    """Read the files of a plugin that was just imported.

    They may be edited while a command runs, which then still computes with the code it imported.

    Args:
        module: its name in `sys.modules`.
    """
    _FILES[_root(module)] = _read(_root(module))


def _counts(module: str) -> bool:
    top = module.partition(".")[0]
    return top not in _EVERYWHERE and not (top == "echox" and module.endswith(".base"))


def _root(module: str) -> str:
    """The module whose file, or all of whose modules, count for a class of `module`."""
    names = module.split(".")
    # Not all of echox, where most changes concern another part.
    return ".".join(names[:3] if names[0] == "echox" else names[:1])


def _digest(root: str) -> str:
    if root not in _FILES:
        _FILES[root] = _read(root)
    return json_hash({name: _without_words(text) for name, text in _FILES[root].items()}, 16)


def _read(root: str) -> dict[str, bytes]:
    """Name -> content of the files of a module or package, or its version where it is installed."""
    # A class that was typed into an interpreter has no file.
    source = getattr(sys.modules.get(root), "__file__", None)
    if source is None:
        return {}
    path = Path(source)
    if not root.startswith("echox.") and _INSTALLED & set(path.parts):
        names = sorted(set(importlib.metadata.packages_distributions().get(root, [])))
        return {name: importlib.metadata.version(name).encode() for name in names}
    if path.name != "__init__.py":
        return {"": path.read_bytes()}
    folder = path.parent
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*.py")}


@functools.cache
def _without_words(content: bytes) -> str:
    """Source code without comments, docstrings and layout."""
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):
        # A version, or a file of a package that nothing imports.
        return hashlib.sha256(content).hexdigest()
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
            node.body[0] = ast.Pass()
    return ast.unparse(tree)
