"""CTC: clips against the words spoken in them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from echox.criteria.base import CRITERIA, AlignmentOutputs, Criterion, CriterionConfig
from echox.signals import Batch, Loss


@dataclass(kw_only=True, slots=True)
class AlignmentConfig(CriterionConfig):
    """The CTC loss of the speech adapter."""


@CRITERIA.register("alignment", AlignmentConfig)
class AlignmentCriterion(Criterion):
    """Connectionist temporal classification, summed over tokens.

    Source: Graves et al. 2006; stage I of Soundwave (arXiv:2502.12900).
    """

    def __init__(self, config: AlignmentConfig) -> None:
        super().__init__()

    def forward(self, outputs: AlignmentOutputs, batch: Batch) -> Loss:
        losses = ctc_losses(outputs)
        tokens = outputs.target_lengths.sum()
        return Loss(losses.sum(), batch.count, {"ctc": (losses.sum().detach(), tokens)})


def ctc_losses(outputs: AlignmentOutputs) -> Tensor:
    """Negative log-likelihood of each clip's targets [A]; 0 where a clip has none or is too short for them."""
    log_probs = outputs.ctc_logits.float().log_softmax(-1).transpose(0, 1)
    blank = outputs.ctc_logits.shape[2] - 1
    losses = F.ctc_loss(log_probs, outputs.targets, outputs.frame_lengths, outputs.target_lengths, blank=blank, reduction="none", zero_infinity=True)
    return torch.where(outputs.target_lengths > 0, losses, 0.0)
