"""The losses by which the EchoX release trains its voice."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from echox.criteria.alignment import ctc_losses
from echox.criteria.base import CRITERIA, Criterion, CriterionConfig, JointOutputs, VoicedOutputs
from echox.criteria.denoising import capped_weight
from echox.kernels.codec_head_loss import Impl, Reduction
from echox.signals import Batch, Loss

LEARNED = 1.0  # an S2T loss below which the release lets units count ten times as much

Part = tuple[Tensor, Tensor]


@dataclass(kw_only=True, slots=True)
class ReleaseEchoConfig(CriterionConfig):
    """L = L_units + weight * L_denoising + text_weight * L_text."""

    denoising_weight: float | None = None
    """The paper's lambda; null caps the term at a fifth of the unit loss, as the release does."""
    text_weight: float = 1.0
    """Weight of the text cross-entropy on the reference answer; 1 in the paper, 0 in the release's finetune_kd."""
    impl: Impl = Impl.auto
    """How the unit loss is computed: auto, reference (whole logits), torch (chunks of rows), chunked or fused (Triton, on a GPU)."""


@CRITERIA.register("published_echo", ReleaseEchoConfig)
class ReleaseEchoCriterion(Criterion):
    """Unit cross-entropy, and the denoising adapter's cosine distance, summed over a sample's positions and averaged over samples.

    Source: EchoX (arXiv:2509.09174), and the branch finetune_kd of its release.
    """

    def __init__(self, config: ReleaseEchoConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, outputs: VoicedOutputs, batch: Batch) -> Loss:
        units, parts = unit_loss(outputs, self.config.impl)
        cosine, distance = mean(outputs.distances.sum(), len(outputs.distances))
        text, written = text_loss(outputs)
        fixed = self.config.denoising_weight
        weight = capped_weight(units, cosine) if fixed is None else torch.full_like(units, fixed)
        total = units + weight * cosine + self.config.text_weight * text
        return Loss(total * batch.count, batch.count, {**parts, "denoising": distance, **written})


@dataclass(kw_only=True, slots=True)
class ReleaseJointConfig(CriterionConfig):
    """L_s2t = L_text + ctc_weight * L_ctc and L_voice = L_units + capped L_denoising, added."""

    ctc_weight: float = 0.3
    """Weight of the CTC part; 0.3 in the release."""
    impl: Impl = Impl.auto
    """How the unit loss is computed: auto, reference (whole logits), torch (chunks of rows), chunked or fused (Triton, on a GPU)."""


@CRITERIA.register("published_joint", ReleaseJointConfig)
class ReleaseJointCriterion(Criterion):
    """S2T and its voice at once; once text is learned (below 1), it counts a fifth and the voice double.

    Source: the branch finetune of the EchoX release.
    """

    def __init__(self, config: ReleaseJointConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, outputs: JointOutputs, batch: Batch) -> Loss:
        units, parts = unit_loss(outputs, self.config.impl)
        cosine, distance = mean(outputs.distances.sum(), len(outputs.distances))
        text, written = text_loss(outputs)
        ctc, heard = mean((ctc_losses(outputs) / outputs.target_lengths.clamp(min=1)).sum(), (outputs.target_lengths > 0).sum())
        total = joint(text + self.config.ctc_weight * ctc, units + capped_weight(units, cosine) * cosine)
        return Loss(total * batch.count, batch.count, {**parts, "denoising": distance, **written, "ctc": heard})


def unit_loss(outputs: VoicedOutputs | JointOutputs, impl: Impl) -> tuple[Tensor, dict[str, Part]]:
    """Mean cross-entropy of the units, and the parts to show."""
    found = outputs.unit_head(outputs.unit_states, outputs.unit_labels, reduction=Reduction.sum, impl=impl)
    loss, part = mean(found.loss, len(outputs.unit_labels))
    return loss, {"units": part, "accuracy": (found.correct.sum(), part[1])}


def text_loss(outputs: VoicedOutputs | JointOutputs) -> tuple[Tensor, dict[str, Part]]:
    """Mean cross-entropy of the answer's tokens, and the part to show."""
    total = F.cross_entropy(outputs.text_logits.float(), outputs.text_labels, reduction="sum")
    loss, part = mean(total, len(outputs.text_labels))
    return loss, {"text": part}


def mean(total: Tensor, count: int | Tensor) -> tuple[Tensor, Part]:
    """A sum over its count, 0 where there is nothing; and both, detached."""
    count = torch.as_tensor(count, device=total.device)
    return total / count.clamp(min=1), (total.detach(), count)


def joint(text: Tensor, voice: Tensor) -> Tensor:
    """S2T and T2C together: once text is learned, units count ten times as much."""
    return torch.where(text.detach() < LEARNED, 0.2 * text + 2.0 * voice, text + voice)
