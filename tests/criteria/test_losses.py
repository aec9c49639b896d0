"""The criteria of S2T, T2C and Echo against their formulas."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from echox.core.signals import Batch
from echox.criteria.base import EchoOutputs, SpeechTextOutputs, UnitOutputs
from echox.criteria.echo import CappedEchoConfig, CappedEchoCriterion, EchoConfig, EchoCriterion
from echox.criteria.speech_text import SpeechTextConfig, SpeechTextCriterion
from echox.criteria.units import UnitsConfig, UnitsCriterion
from echox.kernels.codec_head_loss import CodecHead, Impl
from echox.models.unit_decoder import UnitDecoder, UnitDecoderConfig


def test_speech_text_is_mean_ce_plus_weighted_mean_ctc():
    torch.manual_seed(0)
    logits, labels = torch.randn(5, 11), torch.randint(0, 11, (5,))
    ctc = torch.randn(2, 8, 6)
    targets, lengths = torch.tensor([[1, 2], [3, 0]]), torch.tensor([2, 1])
    outputs = SpeechTextOutputs(ctc, torch.tensor([8, 8]), targets, lengths, logits, labels)
    loss = SpeechTextCriterion(SpeechTextConfig(ctc_weight=0.3))(outputs, Batch(("a", "b"), 5))
    per_clip = F.ctc_loss(
        ctc.log_softmax(-1).transpose(0, 1),
        targets,
        torch.tensor([8, 8]),
        lengths,
        blank=5,
        reduction="mean",
    )
    assert torch.allclose(
        loss.total / loss.count, F.cross_entropy(logits, labels) + 0.3 * per_clip, atol=1e-5
    )
    frozen = SpeechTextCriterion(SpeechTextConfig())(
        dataclasses.replace(outputs, counts_ctc=False), Batch(("a", "b"), 5)
    )
    assert (
        torch.allclose(frozen.total / frozen.count, F.cross_entropy(logits, labels))
        and "ctc" not in frozen.parts
    )


def test_units_sum_over_targets():
    states, labels, head = torch.randn(7, 5), torch.randint(0, 4, (7,)), CodecHead(5, 4)
    loss = UnitsCriterion(UnitsConfig(label_smoothing=0.1))(
        UnitOutputs(states, labels, head), Batch(("a",), 7)
    )
    assert torch.allclose(
        loss.total / 7, F.cross_entropy(head(states), labels, label_smoothing=0.1), atol=1e-5
    )
    assert loss.parts["accuracy"] == ((head(states).argmax(-1) == labels).sum(), 7)


def test_a_batch_without_labels_has_no_loss():
    states, head = torch.randn(0, 5, requires_grad=True), CodecHead(5, 4)
    loss = UnitsCriterion(UnitsConfig())(
        UnitOutputs(states, torch.zeros(0, dtype=torch.long), head), Batch(("a",), 0)
    )
    loss.total.backward()
    assert float(loss.total) == 0 and not head.weight.grad.any() and states.grad.shape == (0, 5)


def test_every_implementation_has_the_same_loss_curve():
    """Twenty steps of a unit decoder: equal but for float32 rounding, which updates amplify."""
    curves = {
        impl: loss_curve(impl)
        for impl in (Impl.reference, Impl.auto, Impl.torch, Impl.chunked, Impl.fused)
    }
    reference = torch.tensor(curves.pop(Impl.reference))
    assert reference[-1] < 0.8 * reference[0]
    for curve in curves.values():
        assert torch.allclose(torch.tensor(curve), reference, rtol=1e-4)


def loss_curve(impl):
    torch.manual_seed(0)
    decoder = UnitDecoder(
        UnitDecoderConfig(layers=1, width=16, heads=2, feed_forward=32, dropout=0.0, positions=64),
        text_width=6,
        unit_vocab_size=29,
    )
    text, lengths = torch.randn(2, 3, 6), torch.tensor([3, 2])
    targets = torch.randint(0, 29, (2, 9))
    targets[1, 6:] = -100
    labels, criterion = targets != -100, UnitsCriterion(UnitsConfig(impl=impl))
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=1e-2)
    curve = []
    for _ in range(20):
        loss = criterion(
            UnitOutputs(decoder(text, lengths, targets)[labels], targets[labels], decoder.head),
            Batch(("a", "b"), int(labels.sum())),
        )
        optimizer.zero_grad()
        (loss.total / loss.count).backward()
        optimizer.step()
        curve.append(float(loss.total.detach()) / loss.count)
    return curve


def test_echo_is_the_sum_of_three_means():
    torch.manual_seed(0)
    states, unit_labels, head = torch.randn(6, 3), torch.randint(0, 4, (6,)), CodecHead(3, 4)
    text, text_labels = torch.randn(3, 9), torch.randint(0, 9, (3,))
    denoised, vectors = torch.randn(2, 5, requires_grad=True), torch.randn(2, 5)
    loss = EchoCriterion(EchoConfig(denoising_weight=0.5, text_weight=2.0))(
        EchoOutputs(states, unit_labels, head, denoised, vectors, text, text_labels),
        Batch(("a",), 6),
    )
    expected = (
        F.cross_entropy(head(states), unit_labels)
        + 0.5 * (1 - F.cosine_similarity(denoised, vectors)).mean()
        + 2 * F.cross_entropy(text, text_labels)
    )
    assert torch.allclose(loss.total / loss.count, expected, atol=1e-5)


@pytest.mark.parametrize("share", [0.2, 1e3])
def test_the_denoising_term_is_capped_at_a_share_of_the_unit_loss(share):
    torch.manual_seed(0)
    states, unit_labels, head = torch.randn(6, 3), torch.randint(0, 4, (6,)), CodecHead(3, 4)
    text, text_labels = torch.randn(3, 9), torch.randint(0, 9, (3,))
    denoised, vectors = torch.randn(5, 4, requires_grad=True), torch.randn(5, 4)
    outputs = EchoOutputs(states, unit_labels, head, denoised, vectors, text, text_labels)
    loss = CappedEchoCriterion(CappedEchoConfig(denoising_share=share))(
        outputs, Batch(("a", "b"), 6)
    )
    units, term = (
        F.cross_entropy(head(states), unit_labels).detach(),
        (1 - F.cosine_similarity(denoised, vectors)).sum() / 2,
    )
    weight = min(1.0, share * float(units) / float(term))
    assert (weight < 1) == (share == 0.2)
    assert torch.allclose(
        loss.total / 6, units + weight * term + F.cross_entropy(text, text_labels), atol=1e-5
    )
    (loss.total / 6).backward()
    assert torch.allclose(denoised.grad, weight * torch.autograd.grad(term, denoised)[0], atol=1e-6)
