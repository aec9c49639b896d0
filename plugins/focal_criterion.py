"""A worked example of a criterion: the S2T loss with less weight on tokens that are easy.

    echox-train recipe=echo_tiny s2t.criterion=focal

Most tokens of an answer follow from those before it, whatever was asked; focal loss leaves more of
the gradient to those few that depend on the question.

Source: Lin et al. 2017, Focal Loss for Dense Object Detection, arXiv:1708.02002.
"""

from __future__ import annotations

from dataclasses import dataclass

from echox.core.config import refuse_below
from echox.core.errors import ConfigError
from echox.core.signals import Batch, Loss
from echox.criteria.alignment import ctc_losses, has_known_targets
from echox.criteria.base import CRITERIA, Criterion, CriterionConfig, SpeechTextOutputs


@dataclass(kw_only=True, slots=True)
class FocalConfig(CriterionConfig):
    """L = sum (1 - p)^gamma * -log p + ctc_weight * L_ctc.

    Raises:
        ConfigError: a number is out of range.
    """

    gamma: float = 2.0
    """Exponent of a token's weight (1 - p)^gamma; 0 is cross-entropy."""
    ctc_weight: float = 0.3
    """Weight of the CTC part, as in criterion s2t."""

    def __post_init__(self) -> None:
        refuse_below(self, 0, "ctc_weight")
        # Between 0 and 1 the gradient of the weight is infinite at p = 1.
        if self.gamma != 0 and not self.gamma >= 1:
            raise ConfigError(f"gamma must be 0, or 1 or more, and is {self.gamma}")


@CRITERIA.register("focal", FocalConfig)
class FocalCriterion(Criterion[SpeechTextOutputs]):
    """Focal loss of the answer's tokens, plus CTC of the question as in criterion s2t."""

    def __init__(self, config: FocalConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, outputs: SpeechTextOutputs, batch: Batch) -> Loss:
        """Sum the losses of the answer tokens [N], and add the weighted mean over clips [A]."""
        labels = outputs.text_labels
        log_probs = outputs.text_logits.float().log_softmax(-1)  # [N, V]
        chosen = log_probs.gather(1, labels[:, None])[:, 0]  # [N]
        # -expm1(x) is 1 - e^x without the rounding of e^x close to 1.
        total = -((-chosen.expm1()) ** self.config.gamma * chosen).sum()
        count = labels.new_tensor(len(labels))
        parts = {
            "text": (-chosen.detach().sum(), count),  # cross-entropy, to compare runs by
            "accuracy": ((log_probs.argmax(-1) == labels).sum(), count),
        }
        if outputs.counts_ctc:
            clips = has_known_targets(outputs).sum()
            ctc = (ctc_losses(outputs) / outputs.target_lengths.clamp(min=1)).sum()
            # Times the count of targets, by which the training loop divides the total again.
            total = total + self.config.ctc_weight * batch.count * ctc / clips.clamp(min=1)
            parts["ctc"] = (ctc.detach(), clips)
        return Loss(total, batch.count, parts)
