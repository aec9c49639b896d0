"""Pseudo-labels of Echo training: computed once and cached, or online at every step.

X' is the greedy decoding of the S2T model's hidden states at every position of the reference
answer; Y' is what the frozen T2C model generates for X', segment by segment where answers are cut.

Source: EchoX (arXiv:2509.09174), Echo training.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from echox.core.errors import ConfigError
from echox.core.signals import Batch, Spans, padded
from echox.models.echo import EchoBase, EchoModel
from echox.models.segmenting import cut
from echox.models.speech_llm import IGNORE
from echox.tasks.base import Examples

Collate = Callable[[Sequence[Any]], Batch]
"""B conversations -> one padded batch."""


@dataclass(kw_only=True, slots=True)
class OnlineLabelsConfig:
    """Pseudo-labels computed at every step from the current states, by a frozen T2C model.

    Raises:
        ConfigError: `max_words` is below 1.
    """

    max_words: int = 1024
    """Words and marks of a label at most."""

    def __post_init__(self) -> None:
        if self.max_words < 1:
            raise ConfigError(f"online.max_words must be at least 1, and is {self.max_words}")


@dataclass(frozen=True, slots=True)
class PseudoLabels:
    """Text X' [B, S] and units Y' [G, U * K] that S2T and T2C give to B answers."""

    text: Tensor  # [B, S] greedy text X', one token per answer position, right-padded
    spans: Spans  # G segments of the answers
    targets: Tensor  # [G, U * K] output ids Y' of each segment, IGNORE-padded
    weights: Tensor | None = None  # [G] of a segment's units in the loss; None weighs all alike


@torch.no_grad()
def make_labels(
    model: EchoBase,
    targets_of: Callable[[Tensor, Tensor], Sequence[list[int]]],
    hidden: Tensor,
    lengths: Tensor,
    text: Tensor,
) -> PseudoLabels:
    """Compute the pseudo-labels of answers.

    Args:
        model: of Echo, which cuts the answers.
        targets_of: a frozen T2C model: token ids [G, S] and lengths [G] -> output ids of each.
        hidden: [B, S, H] states that predict the answers' tokens.
        lengths: [B] tokens of each answer.
        text: [B, S] the likeliest token of each state.
    """
    spans = model.spans(hidden, lengths)
    # `cut` takes vectors; ids are vectors of one channel.
    pieces, piece_lengths = cut(text[..., None], spans)
    targets = targets_of(pieces[..., 0], piece_lengths)  # G lists
    return PseudoLabels(text, spans, padded(targets, IGNORE).to(text.device))


@dataclass(frozen=True, slots=True)
class EchoBatch(Batch):
    """B spoken conversations of ids [B, N]."""

    conversation: Any  # a batch of the form that the task reads

    def segment_targets(self) -> list[tuple[int, Tensor]]:
        """Row and targets [U * K] of each segment, views into the batch; none for online labels."""
        return []


SourceBatch = TypeVar("SourceBatch", bound=EchoBatch)


class LabelSource(ABC, Generic[SourceBatch]):
    """Where pseudo-labels come from."""

    def prepare(self, model: nn.Module, conversations: Iterable[Examples[Any]]) -> None:  # noqa: B027
        """Do the work that is possible before the first step; nothing by default."""

    @abstractmethod
    def examples(self, conversations: Examples[Any]) -> Examples[Any]:
        """Wrap conversations as examples that `batch` takes."""

    @abstractmethod
    def batch(self, examples: Sequence[Any], collate: Collate) -> SourceBatch:
        """Pad B examples to one batch on the CPU.

        Args:
            examples: of `examples`.
            collate: does so for their conversations, to ids [B, N].
        """

    def codecs(self) -> dict[str, str]:
        """Fingerprint of the labels' codec by what it is called; none for online labels."""
        return {}

    @abstractmethod
    def labels(
        self, model: EchoModel, batch: SourceBatch, hidden: Tensor, lengths: Tensor, text: Tensor
    ) -> PseudoLabels:
        """Pseudo-labels of a batch.

        Args:
            model: the Echo model.
            batch: of `batch`.
            hidden: [B, S, H] states that predict the answers' tokens.
            lengths: [B] tokens of each answer.
            text: [B, S] the likeliest token of each state, at every position of the reference
                answer, which keeps text and states aligned.
        """


class OnlineLabels(LabelSource[EchoBatch]):
    """Labels of the current states: the text follows what LoRA learns.

    Nothing random is drawn, so a resumed run computes the same labels.
    """

    def __init__(self, config: OnlineLabelsConfig) -> None:
        self.config = config

    def examples(self, conversations: Examples[Any]) -> Examples[Any]:
        return conversations

    def batch(self, examples: Sequence[Any], collate: Collate) -> EchoBatch:
        conversation = collate(examples)
        # The number of units is not known before the forward pass, so that the loss is divided by
        # that of the answers' tokens, which it follows.
        return EchoBatch(conversation.row_ids, conversation.count, conversation)

    def labels(
        self, model: EchoModel, batch: EchoBatch, hidden: Tensor, lengths: Tensor, text: Tensor
    ) -> PseudoLabels:
        # By the teacher: the decoder that is trained would chase its own labels.
        teacher = model.teacher
        if teacher is None:
            raise ConfigError(
                "labels at every step come from a frozen copy of T2C, which this model was built "
                "without; build it with_teacher, or set echo.task.online=null"
            )
        return make_labels(
            model,
            lambda ids, sizes: teacher.targets(ids, sizes, self.config.max_words),
            hidden,
            lengths,
            text,
        )
