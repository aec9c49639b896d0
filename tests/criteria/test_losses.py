"""The criteria of S2T, T2C and Echo against their formulas."""

import torch
import torch.nn.functional as F

from echox.criteria.base import EchoOutputs, SpeechTextOutputs, UnitOutputs
from echox.criteria.echo import EchoConfig, EchoCriterion
from echox.criteria.speech_text import SpeechTextConfig, SpeechTextCriterion
from echox.criteria.units import UnitsConfig, UnitsCriterion
from echox.signals import Batch


def test_speech_text_is_mean_ce_plus_weighted_mean_ctc():
    torch.manual_seed(0)
    logits, labels = torch.randn(5, 11), torch.randint(0, 11, (5,))
    ctc = torch.randn(2, 8, 6)
    targets, lengths = torch.tensor([[1, 2], [3, 0]]), torch.tensor([2, 1])
    outputs = SpeechTextOutputs(ctc, torch.tensor([8, 8]), targets, lengths, logits, labels)
    loss = SpeechTextCriterion(SpeechTextConfig(ctc_weight=0.3))(outputs, Batch(("a", "b"), 5))
    per_clip = F.ctc_loss(ctc.log_softmax(-1).transpose(0, 1), targets, torch.tensor([8, 8]), lengths, blank=5, reduction="mean")
    assert torch.allclose(loss.total / loss.count, F.cross_entropy(logits, labels) + 0.3 * per_clip, atol=1e-5)


def test_units_sum_over_targets():
    logits, labels = torch.randn(7, 4), torch.randint(0, 4, (7,))
    loss = UnitsCriterion(UnitsConfig(label_smoothing=0.1))(UnitOutputs(logits, labels), Batch(("a",), 7))
    assert torch.allclose(loss.total / 7, F.cross_entropy(logits, labels, label_smoothing=0.1), atol=1e-5)


def test_echo_is_the_sum_of_three_means():
    torch.manual_seed(0)
    units, unit_labels = torch.randn(6, 4), torch.randint(0, 4, (6,))
    text, text_labels = torch.randn(3, 9), torch.randint(0, 9, (3,))
    denoised, vectors = torch.randn(2, 5, requires_grad=True), torch.randn(2, 5)
    loss = EchoCriterion(EchoConfig(denoising_weight=0.5, text_weight=2.0))(EchoOutputs(units, unit_labels, denoised, vectors, text, text_labels), Batch(("a",), 6))
    expected = F.cross_entropy(units, unit_labels) + 0.5 * (1 - F.cosine_similarity(denoised, vectors)).mean() + 2 * F.cross_entropy(text, text_labels)
    assert torch.allclose(loss.total / loss.count, expected, atol=1e-5)
