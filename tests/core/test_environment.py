"""Environment variables: the code reads none that `echox-info` and the page do not explain."""

import re
from pathlib import Path

import echox_recipes

import echox
import echox_cli
from echox.core.environment import OTHER_VARIABLES, OWN_VARIABLES

RECIPES = Path(echox_recipes.__file__).parent
FOLDERS = (*map(Path, echox.__path__), *map(Path, echox_cli.__path__), RECIPES)
TESTS = Path(__file__).parent.parent
PAGE = (RECIPES / "README.md").read_text(encoding="utf-8")
# How a variable is read or set by its name: `os.environ["A"]`, `.get("A")`, `"A" in os.environ`.
READ = re.compile(r'environ(?:\.\w+\(|\[)\s*"(\w+)"|"([A-Z_]{4,})" (?:not )?in os\.environ')


def texts(*folders):
    paths = (path for folder in folders for path in folder.rglob("*"))
    files = (path for path in paths if path.suffix in (".py", ".yaml", ".txt"))
    return {path: path.read_text(encoding="utf-8") for path in files if path != Path(__file__)}


def test_every_variable_of_echox_is_explained_and_every_explained_one_is_used():
    used = texts(*FOLDERS, TESTS / "golden")
    del used[Path(*map(Path, echox.__path__)) / "core" / "environment.py"]
    names = {name for text in used.values() for name in re.findall(r"\bECHOX_[A-Z_]+\b", text)}
    assert names == set(OWN_VARIABLES)


def test_every_other_variable_that_is_read_is_explained():
    read = {
        name
        for text in texts(*FOLDERS).values()
        for names in READ.findall(text)
        for name in names
        if name
    }
    assert {"RANK", "OMP_NUM_THREADS", "OMP_WAIT_POLICY"} <= read
    assert read <= {*OWN_VARIABLES, *OTHER_VARIABLES}


def test_the_page_explains_them_in_the_same_words():
    rows = re.findall(r"^\| `([A-Z_]+)` \| (.+) \|$", PAGE, re.MULTILINE)
    assert dict(rows) == {**OWN_VARIABLES, **OTHER_VARIABLES}
