"""The criterion interface, and the outputs of forward passes that criteria read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from torch import Tensor, nn

from echox.errors import ConfigError
from echox.kernels.codec_head_loss import CodecHead
from echox.registry import Registry
from echox.signals import Batch, Loss, Outputs, Scored
from echox.vocoders.discriminators import Discriminators


@dataclass(kw_only=True, slots=True)
class CriterionConfig:
    """Base of every criterion's config."""


class Criterion(nn.Module, ABC):
    """A training objective; it owns no trained weight and reads nothing but its arguments."""

    @abstractmethod
    def forward(self, outputs: Outputs, batch: Batch) -> Loss:
        """The summed loss of one batch; see `Loss` for the convention."""

    def discriminator(self, outputs: Outputs, batch: Batch) -> Loss:
        """The loss of a stage's discriminator on the same outputs; its total is not added to `forward`'s.

        Raises:
            ConfigError: this criterion has none.
        """
        raise ConfigError(f"{type(self).__name__} has no loss for a discriminator; give the stage a criterion that has, such as vocoder")


CRITERIA: Registry[Criterion] = Registry("criterion", CriterionConfig)


def refuse_negative(first_codebook: float) -> None:
    """
    Raises:
        ConfigError: the weight of the first codebook is below 0.
    """
    if not first_codebook >= 0:
        raise ConfigError(f"first_codebook is a weight, 0 or more, and is {first_codebook}; 1 weighs all codebooks alike")


def codebook_weights(head: CodecHead, first_codebook: float) -> list[float] | None:
    """Weights of a head's K codebooks, the first `first_codebook` times the others', 1 on average; None where all are 1."""
    K = len(head.segments) - 1
    if K == 1 or first_codebook == 1:
        return None
    others = K / (first_codebook + K - 1)
    return [first_codebook * others, *[others] * (K - 1)]


@dataclass(frozen=True, slots=True)
class AlignmentOutputs(Outputs):
    """Clips scored against the words spoken in them."""

    ctc_logits: Tensor  # [A, F, C], the blank last
    frame_lengths: Tensor  # [A]
    targets: Tensor  # [A, S] indices into C, right-padded
    target_lengths: Tensor  # [A]; 0 where nothing is known of what was said
    silent: Tensor | None = field(default=None, kw_only=True)  # bool [A], True where it is known that nobody speaks


@dataclass(frozen=True, slots=True)
class SpelledOutputs(AlignmentOutputs):
    """The same clips scored against the bytes of those words too."""

    spelling: AlignmentOutputs


@dataclass(frozen=True, slots=True)
class SpeechTextOutputs(AlignmentOutputs):
    """A language model's predictions of its answers, at label positions only; without CTC's scores (None) where no clip was read."""

    text_logits: Tensor  # [N, V]
    text_labels: Tensor  # [N]
    counts_ctc: bool = field(default=True, kw_only=True)  # False where the alignment is frozen and its loss would teach nothing

    def scored(self) -> dict[str, Scored]:
        return {"text": Scored(self.text_labels, self.text_logits)}


def scored_units(labels: Tensor, states: Tensor) -> Scored:
    """Units [N] or [N, K] and their states [N, C]; of K codebooks the first, in which the marks are."""
    return Scored(labels if labels.ndim == 1 else labels[:, 0], states, are_scores=False)


@dataclass(frozen=True, slots=True)
class UnitOutputs(Outputs):
    """A unit decoder's states at label positions, and the layer that scores them: a criterion asks it for the loss or for logits."""

    unit_states: Tensor  # [N, C]
    unit_labels: Tensor  # [N], or [N, K] of K codebooks, -100 where one says nothing
    unit_head: CodecHead  # states [N, C] -> logits [N, W], of all codebooks

    def scored(self) -> dict[str, Scored]:
        return {"units": scored_units(self.unit_labels, self.unit_states)}


@dataclass(frozen=True, slots=True)
class EchoOutputs(Outputs):
    """Units predicted from hidden states, and what the denoising adapter made of those."""

    unit_states: Tensor  # [N, C]
    unit_labels: Tensor  # [N], or [N, K] of K codebooks, -100 where one says nothing
    unit_head: CodecHead  # states [N, C] -> logits [N, W], of all codebooks
    denoised: Tensor  # [M, H] the adapter's text vectors
    text_vectors: Tensor  # [M, H] those of the pseudo-label text
    text_logits: Tensor  # [L, V]
    text_labels: Tensor  # [L]
    unit_weights: Tensor | None = None  # [N] of each unit beside the others; None weighs all alike

    def scored(self) -> dict[str, Scored]:
        return {"text": Scored(self.text_labels, self.text_logits), "units": scored_units(self.unit_labels, self.unit_states)}


@dataclass(frozen=True, slots=True)
class VoicedOutputs(Outputs):
    """Units spoken from hidden states in samples of their own, as the EchoX release trains them."""

    unit_states: Tensor  # [N, C]
    unit_labels: Tensor  # [N]
    unit_head: CodecHead  # states [N, C] -> logits [N, W]
    distances: Tensor  # [K] per sample, 1 - cosine of denoised states and their tokens' vectors, summed over positions
    text_logits: Tensor  # [L, V]
    text_labels: Tensor  # [L]

    def scored(self) -> dict[str, Scored]:
        return {"text": Scored(self.text_labels, self.text_logits), "units": scored_units(self.unit_labels, self.unit_states)}


@dataclass(frozen=True, slots=True)
class VocoderOutputs(Outputs):
    """Speech made from units beside the recording of it, and the nets that tell them apart."""

    real: Tensor  # [B, T]
    made: Tensor  # [B, T]
    log_frames: Tensor | None  # [B, U] log(1 + frames) of each unit, as predicted; None where nothing predicts
    frames: Tensor  # [B, U] frames of each unit, 0 on padding
    judges: Discriminators | None  # None where nothing judges
    rate_hz: int


@dataclass(frozen=True, slots=True)
class JointOutputs(SpeechTextOutputs):
    """What is heard, what is answered, and the answer's units, in one pass."""

    unit_states: Tensor  # [N, C]
    unit_labels: Tensor  # [N]
    unit_head: CodecHead  # states [N, C] -> logits [N, W]
    distances: Tensor  # [K] as in VoicedOutputs

    def scored(self) -> dict[str, Scored]:
        return {"text": Scored(self.text_labels, self.text_logits), "units": scored_units(self.unit_labels, self.unit_states)}
