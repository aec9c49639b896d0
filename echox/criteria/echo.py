"""The Echo loss: pseudo-label units from hidden states, denoising, and reference text."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch.nn.functional as F
from torch import Tensor

from echox.core.config import refuse_below, refuse_no_share
from echox.core.errors import ConfigError
from echox.core.signals import Batch, Loss
from echox.criteria.base import (
    CRITERIA,
    Criterion,
    CriterionConfig,
    EchoOutputs,
    JointOutputs,
    check_first_codebook,
    codebook_weights,
)
from echox.criteria.denoising import CAPPED_SHARE, capped_weight
from echox.kernels.codec_head_loss import HeadLoss, Impl, Reduction


@dataclass(kw_only=True, slots=True)
class EchoTermsConfig(CriterionConfig):
    """Settings shared by both forms of the Echo loss.

    Raises:
        ConfigError: a number is out of range.
    """

    text_weight: float = 1.0
    """Weight of the text cross-entropy on the reference answer; 1 in the paper."""
    label_smoothing: float = 0.0
    """Probability mass in [0, 1) spread over the unit vocabulary."""
    first_codebook: float = 1.0
    """Weight of the first codebook's loss as a multiple of each other's, with a codec of several;
    it also says where text tokens end."""
    impl: Impl = Impl.auto
    """How the unit loss is computed: auto, reference (whole logits), torch (chunks of rows),
    chunked or fused (Triton, on a GPU)."""

    def __post_init__(self) -> None:
        refuse_below(self, 0, "text_weight")
        refuse_no_share(self, "label_smoothing")
        check_first_codebook(self.first_codebook)


@dataclass(kw_only=True, slots=True)
class EchoConfig(EchoTermsConfig):
    """L = L_echo + denoising_weight * L_denoising + text_weight * L_s2t (paper).

    Raises:
        ConfigError: a number is out of range.
    """

    denoising_weight: float = 0.5
    """Weight lambda of the cosine term; the paper's value is not known, this one is ours."""

    def __post_init__(self) -> None:
        EchoTermsConfig.__post_init__(self)
        refuse_below(self, 0, "denoising_weight")


@dataclass(kw_only=True, slots=True)
class CappedEchoConfig(EchoTermsConfig):
    """L = L_echo + L_denoising capped at a share of L_echo + text_weight * L_s2t (release)."""

    denoising_share: float = CAPPED_SHARE
    """Share of the unit loss, above 0, that the cosine term may reach; 0.2 in the release."""

    def __post_init__(self) -> None:
        # super() without arguments fails in a dataclass with slots, which is a second class.
        EchoTermsConfig.__post_init__(self)
        if not self.denoising_share > 0:
            raise ConfigError(f"denoising_share must be above 0, and is {self.denoising_share}")


@dataclass(frozen=True, slots=True)
class EchoMeans:
    """The terms of the Echo loss before they are weighted."""

    units: Tensor  # [] mean over units
    cosine: Tensor  # [] sum of 1 - cosine over all positions
    positions: int  # at least 1
    samples: int  # of the unit decoder, at least 1
    text: Tensor  # [] mean over text tokens
    parts: dict[str, tuple[Tensor, Tensor]]  # for people, as `Loss.parts`


EchoLike = TypeVar("EchoLike", EchoOutputs, JointOutputs)


class EchoTerms(Criterion[EchoLike], Generic[EchoLike]):
    """Unit, denoising and text terms; a subclass weights the denoising term.

    The unit and the text term are means over their own targets.
    """

    shows_per_sample = False  # whether people are shown the denoising term of a sample

    def __init__(self, config: EchoTermsConfig) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def denoising(self, means: EchoMeans) -> Tensor:
        """Compute the weighted denoising term []."""

    def means(self, outputs: EchoOutputs | JointOutputs, batch: Batch) -> EchoMeans:
        """Compute the terms of a batch."""
        head_loss = self._unit_loss(outputs)
        units, correct = head_loss.loss, head_loss.correct.sum()
        # In float32 under autocast too: a cosine near 1 loses its distance from 1 in bfloat16.
        denoised, vectors = outputs.denoised.float(), outputs.text_vectors.float()
        cosine = (1 - F.cosine_similarity(denoised, vectors, dim=-1)).sum()
        text = F.cross_entropy(outputs.text_logits.float(), outputs.text_labels, reduction="sum")
        # Counts of at least 1, because a batch may have no target of a kind.
        unit_count = head_loss.valid.sum().clamp(min=1)
        text_count = max(1, outputs.text_labels.shape[0])
        unit_weight = _weight_sum(outputs, head_loss.valid, unit_count)
        rows = batch.row_ids if outputs.sample_lengths is None else outputs.sample_lengths
        positions, samples = max(1, len(outputs.denoised)), max(1, len(rows))
        shown = samples if self.shows_per_sample else positions
        parts = {
            "units": (units.detach(), unit_weight),
            "denoising": (cosine.detach(), correct.new_tensor(shown)),
            "text": (text.detach(), correct.new_tensor(text_count)),
            "accuracy": (correct, unit_count),
        }
        text_mean = text / text_count
        return EchoMeans(units / unit_weight, cosine, positions, samples, text_mean, parts)

    def _unit_loss(self, outputs: EchoOutputs | JointOutputs) -> HeadLoss:
        return outputs.unit_head(
            outputs.unit_states,
            outputs.unit_labels,
            token_weight=outputs.unit_weights,
            label_smoothing=self.config.label_smoothing,
            codebook_weight=codebook_weights(outputs.unit_head, self.config.first_codebook),
            reduction=Reduction.sum,
            impl=self.config.impl,
        )


def _weight_sum(outputs: EchoOutputs | JointOutputs, valid: Tensor, count: Tensor) -> Tensor:
    """Sum the weights of the valid targets [N] or [N, K]; their count where all weigh alike."""
    if outputs.unit_weights is None:
        return count
    per_unit = valid.reshape(len(outputs.unit_weights), -1)  # [N, K]
    return (per_unit * outputs.unit_weights[:, None]).sum()


def capped(units: Tensor, term: Tensor, share: float = CAPPED_SHARE) -> Tensor:
    """Cap a denoising term [] at a share of the unit loss []; see `capped_weight`."""
    return term * capped_weight(units, term, share)


class EchoSum(EchoTerms[EchoOutputs]):
    """The three terms of Echo training added."""

    def forward(self, outputs: EchoOutputs, batch: Batch) -> Loss:
        """Add the three terms, and scale their sum to the batch's count of targets."""
        means = self.means(outputs, batch)
        mean = means.units + self.denoising(means) + self.config.text_weight * means.text
        return Loss(mean * batch.count, batch.count, means.parts)


@CRITERIA.register("echo", EchoConfig)
class EchoCriterion(EchoSum):
    """EchoX's three losses, each a mean over its targets, the cosine term with a fixed weight.

    Source: EchoX (arXiv:2509.09174), section on Echo training.
    """

    config: EchoConfig

    def denoising(self, means: EchoMeans) -> Tensor:
        """Return the mean cosine distance over positions [], times the fixed weight."""
        return self.config.denoising_weight * means.cosine / means.positions


@CRITERIA.register("echo_capped", CappedEchoConfig)
class CappedEchoCriterion(EchoSum):
    """EchoX's three losses, the cosine term capped at a share of the unit loss.

    The cosine term is summed over an answer's positions and averaged over answers. Above the cap
    it is scaled down to it; see `capped_weight`.
    """

    config: CappedEchoConfig

    def denoising(self, means: EchoMeans) -> Tensor:
        """Return the mean cosine distance over answers [], capped at a share of the unit loss."""
        return capped(means.units, means.cosine / means.samples, self.config.denoising_share)
