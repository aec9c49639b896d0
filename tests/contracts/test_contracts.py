"""Every registered part keeps the contract of its kind; a new one is tested by existing, plugins included."""

import pytest

from echox.plugins import REGISTRIES, discover
from echox.testing import checks_for, offline_config

discover()

SWEPT = ("encoder", "backbone", "codec", "criterion")
RULES = [
    pytest.param(kind, name, rule, id=f"{kind}-{name}-{rule.__name__}")
    for kind in SWEPT
    for name in sorted(REGISTRIES[kind])
    for rule in checks_for(offline_config(REGISTRIES[kind][name].config_type))
]


@pytest.mark.parametrize(("kind", "name", "rule"), RULES)
def test_contract(kind, name, rule):
    rule(offline_config(REGISTRIES[kind][name].config_type))
