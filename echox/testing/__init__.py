"""Contract tests: what every implementation of a kind must keep, for echox's own parts and for plugins alike.

    from echox.testing import check

    def test_contract():
        check(MyConfig())

`check` knows the kind by the config. For a report with one line per rule, each kind has its own module with the rules in `CHECKS`:

    from echox.testing.encoders import CHECKS

    @pytest.mark.parametrize("rule", CHECKS)
    def test_contract(rule):
        rule(MyConfig())

A rule takes a config, builds the part, and raises `AssertionError` with a sentence when the contract is broken. Parts are built as they
are for use, so a config that fetches weights fetches them here too; `offline_config` gives one that does not.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any

from echox.errors import PluginError
from echox.plugins import REGISTRIES
from echox.registry import Registry
from echox.tasks.base import TaskConfig

Rule = Callable[[Any], None]

_MODULES = {"encoder": "encoders", "backbone": "backbones", "codec": "codecs", "task": "tasks", "criterion": "criteria"}


def offline_config(config_type: type) -> Any:
    """A config to test with: its defaults, but random weights where it takes weights or a fitted folder, and a task's smallest."""
    if issubclass(config_type, TaskConfig):
        from echox.testing.tasks import small_config

        return small_config(config_type)
    names = {field.name for field in dataclasses.fields(config_type)}
    return config_type(**{name: "random" for name in ("weights", "folder") if name in names})


def checks_for(config: Any) -> tuple[Rule, ...]:
    """The rules of a config's kind.

    Raises:
        PluginError: the config belongs to no registered part.
    """
    kind = next((kind for kind, registry in REGISTRIES.items() if registry.name_of(config) is not None), None)
    if kind is None:
        raise PluginError(f"{type(config).__name__} is not the config of any registered part; register it, or import the module that does")
    return importlib.import_module(f"echox.testing.{_MODULES[kind]}").CHECKS


def check(config: Any) -> None:
    """Hold a part to the contract of its kind.

    Raises:
        AssertionError: it breaks one or several rules; each is named with what was found.
    """
    broken = []
    for rule in checks_for(config):
        try:
            rule(config)
        except AssertionError as error:
            broken.append(f"{rule.__name__}: {error}")
    assert not broken, f"{type(config).__name__} breaks {len(broken)} rules of its contract\n" + "\n".join(broken)


def survives_a_checkpoint(registry: Registry, config: Any) -> None:
    """The rule all kinds share: what a checkpoint records of a config gives the config back."""
    described = registry.describe(config)
    assert registry.parse(described) == config, f"describe and parse do not give the config back: {described}"


def has_a_stable_fingerprint(build: Callable[[], Any]) -> None:
    """The rule of the parts that caches and checkpoints are keyed by."""
    first, second = build().fingerprint(), build().fingerprint()
    assert first and isinstance(first, str), f"the fingerprint must be a text, not {first!r}"
    assert first == second, f"two parts of one config have the fingerprints {first} and {second}"
