"""The losses of the EchoX release, for Echo training and for joint finetuning."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from echox.core.signals import Batch, Loss
from echox.criteria.alignment import ctc_losses
from echox.criteria.base import CRITERIA, Criterion, CriterionConfig, JointOutputs, VoicedOutputs
from echox.criteria.denoising import capped_weight
from echox.kernels.codec_head_loss import Impl, Reduction

# S2T loss below which the release weighs units ten times as much as text.
TEXT_CONVERGED = 1.0

Part = tuple[Tensor, Tensor]
"""A sum [] and the count [] it is divided by for display, both detached."""


@dataclass(kw_only=True, slots=True)
class ReleaseEchoConfig(CriterionConfig):
    """L = L_units + weight * L_denoising + text_weight * L_text."""

    denoising_weight: float | None = None
    """The paper's lambda; null caps the term at a fifth of the unit loss, as the release does."""
    text_weight: float = 1.0
    """Weight of the text cross-entropy on the reference answer; 1 in the paper, 0 in the release's
    finetune_kd."""
    impl: Impl = Impl.auto
    """How the unit loss is computed: auto, reference (whole logits), torch (chunks of rows),
    chunked or fused (Triton, on a GPU)."""


@CRITERIA.register("published_echo", ReleaseEchoConfig)
class ReleaseEchoCriterion(Criterion):
    """Unit cross-entropy, cosine distance of the denoising adapter, and text cross-entropy.

    The distance is summed over a sample's positions and averaged over samples.

    Source: EchoX (arXiv:2509.09174), and the branch finetune_kd of its release.
    """

    def __init__(self, config: ReleaseEchoConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, outputs: VoicedOutputs, batch: Batch) -> Loss:
        """Add the three means, and scale their sum to the batch's count of targets."""
        units, unit_parts = _unit_loss(outputs, self.config.impl)
        cosine, cosine_part = _mean(outputs.distances.sum(), len(outputs.distances))
        text, text_part = _text_loss(outputs)
        fixed = self.config.denoising_weight
        weight = capped_weight(units, cosine) if fixed is None else torch.full_like(units, fixed)
        total = units + weight * cosine + self.config.text_weight * text
        parts = {**unit_parts, "denoising": cosine_part, "text": text_part}
        return Loss(total * batch.count, batch.count, parts)


@dataclass(kw_only=True, slots=True)
class ReleaseJointConfig(CriterionConfig):
    """L = (L_text + ctc_weight * L_ctc) + (L_units + capped L_denoising)."""

    ctc_weight: float = 0.3
    """Weight of the CTC part; 0.3 in the release."""
    impl: Impl = Impl.auto
    """How the unit loss is computed: auto, reference (whole logits), torch (chunks of rows),
    chunked or fused (Triton, on a GPU)."""


@CRITERIA.register("published_joint", ReleaseJointConfig)
class ReleaseJointCriterion(Criterion):
    """S2T and unit losses added; once the S2T loss is below 1, with weights 0.2 and 2.

    Source: the branch finetune of the EchoX release.
    """

    def __init__(self, config: ReleaseJointConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, outputs: JointOutputs, batch: Batch) -> Loss:
        """Combine the means of both tasks, and scale the sum to the batch's count of targets."""
        units, unit_parts = _unit_loss(outputs, self.config.impl)
        cosine, cosine_part = _mean(outputs.distances.sum(), len(outputs.distances))
        text, text_part = _text_loss(outputs)
        # Each clip's loss per token, so that long questions do not outweigh short ones.
        per_clip = ctc_losses(outputs) / outputs.target_lengths.clamp(min=1)  # [A]
        ctc, ctc_part = _mean(per_clip.sum(), (outputs.target_lengths > 0).sum())
        s2t = text + self.config.ctc_weight * ctc
        total = joint_loss(s2t, units + capped_weight(units, cosine) * cosine)
        parts = {**unit_parts, "denoising": cosine_part, "text": text_part, "ctc": ctc_part}
        return Loss(total * batch.count, batch.count, parts)


def _unit_loss(outputs: VoicedOutputs | JointOutputs, impl: Impl) -> tuple[Tensor, dict[str, Part]]:
    """Return the mean cross-entropy of the units [N], and the parts to show."""
    head_loss = outputs.unit_head(
        outputs.unit_states, outputs.unit_labels, reduction=Reduction.sum, impl=impl
    )
    loss, part = _mean(head_loss.loss, len(outputs.unit_labels))
    return loss, {"units": part, "accuracy": (head_loss.correct.sum(), part[1])}


def _text_loss(outputs: VoicedOutputs | JointOutputs) -> tuple[Tensor, Part]:
    """Return the mean cross-entropy of the answer's tokens [L], and the part to show."""
    total = F.cross_entropy(outputs.text_logits.float(), outputs.text_labels, reduction="sum")
    return _mean(total, len(outputs.text_labels))


def _mean(total: Tensor, count: int | Tensor) -> tuple[Tensor, Part]:
    """Divide a sum [] by its count, of at least 1, and return both detached too."""
    count = torch.as_tensor(count, device=total.device)
    return total / count.clamp(min=1), (total.detach(), count)


def joint_loss(s2t: Tensor, units: Tensor) -> Tensor:
    """Add the S2T loss [] and the unit loss [], units weighed tenfold once S2T has converged."""
    # A tensor operation instead of a branch, which would wait for the device.
    return torch.where(s2t.detach() < TEXT_CONVERGED, 0.2 * s2t + 2.0 * units, s2t + units)
