"""Pseudo-labels of Echo training: made once and cached, or made online at every step.

X' is the greedy reading of the S2T model's hidden states at every position of the reference answer; Y' is what the frozen T2C model
says for X', segment by segment where answers are cut.
Source: EchoX (arXiv:2509.09174), Echo training.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from echox.errors import ConfigError
from echox.models.echo import EchoModel
from echox.models.segmenting import cut
from echox.models.speech_llm import IGNORE
from echox.signals import Batch, Spans
from echox.tasks.base import Examples
from echox.tasks.speech_text import Conversation, SpeechTextBatch
from echox.tasks.spoken import padded


@dataclass(kw_only=True, slots=True)
class OnlineLabelsConfig:
    """Pseudo-labels made at every step from the states as they are then, by a frozen T2C model beside the one that is trained."""

    max_words: int = 1024
    """Words and marks of a label at most."""

    def __post_init__(self) -> None:
        if self.max_words < 1:
            raise ConfigError(f"online.max_words must be at least 1, and is {self.max_words}")


@dataclass(frozen=True, slots=True)
class PseudoLabels:
    """What the teachers make of a batch of answers."""

    text: Tensor  # [B, S] greedy text X', one token per answer position, right-padded
    spans: Spans  # G segments of the answers
    targets: Tensor  # [G, U * K] units Y' of each segment, as the decoder's output ids, IGNORE-padded
    weights: Tensor | None = None  # [G] of the units of each segment in the loss; None weighs all alike


@torch.no_grad()
def make_labels(model: EchoModel, targets_of: Callable[[Tensor, Tensor], list[list[int]]], hidden: Tensor, lengths: Tensor) -> PseudoLabels:
    """Labels of answers from their hidden states [B, S, H], lengths [B].

    Args:
        targets_of: token ids [G, S] and lengths [G] -> target ids per row, by a frozen T2C model.
    """
    text = model.speech_llm.backbone.logits(hidden).argmax(-1)
    spans = model.spans(hidden, lengths)
    pieces, piece_lengths = cut(text[..., None], spans)
    targets = targets_of(pieces[..., 0], piece_lengths)
    return PseudoLabels(text, spans, padded(targets, IGNORE).to(text.device))


@dataclass(frozen=True, slots=True)
class EchoBatch(Batch):
    """Spoken conversations."""

    conversation: SpeechTextBatch

    def said(self) -> list[tuple[int, Tensor]]:
        """The row and the targets [U] of each segment, views into the batch; none where they are made at every step."""
        return []


class LabelSource(ABC):
    """Where pseudo-labels come from."""

    def prepare(self, model: EchoModel, conversations: Iterable[Examples]) -> None:  # noqa: B027 (nothing to prepare is a fine default)
        """What can be done before the first step."""

    @abstractmethod
    def examples(self, conversations: Examples) -> Examples:
        """Conversations as `batch` takes them."""

    @abstractmethod
    def batch(self, examples: Sequence, collate: Callable[[Sequence[Conversation]], SpeechTextBatch]) -> EchoBatch:
        """Examples -> one padded batch on the CPU."""

    def codecs(self) -> dict[str, str]:
        """The fingerprint of the codec that they were made with, by what it is called; none where they are made at every step."""
        return {}

    @abstractmethod
    def labels(self, model: EchoModel, batch: EchoBatch, hidden: Tensor, lengths: Tensor) -> PseudoLabels:
        """The labels of a batch whose answers have these hidden states [B, S, H], lengths [B]."""


class OnlineLabels(LabelSource):
    """Labels of the states as they are: the text follows what LoRA learns. Nothing random is drawn, so a resumed run makes the same ones."""

    def __init__(self, config: OnlineLabelsConfig) -> None:
        self.config = config

    def examples(self, conversations: Examples) -> Examples:
        return conversations

    def batch(self, examples: Sequence[Conversation], collate: Callable[[Sequence[Conversation]], SpeechTextBatch]) -> EchoBatch:
        conversation = collate(examples)
        # How many units there will be is not known yet; positions of the answers are what their number follows.
        return EchoBatch(conversation.row_ids, conversation.count, conversation)

    def labels(self, model: EchoModel, batch: EchoBatch, hidden: Tensor, lengths: Tensor) -> PseudoLabels:
        return make_labels(model, lambda ids, sizes: model.teacher.targets(ids, sizes, self.config.max_words), hidden, lengths)
