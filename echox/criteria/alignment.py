"""CTC of audio clips against the words spoken in them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from echox.core.config import refuse_below
from echox.core.signals import Batch, Loss
from echox.criteria.base import (
    CRITERIA,
    AlignmentOutputs,
    Criterion,
    CriterionConfig,
    SpelledOutputs,
)


@dataclass(kw_only=True, slots=True)
class AlignmentConfig(CriterionConfig):
    """The CTC losses of the speech adapter.

    Raises:
        ConfigError: a number is out of range.
    """

    spelling_weight: float = 0.8
    """Weight of the spelling beside the tokens; 0 leaves it out."""

    def __post_init__(self) -> None:
        refuse_below(self, 0, "spelling_weight")


@CRITERIA.register("alignment", AlignmentConfig)
class AlignmentCriterion(Criterion[AlignmentOutputs]):
    """Connectionist temporal classification over tokens and over the bytes of their spelling.

    The loss is summed over tokens. A few thousand clips contain most tokens a few times at most,
    but every letter often: what is trained on letters also helps tokens, and speakers and words
    outside the training data.

    Source: Graves et al. 2006; stage I of Soundwave (arXiv:2502.12900); spelling beside subwords
    as in Sanabria and Metze 2018 (arXiv:1807.06234).
    """

    def __init__(self, config: AlignmentConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, outputs: AlignmentOutputs, batch: Batch) -> Loss:
        """Sum the CTC losses of the clips [A], and the weighted ones of their spelling."""
        losses = ctc_losses(outputs).sum()
        parts = {"ctc": (losses.detach(), outputs.target_lengths.sum())}
        if isinstance(outputs, SpelledOutputs) and self.config.spelling_weight:
            spelling = ctc_losses(outputs.spelling).sum()
            parts["spelling"] = (spelling.detach(), outputs.spelling.target_lengths.sum())
            losses = losses + self.config.spelling_weight * spelling
        return Loss(losses, batch.count, parts)


def ctc_losses(outputs: AlignmentOutputs) -> Tensor:
    """Compute the negative log-likelihood of each clip's targets.

    Args:
        outputs: logits [A, F, C] of A clips, and their targets [A, S].

    Returns:
        losses [A] float32. A clip that is known to be silent has the loss of predicting the blank
        in every frame; any other clip without targets, or too short for its targets, has 0.
    """
    if not len(outputs.targets):
        # No clip: an empty tensor that keeps the graph, so that the loss can be differentiated.
        return outputs.ctc_logits.float().sum((1, 2))
    # In float32: long sums of log-probabilities are not exact enough in bfloat16.
    log_probs = outputs.ctc_logits.float().log_softmax(-1).transpose(0, 1)  # [F, A, C]
    losses = F.ctc_loss(
        log_probs,
        outputs.targets,
        outputs.frame_lengths,
        outputs.target_lengths,
        blank=outputs.ctc_logits.shape[2] - 1,
        reduction="none",
        # Targets longer than the frames have infinite loss, which would end the run.
        zero_infinity=True,
    )
    # Without targets the loss is that of silence, which is right for clips known to be silent only.
    return torch.where(has_known_targets(outputs), losses, 0.0)


def has_known_targets(outputs: AlignmentOutputs) -> Tensor:
    """Return bool [A], True for clips with a known transcript and for clips known to be silent."""
    is_known = outputs.target_lengths > 0
    return is_known if outputs.silent is None else is_known | outputs.silent
