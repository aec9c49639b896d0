"""Spoken conversations as the S2T and Echo tasks read them: examples, batches and their audit."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from echox.core.signals import Batch, Features, Waveform, padded
from echox.models.speech_llm import AUDIO, IGNORE, SpeechLLM
from echox.tasks.align.task import ctc_indices
from echox.tasks.base import CtcTargets, Examples
from echox.tasks.conversations import Clip, SpokenData, prompt_and_labels
from echox.tasks.s2t.frozen_states import CachedConversation
from echox.tasks.trained_encoder import encoded
from echox.tasks.views import backbone_text, clip_targets, padding_of_clips, padding_of_rows

FRAMES_PER_TOKEN = 8  # encoder frames that cost as much as a token


@dataclass(frozen=True, slots=True)
class SpeechTextBatch(Batch):
    """B spoken conversations: ids [B, N], labels [B, N], features [A, F, D] of A clips."""

    ids: Tensor  # [B, N] prompt and answer ids with AUDIO placeholders, PAD-padded
    labels: Tensor  # [B, N] the id that comes next, IGNORE where it is no target
    prompt_lengths: Tensor  # [B] ids before the answer
    # [A, F, D] of the clips, in the order of their placeholders; samples where the encoder is
    # trained
    features: Features | Waveform
    clip_rows: Tensor  # [A] the row of each clip
    ctc_targets: Tensor  # [A, S] indices into the adapter's tokens
    ctc_lengths: Tensor  # [A]
    answers: tuple[str, ...]  # short gold answers, "" where the manifest has none
    shared: int = 0  # ids at the front that all rows have in common
    silent: Tensor | None = None  # bool [A], True where a clip is known to be without speech


@dataclass(frozen=True, slots=True)
class Conversation:
    """A row of a manifest in token ids: prompt [N] and target [S]."""

    row_id: str
    prompt: tuple[int, ...]
    target: tuple[int, ...]  # the answer, with the end token
    clips: tuple[Clip, ...]
    transcripts: tuple[
        tuple[int, ...], ...
    ]  # token ids of each clip's transcription, () where unknown
    answer: str  # short gold answer, "" where the manifest has none
    silent: bool = False  # whether its clips are known to be without speech

    @property
    def cost(self) -> int:
        """Tokens of prompt and answer."""
        return len(self.prompt) + len(self.target)

    @property
    def text(self) -> list[tuple[int, ...]]:
        """Token ids by which the conversation is known."""
        return [self.prompt, self.target]


class Conversations(Examples[Conversation | CachedConversation]):
    """Spoken conversations with written answers; the cost of one is in tokens.

    Args:
        rows: the conversations.
        data: reads their clips.
        frames_per_token: encoder frames that cost as much as a token.
        keys: of the rows' cached states, which training reads in place of the clips; None where
            none are cached.
    """

    def __init__(
        self,
        rows: Sequence[Conversation],
        data: SpokenData,
        frames_per_token: int = FRAMES_PER_TOKEN,
        keys: Sequence[str] | None = None,
    ) -> None:
        self.rows, self.data, self.frames_per_token, self.keys = rows, data, frames_per_token, keys

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Conversation:
        return self.rows[index]

    def at(self, index: int, epoch: int) -> Conversation | CachedConversation:
        row = self.rows[index]
        # Cached states are of the clips as they were recorded; nothing is augmented then.
        if self.keys is not None:
            return CachedConversation(row.row_id, self.keys[index], row.target)
        return dataclasses.replace(row, clips=self.data.drawn(row.row_id, row.clips, epoch))

    def cost(self, index: int) -> int:
        row = self.rows[index]
        # An estimate: the adapter's vectors of a clip are known only once it is encoded.
        frames = sum(self.data.frames(clip) for clip in row.clips)
        return len(row.prompt) + len(row.target) + frames // self.frames_per_token


def collate_conversations(
    examples: Sequence[Conversation], data: SpokenData, index: Sequence[int]
) -> SpeechTextBatch:
    """Pad conversations and the features of their clips to one batch.

    Args:
        examples: B conversations with A clips.
        data: reads the features.
        index: of `token_index`, for the CTC targets.

    Returns:
        ids [B, N], labels [B, N] and features [A, F, D].

    Raises:
        SignalError: a clip that augmentation changes cannot be read.
    """
    ids, labels = prompt_and_labels(
        [row.prompt for row in examples], [row.target for row in examples]
    )
    transcripts = [ctc_indices(index, tokens) for row in examples for tokens in row.transcripts]
    clip_rows = [number for number, row in enumerate(examples) for _ in row.clips]
    silent = [row.silent for row in examples for _ in row.clips]
    return SpeechTextBatch(
        row_ids=tuple(row.row_id for row in examples),
        # At least 1, since the loss is divided by it.
        count=max(1, int((labels != IGNORE).sum())),
        ids=ids,
        labels=labels,
        prompt_lengths=torch.tensor([len(row.prompt) for row in examples]),
        features=data.features([clip for row in examples for clip in row.clips]),
        # With a dtype, because an empty list would become a float tensor.
        clip_rows=torch.tensor(clip_rows, dtype=torch.int64),
        ctc_targets=padded(transcripts, 0),
        ctc_lengths=torch.tensor([len(tokens) for tokens in transcripts], dtype=torch.int64),
        answers=tuple(row.answer for row in examples),
        shared=common_prefix(ids),
        silent=torch.tensor(silent, dtype=torch.bool),
    )


def common_prefix(ids: Tensor) -> int:
    """Number of token ids at the front of ids [B, N] that are the same in every row."""
    # Placeholders are negative; what replaces them differs from row to row.
    is_same = (ids == ids[:1]).all(0) & (ids[0] >= 0)
    return int(is_same.long().cumprod(0).sum())


def clips_of(model: SpeechLLM, batch: SpeechTextBatch) -> list[CtcTargets]:
    """CTC targets of a batch's clips, for an audit, which encodes them where that is not done."""
    ids, text = model.adapter.token_ids.tolist(), backbone_text(model.backbone)
    places = (batch.ids == AUDIO).nonzero()[:, 1].tolist()
    features = encoded(model.encoder, batch.features)
    targets = clip_targets(
        features.lengths,
        features.rate_hz,
        batch.clip_rows.tolist(),
        places,
        batch.ctc_targets,
        batch.ctc_lengths,
        range(len(ids)),
        # The blank is the index behind the last token.
        lambda indices: text([ids[index] for index in indices if index < len(ids)]),
    )
    return list(targets)


def padding_of(batch: SpeechTextBatch) -> list[Tensor]:
    """Padding of a batch, which must not change a loss.

    That of the ids is left out: PAD has no other form.
    """
    return padding_of_clips(batch.features) + padding_of_rows(batch.ctc_targets, batch.ctc_lengths)
