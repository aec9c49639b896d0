"""The worked example of a criterion: cross-entropy at gamma 0, and less of what is easy above."""

import dataclasses

import pytest
import torch

from echox.core.errors import ConfigError
from echox.criteria.base import CRITERIA
from echox.pipeline.plugins import discover
from echox.testing.criteria import speech_text_example


def criterion_of(name, **fields):
    discover()
    return CRITERIA.build(CRITERIA[name].config_type(**fields))


def text_alone(logits, labels):
    outputs, batch = speech_text_example(1, 3)
    texts = {"text_logits": logits, "text_labels": labels, "counts_ctc": False}
    return dataclasses.replace(outputs, **texts), batch


def test_without_a_gamma_it_is_the_loss_of_s2t():
    outputs, batch = speech_text_example(1, 3)
    focal, s2t = (
        criterion_of("focal", gamma=0.0)(outputs, batch),
        criterion_of("s2t")(outputs, batch),
    )
    torch.testing.assert_close(focal.total, s2t.total)
    for name, (total, count) in s2t.parts.items():
        torch.testing.assert_close(focal.parts[name][0], total)
        assert focal.parts[name][1] == count


def test_a_token_counts_by_how_unlikely_it_is():
    probability = torch.tensor([0.9, 0.5])
    logits = torch.stack([probability.log(), (1 - probability).log()], dim=1)
    loss = criterion_of("focal", gamma=2.0)(*text_alone(logits, torch.tensor([0, 0])))
    expected = -(0.1**2 * torch.tensor(0.9).log() + 0.5**2 * torch.tensor(0.5).log())
    torch.testing.assert_close(loss.total, expected)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
def test_a_certain_token_has_a_finite_gradient(gamma):
    logits = torch.tensor([[200.0, -200.0]], requires_grad=True)
    loss = criterion_of("focal", gamma=gamma)(*text_alone(logits, torch.tensor([0])))
    loss.total.backward()
    assert logits.grad.isfinite().all()


def test_a_gamma_without_a_finite_gradient_is_refused():
    with pytest.raises(ConfigError, match="gamma must be 0, or 1 or more, and is 0.5"):
        criterion_of("focal", gamma=0.5)
