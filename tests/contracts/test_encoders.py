"""Every registered encoder keeps the contract; a new one is tested by existing."""

import pytest

from echox.encoders.base import ENCODERS
from echox.plugins import discover
from echox.testing import offline_config
from echox.testing.encoders import CHECKS

discover()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_contract(name, check):
    check(offline_config(ENCODERS[name].config_type))
