"""S2T: cross-entropy of the answer, and CTC of the question."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F

from echox.criteria.alignment import counted, ctc_losses
from echox.criteria.base import CRITERIA, Criterion, CriterionConfig, SpeechTextOutputs
from echox.signals import Batch, Loss


@dataclass(kw_only=True, slots=True)
class SpeechTextConfig(CriterionConfig):
    """L = L_text + ctc_weight * L_ctc."""

    ctc_weight: float = 0.3
    """Weight of the CTC part; 0.3 in Soundwave's and EchoX's code."""
    label_smoothing: float = 0.0
    """Probability mass in [0, 1) spread over the vocabulary in the text part."""


@CRITERIA.register("s2t", SpeechTextConfig)
class SpeechTextCriterion(Criterion):
    """Mean token cross-entropy plus the weighted mean of per-clip CTC (each clip's loss divided by its tokens)."""

    def __init__(self, config: SpeechTextConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, outputs: SpeechTextOutputs, batch: Batch) -> Loss:
        total = text = F.cross_entropy(outputs.text_logits.float(), outputs.text_labels, reduction="sum", label_smoothing=self.config.label_smoothing)
        correct = (outputs.text_logits.argmax(-1) == outputs.text_labels).sum()
        labels = correct.new_tensor(outputs.text_labels.numel())
        parts = {"text": (text.detach(), labels), "accuracy": (correct, labels)}
        if outputs.counts_ctc:
            clips = counted(outputs).sum()
            ctc = (ctc_losses(outputs) / outputs.target_lengths.clamp(min=1)).sum()
            total = text + self.config.ctc_weight * batch.count * ctc / clips.clamp(min=1)
            parts["ctc"] = (ctc.detach(), clips)
        return Loss(total, batch.count, parts)
