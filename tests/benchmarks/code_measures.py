"""Measures the source code: functions, files, lines, comments, docstrings, rings and layers.

    python tests/benchmarks/code_measures.py [FOLDER ...] [--json]

Without a folder it measures `echox` and `echox_cli` of this checkout, together and apart.

How each is counted:
  lines        all lines of `*.py` files, empty ones too
  functions    functions and methods, nested ones too, from `def` to the last line, without
               decorators; percentiles by nearest rank
  comments     lines that hold a comment, of all lines
  line length  characters of lines that are not empty
  docstrings   of public functions, methods and classes (no name on the way to them begins with an
               underscore) the share with a docstring, with a shape such as `[B, T]`, with a unit
               of measure, and with a `Raises:` section
  rings        groups of modules that import each other in a circle, imports inside functions
               included, those for type checking not
  exceptions   modules that the layers contract in `pyproject.toml` allows to import each other
               within a layer (`:`), or ignores
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import math
import re
import sys
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("echox", "echox_cli")

LONG_FILE_LINES = 300
LONG_LINE_CHARACTERS = 100
SHAPE = re.compile(r"\[[A-Z][A-Za-z0-9_']*(?:(?:,| [-+*/]) ?[A-Za-z0-9_'.+*/ -]+)*\]")
UNIT = re.compile(
    r"\b(?:seconds?|milliseconds?|minutes?|hours?|Hz|samples?|frames?|bytes?|tokens?|dB|decibels?|MiB|GiB|characters?|steps?|_s|_hz)\b"
)
RAISES = re.compile(r"^\s*(?:Args:.*|.*?\.\s+)?Raises:", re.MULTILINE)

Function = ast.FunctionDef | ast.AsyncFunctionDef


def measures(folders: Sequence[Path]) -> dict[str, float]:
    """All measures of the Python files below folders: name -> number; shares are percentages."""
    texts = {
        path: path.read_text(encoding="utf-8")
        for folder in folders
        for path in sorted(folder.rglob("*.py"))
    }
    trees = {path: ast.parse(text) for path, text in texts.items()}
    lines = [line for text in texts.values() for line in text.splitlines()]
    functions = [
        node.end_lineno - node.lineno + 1
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, Function)
    ]
    lengths = [len(line) for line in lines if line.strip()]
    docstrings = [ast.get_docstring(node) for tree in trees.values() for node in public(tree)]
    found = [text for text in docstrings if text]
    files = [len(text.splitlines()) for text in texts.values()]
    return {
        "lines": len(lines),
        "files": len(files),
        f"files above {LONG_FILE_LINES} lines": sum(length > LONG_FILE_LINES for length in files),
        "longest file": max(files),
        "functions": len(functions),
        "functions per 1,000 lines": round(1000 * len(functions) / len(lines), 1),
        "function p50": percentile(functions, 50),
        "function p90": percentile(functions, 90),
        "longest function": max(functions),
        "comments, % of lines": share(sum(map(comment_lines, texts.values())), len(lines)),
        "line length p90": percentile(lengths, 90),
        f"lines above {LONG_LINE_CHARACTERS}, %": share(
            sum(length > LONG_LINE_CHARACTERS for length in lengths), len(lengths)
        ),
        "public docstrings, %": share(len(found), len(docstrings)),
        "with shapes, %": share(sum(bool(SHAPE.search(text)) for text in found), len(docstrings)),
        "with units, %": share(sum(bool(UNIT.search(text)) for text in found), len(docstrings)),
        "with errors, %": share(sum(bool(RAISES.search(text)) for text in found), len(docstrings)),
        "import rings": len(rings(imports(trees, folders))),
    }


def public(tree: ast.Module) -> Iterator[ast.AST]:
    """Public functions, methods and classes; none that is nested in a function."""
    waiting: list[ast.Module | ast.ClassDef] = [tree]
    while waiting:
        for node in waiting.pop().body:
            if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
                yield node
                if isinstance(node, ast.ClassDef):
                    waiting.append(node)


def comment_lines(text: str) -> int:
    """Lines of a source text that hold a comment."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return len({token.start[0] for token in tokens if token.type == tokenize.COMMENT})


def imports(trees: dict[Path, ast.Module], folders: Sequence[Path]) -> dict[str, set[str]]:
    """Module -> the modules of the same folders that it imports, at its top or inside functions."""
    names = {
        module_name(path, folder): path
        for folder in folders
        for path in trees
        if folder in path.parents
    }
    graph: dict[str, set[str]] = {}
    for name, path in names.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        graph[name] = {
            target for target in imported(trees[path], package, set(names)) if target != name
        }
    return graph


def module_name(path: Path, folder: Path) -> str:
    parts = path.relative_to(folder.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(tree: ast.AST, package: str, known: set[str]) -> Iterator[str]:
    """Names of known modules that a module imports.

    `from package import module` is an import of the module.
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            above = (
                package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            )
            base = ".".join([*above, *([node.module] if node.module else [])])
            inside = {f"{base}.{alias.name}" for alias in node.names} & known
            yield from inside
            if base in known and len(inside) < len(node.names):
                yield base
        yield from imported(node, package, known)


def rings(graph: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected groups of several modules, by Tarjan's algorithm without recursion."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups = []
    for root in graph:
        if root in index:
            continue
        path = [(root, iter(sorted(graph[root])))]
        index[root] = low[root] = len(index)
        stack.append(root)
        while path:
            node, targets = path[-1]
            for target in targets:
                if target not in index:
                    index[target] = low[target] = len(index)
                    stack.append(target)
                    path.append((target, iter(sorted(graph[target]))))
                    break
                if target in stack:
                    low[node] = min(low[node], index[target])
            else:
                path.pop()
                if path:
                    low[path[-1][0]] = min(low[path[-1][0]], low[node])
                if low[node] == index[node]:
                    at = stack.index(node)
                    group, stack[at:] = sorted(stack[at:]), []
                    if len(group) > 1:
                        groups.append(group)
    return groups


def layer_exceptions(pyproject: Path) -> int:
    """Modules of a layer that are joined by ':', and imports that a layers contract ignores."""
    if sys.version_info < (3, 11):
        import tomli as tomllib
    else:
        import tomllib

    contracts = tomllib.loads(pyproject.read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    layers = [
        layer
        for contract in contracts
        if contract["type"] == "layers"
        for layer in contract["layers"]
    ]
    ignored = [
        line
        for contract in contracts
        if contract["type"] == "layers"
        for line in contract.get("ignore_imports", [])
    ]
    return sum(layer.count(":") + 1 for layer in layers if ":" in layer) + len(ignored)


def percentile(values: Sequence[int], percent: int) -> int:
    """The smallest value that at least so many percent do not exceed."""
    return sorted(values)[math.ceil(len(values) * percent / 100) - 1]


def share(part: int, whole: int) -> float:
    return round(100 * part / max(1, whole), 1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        epilog="The head of the file says how each measure is counted.",
    )
    parser.add_argument(
        "folders",
        nargs="*",
        type=Path,
        help="packages to measure; by itself echox and echox_cli of this checkout",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    folders = [folder.resolve() for folder in arguments.folders] or [
        ROOT / name for name in PACKAGES
    ]
    columns = {"all": measures(folders)} if len(folders) > 1 else {}
    columns |= {folder.name: measures([folder]) for folder in folders}
    if not arguments.folders:
        columns["all"]["layer exceptions"] = layer_exceptions(ROOT / "pyproject.toml")
    if arguments.json:
        print(json.dumps(columns, indent=2))
        return
    names = list(next(iter(columns.values())))
    print("| measure | " + " | ".join(columns) + " |\n|---|" + "---:|" * len(columns))
    for name in names:
        print(
            f"| {name} | "
            + " | ".join(
                f"{column.get(name, ''):,}" if name in column else "" for column in columns.values()
            )
            + " |"
        )


if __name__ == "__main__":
    main()
