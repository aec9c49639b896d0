"""Every registered part, plugins included, keeps the contract of its kind."""

import pytest

from echox.pipeline.plugins import REGISTRIES, discover
from echox.testing import checks_for, offline_config

discover()


def config_of(kind, name):
    return offline_config(REGISTRIES[kind][name].config_type)


RULES = [
    pytest.param(kind, name, rule, id=f"{kind}-{name}-{rule.__name__}")
    for kind, registry in REGISTRIES.items()
    for name in sorted(registry)
    for rule in checks_for(config_of(kind, name))
]


@pytest.mark.parametrize(("kind", "name", "rule"), RULES)
def test_contract(kind, name, rule):
    rule(config_of(kind, name))
