"""The criterion interface, and the outputs of forward passes that criteria read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

from echox.kernels.codec_head_loss import CodecHead
from echox.registry import Registry
from echox.signals import Batch, Loss, Outputs, Scored


@dataclass(kw_only=True, slots=True)
class CriterionConfig:
    """Base of every criterion's config."""


class Criterion(nn.Module, ABC):
    """A training objective; it owns no trained weight and reads nothing but its arguments."""

    @abstractmethod
    def forward(self, outputs: Outputs, batch: Batch) -> Loss:
        """The summed loss of one batch; see `Loss` for the convention."""


CRITERIA: Registry[Criterion] = Registry("criterion", CriterionConfig)


@dataclass(frozen=True, slots=True)
class AlignmentOutputs(Outputs):
    """Clips scored against the words spoken in them."""

    ctc_logits: Tensor  # [A, F, C], the blank last
    frame_lengths: Tensor  # [A]
    targets: Tensor  # [A, S] indices into C, right-padded
    target_lengths: Tensor  # [A]; 0 where nothing is known of what was said


@dataclass(frozen=True, slots=True)
class SpelledOutputs(AlignmentOutputs):
    """The same clips scored against the bytes of those words too."""

    spelling: AlignmentOutputs


@dataclass(frozen=True, slots=True)
class SpeechTextOutputs(AlignmentOutputs):
    """A language model's predictions of its answers, at label positions only."""

    text_logits: Tensor  # [N, V]
    text_labels: Tensor  # [N]

    def scored(self) -> dict[str, Scored]:
        return {"text": Scored(self.text_labels, self.text_logits)}


@dataclass(frozen=True, slots=True)
class UnitOutputs(Outputs):
    """A unit decoder's states at label positions, and the layer that scores them: a criterion asks it for the loss or for logits."""

    unit_states: Tensor  # [N, C]
    unit_labels: Tensor  # [N]
    unit_head: CodecHead  # states [N, C] -> logits [N, W]

    def scored(self) -> dict[str, Scored]:
        return {"units": Scored(self.unit_labels, self.unit_states, are_scores=False)}


@dataclass(frozen=True, slots=True)
class EchoOutputs(Outputs):
    """Units predicted from hidden states, and what the denoising adapter made of those."""

    unit_states: Tensor  # [N, C]
    unit_labels: Tensor  # [N]
    unit_head: CodecHead  # states [N, C] -> logits [N, W]
    denoised: Tensor  # [M, H] the adapter's text vectors
    text_vectors: Tensor  # [M, H] those of the pseudo-label text
    text_logits: Tensor  # [L, V]
    text_labels: Tensor  # [L]
    unit_weights: Tensor | None = None  # [N] of each unit beside the others; None weighs all alike

    def scored(self) -> dict[str, Scored]:
        return {"text": Scored(self.text_labels, self.text_logits), "units": Scored(self.unit_labels, self.unit_states, are_scores=False)}


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
        return {"text": Scored(self.text_labels, self.text_logits), "units": Scored(self.unit_labels, self.unit_states, are_scores=False)}


@dataclass(frozen=True, slots=True)
class JointOutputs(SpeechTextOutputs):
    """What is heard, what is answered, and the answer's units, in one pass."""

    unit_states: Tensor  # [N, C]
    unit_labels: Tensor  # [N]
    unit_head: CodecHead  # states [N, C] -> logits [N, W]
    distances: Tensor  # [K] as in VoicedOutputs

    def scored(self) -> dict[str, Scored]:
        return {"text": Scored(self.text_labels, self.text_logits), "units": Scored(self.unit_labels, self.unit_states, are_scores=False)}
