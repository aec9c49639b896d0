"""Unit losses over K codebooks: ignored targets have none, the first codebook may weigh more."""

import pytest
import torch
import torch.nn.functional as F

from echox.core.errors import ConfigError
from echox.core.signals import Batch
from echox.criteria.base import EchoOutputs, UnitOutputs, codebook_weights
from echox.criteria.echo import CappedEchoConfig, EchoConfig, EchoCriterion
from echox.criteria.units import UnitsConfig, UnitsCriterion
from echox.kernels.codec_head_loss import CodecHead

SIZES = [7, 5, 5]
LABELS = torch.tensor([[1, -100, -100], [6, 2, -100], [3, -100, 4], [-100, 0, 1]])
TARGET_COUNT = 7
BATCH = Batch(("a",), TARGET_COUNT)


def unit_fields():
    torch.manual_seed(0)
    return {
        "unit_states": torch.randn(4, 16),
        "unit_labels": LABELS,
        "unit_head": CodecHead(16, SIZES),
    }


def expected(parts, weights):
    scores = parts["unit_head"](parts["unit_states"]).split(SIZES, dim=-1)
    return sum(
        weight * F.cross_entropy(own, LABELS[:, k], reduction="sum")
        for k, (own, weight) in enumerate(zip(scores, weights))
    )


@pytest.mark.parametrize(
    ("first", "weights"), [(1.0, (1, 1, 1)), (4.0, (2, 0.5, 0.5)), (0.0, (0, 1.5, 1.5))]
)
def test_t2c_sums_over_valid_targets(first, weights):
    parts = unit_fields()
    loss = UnitsCriterion(UnitsConfig(first_codebook=first))(UnitOutputs(**parts), BATCH)
    torch.testing.assert_close(loss.total, expected(parts, weights))
    assert loss.parts["units"][1] == loss.parts["accuracy"][1] == TARGET_COUNT


@pytest.mark.parametrize(("first", "weights"), [(1.0, (1, 1, 1)), (4.0, (2, 0.5, 0.5))])
def test_echo_averages_over_valid_targets(first, weights):
    parts = unit_fields()
    vectors = torch.ones(2, 3)
    outputs = EchoOutputs(
        **parts,
        denoised=vectors,
        text_vectors=vectors,
        text_logits=torch.zeros(1, 4),
        text_labels=torch.tensor([2]),
    )
    loss = EchoCriterion(EchoConfig(text_weight=0.0, first_codebook=first))(outputs, BATCH)
    torch.testing.assert_close(loss.total / BATCH.count, expected(parts, weights) / TARGET_COUNT)
    assert loss.parts["units"][1] == TARGET_COUNT


def test_a_single_codebook_has_no_weights():
    assert codebook_weights(CodecHead(8, 5), 4.0) is None


@pytest.mark.parametrize("config", [UnitsConfig, EchoConfig, CappedEchoConfig])
def test_a_negative_weight_is_refused_by_the_config(config):
    with pytest.raises(ConfigError, match="first_codebook is a weight"):
        config(first_codebook=-1.0)
