"""The T2C loss: cross-entropy of the speech units of a text."""

from __future__ import annotations

from dataclasses import dataclass

from echox.core.config import refuse_no_share
from echox.core.signals import Batch, Loss
from echox.criteria.base import (
    CRITERIA,
    Criterion,
    CriterionConfig,
    UnitOutputs,
    check_first_codebook,
    codebook_weights,
)
from echox.kernels.codec_head_loss import Impl, Reduction


@dataclass(kw_only=True, slots=True)
class UnitsConfig(CriterionConfig):
    """Cross-entropy of the unit decoder.

    Raises:
        ConfigError: a number is out of range.
    """

    label_smoothing: float = 0.0
    """Probability mass in [0, 1) spread over the unit vocabulary."""
    first_codebook: float = 1.0
    """Weight of the first codebook's loss as a multiple of each other's, with a codec of several;
    it also says where text tokens end."""
    impl: Impl = Impl.auto
    """How the loss is computed: auto, reference (whole logits), torch (chunks of rows), chunked or
    fused (Triton, on a GPU)."""

    def __post_init__(self) -> None:
        refuse_no_share(self, "label_smoothing")
        check_first_codebook(self.first_codebook)


@CRITERIA.register("t2c", UnitsConfig)
class UnitsCriterion(Criterion[UnitOutputs]):
    """Cross-entropy of units alone; text is never a target.

    Source: EchoX (arXiv:2509.09174), stage II.
    """

    def __init__(self, config: UnitsConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, outputs: UnitOutputs, batch: Batch) -> Loss:
        """Sum the cross-entropy of the units [N], or [N, K] of K codebooks."""
        head_loss = outputs.unit_head(
            outputs.unit_states,
            outputs.unit_labels,
            label_smoothing=self.config.label_smoothing,
            codebook_weight=codebook_weights(outputs.unit_head, self.config.first_codebook),
            reduction=Reduction.sum,
            impl=self.config.impl,
        )
        loss, correct = head_loss.loss, head_loss.correct.sum()
        # Not the number of labels: a codebook has no target beside a special token.
        count = head_loss.valid.sum()
        parts = {"units": (loss.detach(), count), "accuracy": (correct, count)}
        return Loss(loss, batch.count, parts)
