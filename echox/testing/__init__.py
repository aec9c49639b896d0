"""Contract tests: what every implementation of a kind must keep, for echox's own parts and for plugins alike.

    from echox.testing.encoders import CHECKS

    @pytest.mark.parametrize("check", CHECKS)
    def test_contract(check):
        check(MyConfig())

A check takes a config, builds the part, and raises `AssertionError` with a sentence when the contract is broken.
"""

from __future__ import annotations

import dataclasses
from typing import Any


def offline_config(config_type: type) -> Any:
    """A config to test with: its defaults, but with random weights where it takes weights."""
    takes_weights = "weights" in (field.name for field in dataclasses.fields(config_type))
    return config_type(weights="random") if takes_weights else config_type()
