"""Spoken conversations in the release's tokens: examples, batches and the reader of manifests."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from echox.backbones.base import Turn
from echox.core.config import refuse_below
from echox.core.errors import ConfigError, ManifestError
from echox.core.indexable import Indexable
from echox.core.signals import Batch, Waveform
from echox.data.audio import audio_header
from echox.data.manifest import Item, Role, Row
from echox.data.rows import stated_seconds
from echox.models.compatibility import Compatibility
from echox.models.release.hearing import window_count, windowed
from echox.models.release.tokens import PROMPT_TOKENS, ReleaseTokens
from echox.models.speech_llm import IGNORE
from echox.tasks.conversations import Clip, RowsConfig, SpokenRows, padded
from echox.tasks.lazy_examples import RowExamples, row_examples

WINDOW_TOKENS = 188  # text tokens that cost as much as a window of 1500 encoder frames
# Tokens of a transcription at most; CTC learns nothing from longer ones, as in the authors' code.
TRANSCRIPTION_TOKENS = 300

log = logging.getLogger(__name__)


@dataclass(kw_only=True, slots=True)
class ConversationsConfig(RowsConfig):
    """Manifests of spoken conversations, in the release's prompt.

    Raises:
        ConfigError: augmentation masks features.
    """

    max_audio_s: float = 120.0
    """Seconds of audio at most; conversations with longer clips are left out and counted. What is
    beyond 30 s is encoded in further windows."""
    max_tokens: int = PROMPT_TOKENS
    """Tokens at most, one for each audio; longer conversations are left out and counted. The
    release cuts them."""

    def __post_init__(self) -> None:
        RowsConfig.__post_init__(self)
        refuse_below(self, 1, "max_tokens")
        if self.augmentation is not None and self.augmentation.hides_features:
            raise ConfigError(
                "in the published form the encoder runs inside the model, where no features are "
                "hidden; set augmentation's time_masks and channel_masks to 0"
            )


@dataclass(frozen=True, slots=True)
class ReleaseExample:
    """A conversation in the release's tokens: ids [N] and labels [N]."""

    row_id: str
    ids: tuple[int, ...]  # one placeholder per audio
    labels: tuple[int, ...]  # the same ids, IGNORE where they are no target
    clips: tuple[Clip, ...]  # in the order of their placeholders
    transcripts: tuple[tuple[int, ...], ...]  # tokens of each clip's words, () where unknown
    # Of the last answer, grouped into tokens as in the manifest; None where it has none.
    units: tuple[tuple[int, ...], ...] | None
    cost: int  # tokens, audio included

    @property
    def text(self) -> list[tuple[int, ...]]:
        """Token ids by which the conversation is known."""
        return [self.ids]


@dataclass(frozen=True, slots=True)
class ConversationBatch(Batch):
    """B spoken conversations: ids [B, N], samples [A, T] of A clips, transcripts [A, S]."""

    ids: Tensor  # [B, N] padded with the end id, one placeholder per audio
    labels: Tensor  # [B, N]
    wave: Waveform  # A clips in whole windows, in the order of their placeholders
    clip_rows: Tensor  # [A] the row of each clip
    transcripts: Tensor  # [A, S] tokens of the clips' words, IGNORE-padded


class ReleaseExamples(RowExamples[ReleaseExample]):
    """Conversations; the cost of one is its tokens, audio included."""

    def __init__(self, examples: Indexable[ReleaseExample], rows: SpokenRows) -> None:
        super().__init__(examples, _cost)
        self.rows = rows

    def at(self, index: int, epoch: int) -> ReleaseExample:
        example = self.examples[index]
        return replace(example, clips=self.rows.drawn(example.row_id, example.clips, epoch))


def _cost(example: ReleaseExample) -> int:
    return example.cost


class ReleaseExampleReader:
    """Reads rows of manifests as conversations in the release's tokens, and collates them.

    Args:
        config: the manifests.
        rows: of these manifests.
        tokens: the tokenizer of the checkpoint.
        compatibility: the form that is computed.
        rate_hz: samples per second that the encoder takes.
    """

    def __init__(
        self,
        config: ConversationsConfig,
        rows: SpokenRows,
        tokens: ReleaseTokens,
        compatibility: Compatibility,
        rate_hz: int,
    ) -> None:
        self.config, self.rows = config, rows
        self.tokens = tokens
        self.compatibility = compatibility
        self.rate_hz = rate_hz

    def read(
        self,
        split: str,
        *,
        last_only: bool = False,
        wanted: Callable[[ReleaseExample], bool] | None = None,
        lengths: Callable[[], Path],
    ) -> Indexable[ReleaseExample]:
        """Read the conversations of a split.

        Those without audio or answer, and those that are too long, are left out and counted.

        Args:
            split: "train" or "valid".
            last_only: the last answer alone is a target.
            wanted: which of the conversations to take; the caller then checks that some remain.
            lengths: names the file of lengths that `row_examples` keeps.

        Raises:
            ManifestError: a manifest is broken, or no conversation remains to train on.
            AssetError: the file of lengths cannot be written.
        """
        rows = self.rows.rows(split)

        def make(row: Row) -> list[ReleaseExample]:
            example = self._example(row, last_only)
            if example is None or (wanted is not None and not wanted(example)):
                return []
            return [example]

        examples = row_examples(rows, make, _cost, on_broken=self.config.on_broken, lengths=lengths)
        self._warn_left_out(len(rows) - len(examples), len(rows), split)
        # With `wanted`, the caller knows better why none remains.
        if split == "train" and wanted is None and not examples:
            raise ManifestError(
                f"no row of {', '.join(self.config.train)} has a question with audio, an answer, "
                f"at most {self.config.max_tokens} tokens and clips of at most "
                f"{self.config.max_audio_s:g} s; look at the rows, or raise max_tokens or "
                "max_audio_s"
            )
        return examples

    def _warn_left_out(self, count: int, total: int, split: str) -> None:
        if count:
            log.warning(
                "%d of %d rows of the %s split are left out: without audio, answer or what else "
                "is learned, or longer than %g s or %d tokens",
                count,
                total,
                split,
                self.config.max_audio_s,
                self.config.max_tokens,
            )

    def _example(self, row: Row, last_only: bool) -> ReleaseExample | None:
        """A row as an example; None where it has no audio or target, or is too long."""
        turns = _until_last_answer(row.turns)
        spoken = [turn for turn in turns if turn.audio is not None and turn.role is Role.USER]
        if not spoken:
            return None
        ids, labels = self._ids_and_labels(turns, spoken, last_only)
        clips = [turn.require_audio() for turn in spoken]
        # As the manifest states them where it does, which saves opening the files.
        durations_s = [
            stated_seconds(turn) or audio_header(clip).duration_s
            for turn, clip in zip(spoken, clips)
        ]
        is_too_long = len(ids) > self.config.max_tokens or any(
            duration_s > self.config.max_audio_s for duration_s in durations_s
        )
        if is_too_long or all(label == IGNORE for label in labels):
            return None
        windows = [window_count(round(s * self.rate_hz), self.rate_hz) for s in durations_s]
        return ReleaseExample(
            row_id=row.id,
            ids=tuple(ids),
            labels=tuple(labels),
            clips=tuple(clips),
            transcripts=tuple(map(self._transcript, _transcriptions(turns))),
            units=grouped_units(turns[-1]),
            cost=len(ids) + WINDOW_TOKENS * sum(windows),
        )

    def _ids_and_labels(
        self, turns: Sequence[Item], spoken: Sequence[Item], last_only: bool
    ) -> tuple[list[int], list[int]]:
        """Token ids of a conversation, and a label for each."""
        ids, labels = self.tokens.example(
            [Turn(turn.role.value, turn.text, turn in spoken) for turn in turns],
            last_only=last_only,
        )
        if self.compatibility.forget_answers_before_audio:
            # Also here, not only in the forward pass, so that such rows are left out.
            first = ids.index(self.tokens.audio_id)
            labels = [IGNORE] * first + labels[first:]
        return ids, labels

    def _transcript(self, text: str) -> tuple[int, ...]:
        """CTC targets of a transcription; none where it is unknown or too long."""
        # Without begin-of-text, which is not in the audio.
        ids = self.tokens.tokenizer(text, add_special_tokens=False).input_ids if text else []
        return tuple(ids) if len(ids) <= TRANSCRIPTION_TOKENS else ()

    def collate(self, examples: Sequence[ReleaseExample]) -> ConversationBatch:
        """Read the audio of conversations and pad them to one batch of ids [B, N].

        Raises:
            SignalError: a clip cannot be read, or holds NaN.
        """
        labels = padded([example.labels for example in examples], IGNORE)
        clips = [
            self.rows.load(clip, self.rate_hz) for example in examples for clip in example.clips
        ]
        # [A], ascending, as the model takes them.
        clip_rows = [number for number, example in enumerate(examples) for _ in example.clips]
        transcripts = [tokens for example in examples for tokens in example.transcripts]
        return ConversationBatch(
            row_ids=tuple(example.row_id for example in examples),
            count=int((labels != IGNORE).sum()),
            ids=padded([example.ids for example in examples], self.tokens.end_id),
            labels=labels,
            wave=windowed(clips, self.rate_hz),
            clip_rows=torch.tensor(clip_rows),
            transcripts=padded(transcripts, IGNORE),
        )


def _until_last_answer(turns: Sequence[Item]) -> list[Item]:
    """Turns up to the last answer with text; what follows it is not learned from."""
    kept = list(turns)
    while kept and not (kept[-1].role is Role.ASSISTANT and kept[-1].text):
        kept.pop()
    return kept


def _transcriptions(turns: Sequence[Item]) -> list[str]:
    """Transcription of each spoken question, which stands on the turn after it."""
    return [
        following.transcription
        for turn, following in zip(turns, turns[1:])
        if turn.audio is not None and turn.role is Role.USER
    ]


def grouped_units(answer: Item) -> tuple[tuple[int, ...], ...] | None:
    """Units of an answer as its manifest groups them, one by one where it does not.

    Returns:
        units of each token, or None where the answer has none.
    """
    groups = answer.words or (answer.units and [(unit,) for unit in answer.units])
    return tuple(groups) if groups else None
