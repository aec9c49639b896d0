"""The losses of the EchoX release."""

import pytest
import torch

from echox.criteria.base import CRITERIA
from echox.criteria.denoising import capped_weight
from echox.criteria.release import joint_loss
from echox.pipeline.plugins import discover
from echox.testing.criteria import echo_example, joint_example

discover()


def loss_of(outputs, batch, **config):
    loss = CRITERIA.build(CRITERIA.parse(config))(outputs, batch)
    return float(loss.total) / batch.count, {
        name: float(total / count) for name, (total, count) in loss.parts.items()
    }


def test_the_cosine_term_is_capped_at_a_fifth_of_the_unit_loss():
    units = torch.tensor(2.0)
    assert float(capped_weight(units, torch.tensor(0.3))) == 1.0
    assert float(capped_weight(units, torch.tensor(8.0))) == pytest.approx(0.05)
    outputs, batch = echo_example(1, 3)
    outputs.text_vectors.copy_(-outputs.denoised)
    total, parts = loss_of(outputs, batch, name="published_echo", text_weight=0.0)
    assert total == pytest.approx(1.2 * parts["units"], rel=1e-5)


def test_a_fixed_weight_is_the_paper_s_lambda():
    outputs, batch = echo_example(1, 3)
    total, parts = loss_of(
        outputs, batch, name="published_echo", denoising_weight=0.7, text_weight=2.0
    )
    assert total == pytest.approx(
        parts["units"] + 0.7 * parts["denoising"] + 2.0 * parts["text"], rel=1e-5
    )


def test_units_weigh_ten_times_as_much_once_the_text_loss_is_low():
    assert float(joint_loss(torch.tensor(0.5), torch.tensor(3.0))) == pytest.approx(6.1)
    assert float(joint_loss(torch.tensor(1.5), torch.tensor(3.0))) == pytest.approx(4.5)
    outputs, batch = joint_example(1, 3)
    total, parts = loss_of(outputs, batch, name="published_joint")
    unit_loss = parts["units"] + min(parts["denoising"], 0.2 * parts["units"])
    assert total == pytest.approx(parts["text"] + 0.3 * parts["ctc"] + unit_loss, rel=1e-5)
