"""What a plugin of each kind must and may have: docstring and page say what the class does."""

import inspect
import re
from pathlib import Path

import echox_plugins
import pytest

from echox.backbones.base import Backbone
from echox.codecs.base import Codec
from echox.core.registry import KINDS
from echox.criteria.base import Criterion
from echox.encoders.base import Encoder
from echox.metrics.base import Metric
from echox.pipeline.plugins import REGISTRIES, discover
from echox.tasks.base import Task

BASES = {
    "encoder": Encoder,
    "backbone": Backbone,
    "codec": Codec,
    "task": Task,
    "criterion": Criterion,
    "metric": Metric,
}
PAGE = (Path(echox_plugins.__file__).parent / "README.md").read_text(encoding="utf-8")


def members(base):
    """Needed and optional names of a base class: abstract or not, without a default or with one."""
    methods = [
        name
        for name, value in vars(base).items()
        if inspect.isfunction(value) or isinstance(value, (classmethod, property))
    ]
    public = [*inspect.get_annotations(base), *(it for it in methods if not it.startswith("_"))]
    needed = [it for it in public if it in base.__abstractmethods__ or not hasattr(base, it)]
    return sorted(needed), sorted(set(public) - set(needed))


def names(text):
    return sorted(re.findall(r"`(\w+)`", text))


@pytest.mark.parametrize("kind", KINDS)
def test_the_docstring_lists_what_is_needed_and_what_is_optional(kind):
    needed, optional = inspect.getdoc(BASES[kind]).partition("Needed:")[2].split("Optional:")
    assert (names(needed), names(optional.partition("\n\n")[0])) == members(BASES[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_the_table_of_the_page_lists_the_same(kind):
    (row,) = re.findall(rf"^\| {kind} \| (`.*) \| (`.*|none) \|$", PAGE, re.MULTILINE)
    assert tuple(map(names, row)) == members(BASES[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_a_worked_example(kind):
    discover()
    examples = [entry for entry in REGISTRIES[kind].values() if "echox_plugins" in entry.origin]
    assert examples
    for entry in examples:
        assert f"{entry.implementation.__module__.partition('.')[2]}.py" in PAGE
