"""The smoke recipe's T2C and Echo stages have equal losses for every `criterion.impl`."""

import copy
import dataclasses

import pytest
import torch

from echox.criteria.base import CRITERIA
from echox.kernels.codec_head_loss import Impl
from echox.pipeline.plugins import discover
from echox.pipeline.recipe import load_recipe
from echox.testing.noise_corpus import prepared_stage, small_config

STEPS = 5
# The first loss is that of equal weights; after that float32 rounding is fed back by every update.
FIRST, LATER = 1e-5, 1e-4


@pytest.mark.parametrize("name", ["t2c", "echo"])
def test_curves_are_equal(name):
    discover()
    plan = load_recipe("echo_tiny").plan(name)
    stage = prepared_stage(small_config(type(plan.task)))
    batches = [stage.batch([0, 1]), stage.batch([2, 3])]

    def loss_curve(impl):
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

    reference = loss_curve(Impl.reference)
    assert reference[4] < reference[0], "the loss does not fall, so equal curves prove nothing"
    for impl in (Impl.auto, Impl.torch, Impl.chunked, Impl.fused):
        curve = loss_curve(impl)
        assert torch.allclose(curve[0], reference[0], rtol=FIRST), impl
        assert torch.allclose(curve, reference, rtol=LATER), (impl, curve, reference)
