"""The losses of the EchoX release, for Echo training and for joint finetuning."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from echox.core.config import refuse_below
from echox.core.signals import Batch, Loss
from echox.criteria.alignment import ctc_losses
from echox.criteria.base import CRITERIA, JointOutputs
from echox.criteria.echo import EchoMeans, EchoSum, EchoTerms, EchoTermsConfig, capped

# S2T loss below which the release weighs units ten times as much as text.
TEXT_CONVERGED = 1.0


@dataclass(kw_only=True, slots=True)
class ReleaseEchoConfig(EchoTermsConfig):
    """L = L_units + weight * L_denoising + text_weight * L_text.

    In the release's finetune_kd, `text_weight` is 0.

    Raises:
        ConfigError: a number is out of range.
    """

    denoising_weight: float | None = None
    """The paper's lambda; null caps the term at a fifth of the unit loss, as the release does."""

    def __post_init__(self) -> None:
        EchoTermsConfig.__post_init__(self)
        refuse_below(self, 0, "denoising_weight")


@CRITERIA.register("published_echo", ReleaseEchoConfig)
class ReleaseEchoCriterion(EchoSum):
    """Echo's terms, the cosine distance summed over a sample's positions and averaged over samples.

    Source: EchoX (arXiv:2509.09174), and the branch finetune_kd of its release.
    """

    config: ReleaseEchoConfig
    shows_per_sample = True

    def denoising(self, means: EchoMeans) -> Tensor:
        """Return the mean cosine distance of a sample [], capped or times the fixed weight."""
        fixed, term = self.config.denoising_weight, means.cosine / means.samples
        return capped(means.units, term) if fixed is None else fixed * term


@dataclass(kw_only=True, slots=True)
class ReleaseJointConfig(EchoTermsConfig):
    """L = (text_weight * L_text + ctc_weight * L_ctc) + (L_units + capped L_denoising).

    Raises:
        ConfigError: a number is out of range.
    """

    ctc_weight: float = 0.3
    """Weight of the CTC part; 0.3 in the release."""

    def __post_init__(self) -> None:
        EchoTermsConfig.__post_init__(self)
        refuse_below(self, 0, "ctc_weight")


@CRITERIA.register("published_joint", ReleaseJointConfig)
class ReleaseJointCriterion(EchoTerms[JointOutputs]):
    """S2T and unit losses added; once the S2T loss is below 1, with weights 0.2 and 2.

    Source: the branch finetune of the EchoX release.
    """

    config: ReleaseJointConfig
    shows_per_sample = True

    def denoising(self, means: EchoMeans) -> Tensor:
        """Return the mean cosine distance of a sample [], capped."""
        return capped(means.units, means.cosine / means.samples)

    def forward(self, outputs: JointOutputs, batch: Batch) -> Loss:
        """Combine the means of both tasks, and scale the sum to the batch's count of targets."""
        means = self.means(outputs, batch)
        # Each clip's loss per token, so that long questions do not outweigh short ones.
        ctc = (ctc_losses(outputs) / outputs.target_lengths.clamp(min=1)).sum()
        clips = (outputs.target_lengths > 0).sum()
        s2t = self.config.text_weight * means.text
        s2t = s2t + self.config.ctc_weight * ctc / clips.clamp(min=1)
        total = joint_loss(s2t, means.units + self.denoising(means))
        return Loss(total * batch.count, batch.count, {**means.parts, "ctc": (ctc.detach(), clips)})


def joint_loss(s2t: Tensor, units: Tensor) -> Tensor:
    """Add the S2T loss [] and the unit loss [], units weighed tenfold once S2T has converged."""
    # A tensor operation instead of a branch, which would wait for the device.
    return torch.where(s2t.detach() < TEXT_CONVERGED, 0.2 * s2t + 2.0 * units, s2t + units)
