"""The smoke recipe's T2C and Echo stages learn the same, whichever way `criterion.impl` computes their unit loss."""

import copy
import dataclasses

import pytest
import torch

from echox.criteria.base import CRITERIA
from echox.kernels.codec_head_loss import Impl
from echox.plugins import discover
from echox.recipe import load_recipe
from echox.testing.tasks import _stage, small_config

STEPS = 5
# The first loss is that of equal weights; after that float32 rounding is fed back by every update.
FIRST, LATER = 1e-5, 1e-4


@pytest.mark.parametrize("name", ["t2c", "echo"])
def test_curves_are_equal(name):
    discover()
    plan = load_recipe("echo_tiny").plan(name)
    stage = _stage(small_config(type(plan.task)))
    batches = [stage.batch([0, 1]), stage.batch([2, 3])]

    def learned(impl):
        torch.manual_seed(0)  # dropout
        model = copy.deepcopy(stage.model).train()
        criterion = CRITERIA.build(dataclasses.replace(plan.criterion, impl=impl))
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        curve = []
        for step in range(STEPS):
            batch = batches[step % 2]
            loss = criterion(stage.task.forward(model, batch), batch)
            optimizer.zero_grad()
            (loss.total / loss.count).backward()
            optimizer.step()
            curve.append(float(loss.total.detach()) / loss.count)
        return torch.tensor(curve)

    truth = learned(Impl.reference)
    assert truth[4] < truth[0], "the stage learns nothing, so equal curves say nothing"
    for impl in (Impl.auto, Impl.torch, Impl.chunked, Impl.fused):
        curve = learned(impl)
        assert torch.allclose(curve[0], truth[0], rtol=FIRST), impl
        assert torch.allclose(curve, truth, rtol=LATER), (impl, curve, truth)
