"""T2C: cross-entropy of unit-language words."""

from __future__ import annotations

from dataclasses import dataclass

from echox.criteria.base import CRITERIA, Criterion, CriterionConfig, UnitOutputs, codebook_weights, refuse_negative
from echox.kernels.codec_head_loss import Impl, Reduction
from echox.signals import Batch, Loss


@dataclass(kw_only=True, slots=True)
class UnitsConfig(CriterionConfig):
    """Cross-entropy of the unit decoder."""

    label_smoothing: float = 0.0
    """Probability mass in [0, 1) spread over the unit vocabulary."""
    first_codebook: float = 1.0
    """Weight of the first codebook's loss as a multiple of each other's, with a codec of several; it also says where text tokens end."""
    impl: Impl = Impl.auto
    """How the loss is computed: auto, reference (whole logits), torch (chunks of rows), chunked or fused (Triton, on a GPU)."""

    def __post_init__(self) -> None:
        refuse_negative(self.first_codebook)


@CRITERIA.register("t2c", UnitsConfig)
class UnitsCriterion(Criterion):
    """Cross-entropy on units only; text is never a target (EchoX, stage II)."""

    def __init__(self, config: UnitsConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, outputs: UnitOutputs, batch: Batch) -> Loss:
        found = outputs.unit_head(
            outputs.unit_states,
            outputs.unit_labels,
            label_smoothing=self.config.label_smoothing,
            codebook_weight=codebook_weights(outputs.unit_head, self.config.first_codebook),
            reduction=Reduction.sum,
            impl=self.config.impl,
        )
        loss, correct = found.loss, found.correct.sum()
        labels = found.valid.sum()
        return Loss(loss, batch.count, {"units": (loss.detach(), labels), "accuracy": (correct, labels)})
