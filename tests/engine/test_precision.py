"""Where bfloat16 is used, and that weights stay float32."""

import pytest
import torch
from torch import nn

from echox.engine.config import Precision
from echox.engine.precision import autocast, uses_bf16

CPU = torch.device("cpu")


def test_auto_follows_the_device(monkeypatch):
    for choice, bf16 in (("bf16", True), ("fp32", False)):
        monkeypatch.setenv("ECHOX_CPU_PRECISION", choice)
        assert uses_bf16(Precision.auto, CPU) is bf16
    assert not uses_bf16(Precision.auto, torch.device("meta"))


@pytest.mark.parametrize(
    ("precision", "dtype"), [(Precision.bf16, torch.bfloat16), (Precision.fp32, torch.float32)]
)
def test_products_are_rounded_but_weights_are_not(precision, dtype):
    model = nn.Linear(4, 4)
    with autocast(precision, CPU):
        out = model(torch.ones(1, 4))
    out.sum().backward()
    assert out.dtype is dtype
    assert model.weight.dtype is model.weight.grad.dtype is torch.float32
