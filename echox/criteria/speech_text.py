"""The S2T loss: cross-entropy of the answer, and CTC of the question."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F

from echox.core.config import refuse_below, refuse_no_share
from echox.core.signals import Batch, Loss
from echox.criteria.alignment import ctc_losses, has_known_targets
from echox.criteria.base import CRITERIA, Criterion, CriterionConfig, SpeechTextOutputs


@dataclass(kw_only=True, slots=True)
class SpeechTextConfig(CriterionConfig):
    """L = L_text + ctc_weight * L_ctc.

    Raises:
        ConfigError: a number is out of range.
    """

    ctc_weight: float = 0.3
    """Weight of the CTC part; 0.3 in Soundwave's and EchoX's code."""
    label_smoothing: float = 0.0
    """Probability mass in [0, 1) spread over the vocabulary in the text part."""

    def __post_init__(self) -> None:
        refuse_below(self, 0, "ctc_weight")
        refuse_no_share(self, "label_smoothing")


@CRITERIA.register("s2t", SpeechTextConfig)
class SpeechTextCriterion(Criterion[SpeechTextOutputs]):
    """Token cross-entropy plus weighted CTC, each clip's CTC loss divided by its tokens.

    Source: Soundwave (arXiv:2502.12900) and EchoX (arXiv:2509.09174).
    """

    def __init__(self, config: SpeechTextConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, outputs: SpeechTextOutputs, batch: Batch) -> Loss:
        """Sum the losses of the answer tokens [N], and add the weighted mean over clips [A]."""
        total = text = F.cross_entropy(
            outputs.text_logits.float(),
            outputs.text_labels,
            reduction="sum",
            label_smoothing=self.config.label_smoothing,
        )
        correct = (outputs.text_logits.argmax(-1) == outputs.text_labels).sum()
        labels = correct.new_tensor(outputs.text_labels.numel())
        parts = {"text": (text.detach(), labels), "accuracy": (correct, labels)}
        if outputs.counts_ctc:
            clips = has_known_targets(outputs).sum()
            ctc = (ctc_losses(outputs) / outputs.target_lengths.clamp(min=1)).sum()
            # Times the count of targets, by which the training loop divides the total again.
            total = text + self.config.ctc_weight * batch.count * ctc / clips.clamp(min=1)
            parts["ctc"] = (ctc.detach(), clips)
        return Loss(total, batch.count, parts)
