"""Echo: pseudo-label units from hidden states, denoising, and the text the model must not forget."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from echox.criteria.base import CRITERIA, Criterion, CriterionConfig, EchoOutputs, codebook_weights, refuse_negative
from echox.criteria.denoising import CAPPED_SHARE, capped_weight
from echox.errors import ConfigError
from echox.kernels.codec_head_loss import Impl, Reduction
from echox.signals import Batch, Loss


@dataclass(kw_only=True, slots=True)
class EchoTermsConfig(CriterionConfig):
    """What both forms of the Echo loss share."""

    text_weight: float = 1.0
    """Weight of the text cross-entropy on the reference answer; 1 in the paper."""
    label_smoothing: float = 0.0
    """Probability mass in [0, 1) spread over the unit vocabulary."""
    first_codebook: float = 1.0
    """Weight of the first codebook's loss as a multiple of each other's, with a codec of several; it also says where text tokens end."""
    impl: Impl = Impl.auto
    """How the unit loss is computed: auto, reference (whole logits), torch (chunks of rows), chunked or fused (Triton, on a GPU)."""

    def __post_init__(self) -> None:
        refuse_negative(self.first_codebook)


@dataclass(kw_only=True, slots=True)
class EchoConfig(EchoTermsConfig):
    """L = L_echo + denoising_weight * L_denoising + text_weight * L_s2t, the paper's form."""

    denoising_weight: float = 0.5
    """Weight lambda of the cosine term; the paper's value is not known, this one is ours."""


@dataclass(kw_only=True, slots=True)
class CappedEchoConfig(EchoTermsConfig):
    """L = L_echo + L_denoising, held at a share of L_echo, + text_weight * L_s2t, the release's form."""

    denoising_share: float = CAPPED_SHARE
    """Share of the unit loss, above 0, that the cosine term may reach; 0.2 in the release."""

    def __post_init__(self) -> None:
        EchoTermsConfig.__post_init__(self)
        if not self.denoising_share > 0:
            raise ConfigError(f"denoising_share must be above 0, and is {self.denoising_share}")


class EchoTerms(Criterion):
    """Units, denoising and text, the first and the last as means over their own targets; a leaf says what the denoising term weighs."""

    def __init__(self, config: EchoTermsConfig) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def denoising(self, cosine: Tensor, count: int, rows: int, units: Tensor) -> Tensor:
        """The weighted denoising term.

        Args:
            cosine: [] sum of 1 - cosine over `count` positions of `rows` answers; units: [] mean unit loss.
        """

    def forward(self, outputs: EchoOutputs, batch: Batch) -> Loss:
        found = outputs.unit_head(
            outputs.unit_states,
            outputs.unit_labels,
            token_weight=outputs.unit_weights,
            label_smoothing=self.config.label_smoothing,
            codebook_weight=codebook_weights(outputs.unit_head, self.config.first_codebook),
            reduction=Reduction.sum,
            impl=self.config.impl,
        )
        units, correct = found.loss, found.correct.sum()
        cosine = (1 - F.cosine_similarity(outputs.denoised.float(), outputs.text_vectors.float(), dim=-1)).sum()
        text = F.cross_entropy(outputs.text_logits.float(), outputs.text_labels, reduction="sum")
        unit_count = found.valid.sum().clamp(min=1)
        cosine_count, text_count = (max(1, labels.shape[0]) for labels in (outputs.denoised, outputs.text_labels))
        unit_weight = unit_count if outputs.unit_weights is None else (found.valid.reshape(len(outputs.unit_weights), -1) * outputs.unit_weights[:, None]).sum()
        unit_mean = units / unit_weight
        mean = unit_mean + self.denoising(cosine, cosine_count, max(1, len(batch.row_ids)), unit_mean) + self.config.text_weight * text / text_count
        count = correct.new_tensor
        parts = {
            "units": (units.detach(), unit_weight),
            "denoising": (cosine.detach(), count(cosine_count)),
            "text": (text.detach(), count(text_count)),
            "accuracy": (correct, unit_count),
        }
        return Loss(mean * batch.count, batch.count, parts)


@CRITERIA.register("echo", EchoConfig)
class EchoCriterion(EchoTerms):
    """The sum of EchoX's three losses, each a mean over its own targets, the cosine term with a fixed weight.

    Source: EchoX (arXiv:2509.09174), section on Echo training.
    """

    def denoising(self, cosine: Tensor, count: int, rows: int, units: Tensor) -> Tensor:
        return self.config.denoising_weight * cosine / count


@CRITERIA.register("echo_capped", CappedEchoConfig)
class CappedEchoCriterion(EchoTerms):
    """The same with an adaptive weight: the cosine term, summed over an answer's positions and averaged over answers, counts as it is
    up to a share of the unit loss, and is scaled down to that share beyond; see `capped_weight`.
    """

    def denoising(self, cosine: Tensor, count: int, rows: int, units: Tensor) -> Tensor:
        term = cosine / rows
        return term * capped_weight(units, term, self.config.denoising_share)
