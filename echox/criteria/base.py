"""The criterion interface, and the forward outputs that criteria read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from torch import Tensor, nn

from echox.core.errors import ConfigError
from echox.core.registry import Registry
from echox.core.signals import Batch, Loss, Outputs, Scored
from echox.kernels.codec_head_loss import CodecHead
from echox.vocoders.discriminators import Discriminators

TaskOutputs = TypeVar("TaskOutputs", bound=Outputs)


@dataclass(kw_only=True, slots=True)
class CriterionConfig:
    """Base class of every criterion's config."""


class Criterion(nn.Module, ABC, Generic[TaskOutputs]):
    """A training objective without trained weights, a function of its arguments alone.

    It names the type of the outputs that it reads: `Criterion[SpeechTextOutputs]`.

    Needed: `forward`.

    Optional: `discriminator`.
    """

    @abstractmethod
    def forward(self, outputs: TaskOutputs, batch: Batch) -> Loss:
        """Compute the loss of one batch.

        Args:
            outputs: what the task's forward pass returned, of the type this criterion reads.
            batch: the batch it was computed from.

        Returns:
            the loss summed over the batch's targets; see `Loss` for the convention.
        """

    def discriminator(self, outputs: TaskOutputs, batch: Batch) -> Loss:
        """Compute the loss of the stage's discriminator, which `forward` does not include.

        Raises:
            ConfigError: this criterion has none.
        """
        raise ConfigError(
            f"{type(self).__name__} has no loss for a discriminator; give the stage a criterion "
            "that has, such as vocoder"
        )


CRITERIA: Registry[Criterion] = Registry("criterion", CriterionConfig)


def check_first_codebook(weight: float) -> None:
    """Check a config's relative weight of the first codebook.

    Raises:
        ConfigError: the weight is below 0, or not a number.
    """
    # Not `weight < 0`, which is false for NaN.
    if not weight >= 0:
        raise ConfigError(
            f"first_codebook is a weight, 0 or more, and is {weight}; 1 weighs all codebooks alike"
        )


def codebook_weights(head: CodecHead, first_codebook: float) -> list[float] | None:
    """Compute the loss weights of a head's codebooks.

    Args:
        head: scores K codebooks.
        first_codebook: weight of the first codebook as a multiple of each other's.

    Returns:
        weights [K] with mean 1, so that the scale of the loss stays; None where all are 1.
    """
    K = len(head.segments) - 1
    if K == 1 or first_codebook == 1:
        return None
    others = K / (first_codebook + K - 1)
    return [first_codebook * others, *[others] * (K - 1)]


@dataclass(frozen=True, slots=True)
class AlignmentOutputs(Outputs):
    """CTC scores of A audio clips, and the tokens of their transcripts."""

    ctc_logits: Tensor  # [A, F, C], the blank last
    frame_lengths: Tensor  # [A]
    targets: Tensor  # [A, S] indices into C, right-padded
    target_lengths: Tensor  # [A]; 0 where the transcript is not known
    # bool [A], True for clips known to contain no speech; None where no clip is
    silent: Tensor | None = field(default=None, kw_only=True)


@dataclass(frozen=True, slots=True)
class SpelledOutputs(AlignmentOutputs):
    """CTC scores of clips against their tokens and against the bytes of the same words."""

    spelling: AlignmentOutputs  # C counts bytes here


@dataclass(frozen=True, slots=True)
class SpeechTextOutputs(AlignmentOutputs):
    """A language model's predictions of its answers, at label positions only.

    There are no clips (A is 0) where the batch was computed from cached states.
    """

    text_logits: Tensor  # [N, V]
    text_labels: Tensor  # [N]
    # False where the alignment is frozen, so that its loss has no gradient
    counts_ctc: bool = field(default=True, kw_only=True)

    def scored(self) -> dict[str, Scored]:
        """Return the answer's tokens [N] as "text", with their logits."""
        return {"text": Scored(self.text_labels, self.text_logits)}


def scored_units(labels: Tensor, states: Tensor) -> Scored:
    """Describe unit targets for an audit.

    Args:
        labels: units [N], or [N, K] of K codebooks.
        states: [N, C], from which the unit head computes the logits.
    """
    # Of several codebooks only the first has the special tokens (end, next), which audits check.
    return Scored(labels if labels.ndim == 1 else labels[:, 0], states, are_scores=False)


@dataclass(frozen=True, slots=True)
class UnitOutputs(Outputs):
    """A unit decoder's states at label positions, and the head that scores them.

    The head is passed on instead of logits, because its fused loss never stores them.
    """

    unit_states: Tensor  # [N, C]
    unit_labels: Tensor  # [N], or [N, K] of K codebooks, -100 where a codebook has no target
    unit_head: CodecHead  # states [N, C] -> logits [N, W] of all codebooks

    def scored(self) -> dict[str, Scored]:
        """Return the units [N] as "units", with the states that predict them."""
        return {"units": scored_units(self.unit_labels, self.unit_states)}


@dataclass(frozen=True, slots=True)
class EchoOutputs(Outputs):
    """Units predicted from hidden states, and the denoising adapter's output for those."""

    unit_states: Tensor  # [N, C]
    unit_labels: Tensor  # [N], or [N, K] of K codebooks, -100 where a codebook has no target
    unit_head: CodecHead  # states [N, C] -> logits [N, W] of all codebooks
    denoised: Tensor  # [M, H] output of the denoising adapter
    text_vectors: Tensor  # [M, H] embeddings of the pseudo-label text, the adapter's targets
    text_logits: Tensor  # [L, V]
    text_labels: Tensor  # [L]
    unit_weights: Tensor | None = None  # [N] relative weight of each unit; None weighs all alike
    # [R] positions of each sample of the unit decoder, M in all; None where a sample is a row
    sample_lengths: Tensor | None = None

    def scored(self) -> dict[str, Scored]:
        """Return the answer's tokens as "text" and its units [N] as "units"."""
        return {
            "text": Scored(self.text_labels, self.text_logits),
            "units": scored_units(self.unit_labels, self.unit_states),
        }


@dataclass(frozen=True, slots=True)
class VocoderOutputs(Outputs):
    """Speech synthesized from units, its recording, and the discriminators of the two."""

    real: Tensor  # [B, T] samples of the recordings
    synthesized: Tensor  # [B, T] samples synthesized from their units
    # [B, U] predicted log(1 + frames) of each unit; None without a duration predictor
    log_frames: Tensor | None
    frames: Tensor  # [B, U] true frames of each unit, 0 on padding
    discriminators: Discriminators | None  # None where training is not adversarial
    rate_hz: int


@dataclass(frozen=True, slots=True)
class JointOutputs(SpeechTextOutputs):
    """CTC scores of the question, and what `EchoOutputs` has of the answer, in one pass."""

    unit_states: Tensor  # [N, C]
    unit_labels: Tensor  # [N]
    unit_head: CodecHead  # states [N, C] -> logits [N, W]
    denoised: Tensor  # [M, H] output of the denoising adapter
    text_vectors: Tensor  # [M, H] embeddings of the answer's text
    sample_lengths: Tensor  # [R] positions of each sample, M in all
    unit_weights: Tensor | None = None

    def scored(self) -> dict[str, Scored]:
        """Return the answer's tokens as "text" and its units [N] as "units"."""
        return {
            "text": Scored(self.text_labels, self.text_logits),
            "units": scored_units(self.unit_labels, self.unit_states),
        }
