"""A device that this machine lacks is one sentence that lists what it has."""

import pytest
import torch

from echox.core.device import device_named
from echox.core.errors import ConfigError


@pytest.mark.parametrize("name", ["mps", "xpu", "xpu:1", "meta", "cuda:99", "hpu"])
def test_an_absent_device_is_refused_with_those_present(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.xpu, "device_count", lambda: 1 if name == "xpu:1" else 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    present = "cpu, cuda:0 to cuda:1" + (", xpu" if name == "xpu:1" else "")
    with pytest.raises(ConfigError) as error:
        device_named(name)
    assert str(error.value) == (
        f"device {name!r} is not on this machine, which has {present}; use auto or one of these"
    )


def test_present_and_unknown_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert device_named("cpu") == torch.device("cpu") and device_named("mps") == torch.device("mps")
    with pytest.raises(ConfigError, match="device 'tpu' is unknown"):
        device_named("tpu")
    with pytest.raises(ConfigError, match="'cuda' is not on this machine, which has cpu, mps;"):
        device_named("cuda")
