"""The unit losses over K codebooks: what is not said costs nothing, and the first codebook may weigh more."""

import pytest
import torch
import torch.nn.functional as F

from echox.criteria.base import EchoOutputs, UnitOutputs, codebook_weights
from echox.criteria.echo import CappedEchoConfig, EchoConfig, EchoCriterion
from echox.criteria.units import UnitsConfig, UnitsCriterion
from echox.errors import ConfigError
from echox.kernels.codec_head_loss import CodecHead
from echox.signals import Batch

SIZES = [7, 5, 5]
LABELS = torch.tensor([[1, -100, -100], [6, 2, -100], [3, -100, 4], [-100, 0, 1]])
SAID = 7
BATCH = Batch(("a",), SAID)


def spoken():
    torch.manual_seed(0)
    return {"unit_states": torch.randn(4, 16), "unit_labels": LABELS, "unit_head": CodecHead(16, SIZES)}


def expected(parts, weights):
    scores = parts["unit_head"](parts["unit_states"]).split(SIZES, dim=-1)
    return sum(weight * F.cross_entropy(own, LABELS[:, k], reduction="sum") for k, (own, weight) in enumerate(zip(scores, weights)))


@pytest.mark.parametrize(("first", "weights"), [(1.0, (1, 1, 1)), (4.0, (2, 0.5, 0.5)), (0.0, (0, 1.5, 1.5))])
def test_t2c_sums_what_is_said(first, weights):
    parts = spoken()
    found = UnitsCriterion(UnitsConfig(first_codebook=first))(UnitOutputs(**parts), BATCH)
    torch.testing.assert_close(found.total, expected(parts, weights))
    assert found.parts["units"][1] == found.parts["accuracy"][1] == SAID


@pytest.mark.parametrize(("first", "weights"), [(1.0, (1, 1, 1)), (4.0, (2, 0.5, 0.5))])
def test_echo_takes_the_mean_over_what_is_said(first, weights):
    parts = spoken()
    vectors = torch.ones(2, 3)
    outputs = EchoOutputs(**parts, denoised=vectors, text_vectors=vectors, text_logits=torch.zeros(1, 4), text_labels=torch.tensor([2]))
    found = EchoCriterion(EchoConfig(text_weight=0.0, first_codebook=first))(outputs, BATCH)
    torch.testing.assert_close(found.total / BATCH.count, expected(parts, weights) / SAID)
    assert found.parts["units"][1] == SAID


def test_a_single_codebook_has_no_weights():
    assert codebook_weights(CodecHead(8, 5), 4.0) is None


@pytest.mark.parametrize("config", [UnitsConfig, EchoConfig, CappedEchoConfig])
def test_a_weight_below_zero_is_refused_with_the_recipe(config):
    with pytest.raises(ConfigError, match="first_codebook is a weight"):
        config(first_codebook=-1.0)
