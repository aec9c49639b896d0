"""Contract tests: the rules of each kind of part, for echox's own parts and for plugins alike.

    from echox.testing import check

    def test_contract():
        check(MyConfig())

`check` finds the kind by the config. For a report with one line per rule, each kind has its own
module with the rules in `CHECKS`:

    from echox.testing.encoders import CHECKS

    @pytest.mark.parametrize("rule", CHECKS)
    def test_contract(rule):
        rule(MyConfig())

A rule takes a config, builds the part, and raises `AssertionError` with a sentence when the
contract is broken. Parts are built as they are for use, so a config that downloads weights does so
here too; `offline_config` returns one that does not.
"""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

from echox.core.errors import PluginError
from echox.pipeline.plugins import REGISTRIES
from echox.tasks.base import TaskConfig
from echox.testing.rules import Rule

# Imported when they are used, since each imports the parts' own modules.
_MODULES = {
    "encoder": "encoders",
    "backbone": "backbones",
    "codec": "codecs",
    "task": "tasks",
    "criterion": "criteria",
    "metric": "metrics",
}


def offline_config(config_type: type) -> Any:
    """Return a config that needs no file and no network.

    Args:
        config_type: the config class of a part.

    Returns:
        its defaults, with random weights where it, or the config of a part inside it, has a field
        for weights or a fitted folder; for a task, the config of the smoke recipe.
    """
    is_task = issubclass(config_type, TaskConfig)
    if is_task:
        # Imported here because it imports the whole pipeline.
        from echox.testing.noise_corpus import small_config

        return small_config(config_type)
    names = {field.name for field in dataclasses.fields(config_type)}
    config = config_type(**{name: "random" for name in ("weights", "folder") if name in names})
    values = {name: getattr(config, name) for name in names}
    return dataclasses.replace(
        config,
        **{name: offline_config(type(value)) for name, value in values.items() if _is_part(value)},
    )


def _is_part(value: Any) -> bool:
    return any(registry.name_of(value) is not None for registry in REGISTRIES.values())


def checks_for(config: Any) -> tuple[Rule, ...]:
    """Return the rules of a config's kind.

    Raises:
        PluginError: the config belongs to no registered part.
    """
    kinds = [kind for kind, registry in REGISTRIES.items() if registry.name_of(config) is not None]
    if not kinds:
        raise PluginError(
            f"{type(config).__name__} is not the config of any registered part; "
            "register it, or import the module that does"
        )
    return importlib.import_module(f"echox.testing.{_MODULES[kinds[0]]}").CHECKS


def check(config: Any) -> None:
    """Test a part by the contract of its kind.

    Args:
        config: the config of a registered part.

    Raises:
        AssertionError: it breaks rules; each is named with its reason.
        PluginError: the config belongs to no registered part.
    """
    # All rules, since one fault often breaks several and together they tell which it is.
    broken: list[str] = []
    first: Exception | None = None
    for rule in checks_for(config):
        try:
            rule(config)
        except AssertionError as error:
            broken.append(f"{rule.__name__}: {error}")
        # Any other too: what a faulty part raises must not hide the other rules.
        except Exception as error:
            broken.append(f"{rule.__name__}: {type(error).__name__}: {error}")
            first = first or error
    if broken:
        message = f"{type(config).__name__} breaks {len(broken)} rules of its contract"
        # With the traceback of the first, which shows the place in the part.
        raise AssertionError("\n".join([message, *broken])) from first
