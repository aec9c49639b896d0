"""CTC: clips against the words spoken in them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from echox.criteria.base import CRITERIA, AlignmentOutputs, Criterion, CriterionConfig, SpelledOutputs
from echox.signals import Batch, Loss


@dataclass(kw_only=True, slots=True)
class AlignmentConfig(CriterionConfig):
    """The CTC losses of the speech adapter."""

    spelling_weight: float = 0.8
    """Weight of the spelling beside the tokens; 0 leaves it out."""


@CRITERIA.register("alignment", AlignmentConfig)
class AlignmentCriterion(Criterion):
    """Connectionist temporal classification over tokens, and over the bytes of their spelling, summed over tokens.

    A few thousand clips hold most tokens a few times at most, but every letter often: what is learned for the letters serves the
    tokens, also in voices and words that were never trained on.
    Source: Graves et al. 2006; stage I of Soundwave (arXiv:2502.12900); spelling beside subwords as in Sanabria and Metze 2018
    (arXiv:1807.06234).
    """

    def __init__(self, config: AlignmentConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, outputs: AlignmentOutputs, batch: Batch) -> Loss:
        losses = ctc_losses(outputs).sum()
        parts = {"ctc": (losses.detach(), outputs.target_lengths.sum())}
        if isinstance(outputs, SpelledOutputs) and self.config.spelling_weight:
            spelling = ctc_losses(outputs.spelling).sum()
            parts["spelling"] = (spelling.detach(), outputs.spelling.target_lengths.sum())
            losses = losses + self.config.spelling_weight * spelling
        return Loss(losses, batch.count, parts)


def ctc_losses(outputs: AlignmentOutputs) -> Tensor:
    """Negative log-likelihood of each clip's targets [A], of a silent clip's that all frames are blank; 0 where a clip has no targets for
    another reason, or is too short for them."""
    if not len(outputs.targets):
        return outputs.ctc_logits.float().sum((1, 2))
    log_probs = outputs.ctc_logits.float().log_softmax(-1).transpose(0, 1)
    blank = outputs.ctc_logits.shape[2] - 1
    losses = F.ctc_loss(log_probs, outputs.targets, outputs.frame_lengths, outputs.target_lengths, blank=blank, reduction="none", zero_infinity=True)
    return torch.where(counted(outputs), losses, 0.0)


def counted(outputs: AlignmentOutputs) -> Tensor:
    """Bool [A], True for clips of which is known what is said, or that nothing is."""
    is_known = outputs.target_lengths > 0
    return is_known if outputs.silent is None else is_known | outputs.silent
