"""Echo: pseudo-label units from hidden states, denoising, and the text the model must not forget."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F

from echox.criteria.base import CRITERIA, Criterion, CriterionConfig, EchoOutputs
from echox.kernels.codec_head_loss import Impl, Reduction
from echox.signals import Batch, Loss


@dataclass(kw_only=True, slots=True)
class EchoConfig(CriterionConfig):
    """L = L_echo + denoising_weight * L_denoising + text_weight * L_s2t."""

    denoising_weight: float = 0.5
    """Weight lambda of the cosine term; the paper's value is not known, this one is ours."""
    text_weight: float = 1.0
    """Weight of the text cross-entropy on the reference answer; 1 in the paper."""
    label_smoothing: float = 0.0
    """Probability mass in [0, 1) spread over the unit vocabulary."""
    impl: Impl = Impl.auto
    """How the unit loss is computed: auto, reference (whole logits), torch (chunks of rows), chunked or fused (Triton, on a GPU)."""


@CRITERIA.register("echo", EchoConfig)
class EchoCriterion(Criterion):
    """The sum of EchoX's three losses, each a mean over its own targets.

    Source: EchoX (arXiv:2509.09174), section on Echo training.
    """

    def __init__(self, config: EchoConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, outputs: EchoOutputs, batch: Batch) -> Loss:
        found = outputs.unit_head(
            outputs.unit_states, outputs.unit_labels, label_smoothing=self.config.label_smoothing, reduction=Reduction.sum, impl=self.config.impl
        )
        units, correct = found.loss, found.correct.sum()
        cosine = (1 - F.cosine_similarity(outputs.denoised.float(), outputs.text_vectors.float(), dim=-1)).sum()
        text = F.cross_entropy(outputs.text_logits.float(), outputs.text_labels, reduction="sum")
        unit_count, cosine_count, text_count = (max(1, labels.shape[0]) for labels in (outputs.unit_labels, outputs.denoised, outputs.text_labels))
        mean = units / unit_count + self.config.denoising_weight * cosine / cosine_count + self.config.text_weight * text / text_count
        count = correct.new_tensor
        parts = {
            "units": (units.detach(), count(unit_count)),
            "denoising": (cosine.detach(), count(cosine_count)),
            "text": (text.detach(), count(text_count)),
            "accuracy": (correct, count(unit_count)),
        }
        return Loss(mean * batch.count, batch.count, parts)
