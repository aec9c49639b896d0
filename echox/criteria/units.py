"""T2C: cross-entropy of unit-language words."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F

from echox.criteria.base import CRITERIA, Criterion, CriterionConfig, UnitOutputs
from echox.signals import Batch, Loss


@dataclass(kw_only=True, slots=True)
class UnitsConfig(CriterionConfig):
    """Cross-entropy of the unit decoder."""

    label_smoothing: float = 0.0
    """Probability mass in [0, 1) spread over the unit vocabulary."""


@CRITERIA.register("t2c", UnitsConfig)
class UnitsCriterion(Criterion):
    """Cross-entropy on units only; text is never a target (EchoX, stage II)."""

    def __init__(self, config: UnitsConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, outputs: UnitOutputs, batch: Batch) -> Loss:
        loss = F.cross_entropy(outputs.unit_logits.float(), outputs.unit_labels, reduction="sum", label_smoothing=self.config.label_smoothing)
        correct = (outputs.unit_logits.argmax(-1) == outputs.unit_labels).sum()
        labels = correct.new_tensor(outputs.unit_labels.numel())
        return Loss(loss, batch.count, {"units": (loss.detach(), labels), "accuracy": (correct, labels)})
