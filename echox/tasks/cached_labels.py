"""Pseudo-labels that were made once, kept on the disk under the fingerprints of all they come from."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from echox.data.audio_ref import audio_ref
from echox.data.cache import ArrayCache
from echox.data.writing import appearing
from echox.errors import CheckpointError
from echox.models.echo import EchoModel
from echox.models.segmenting import spans_of
from echox.models.speech_llm import IGNORE
from echox.signals import Spans
from echox.tasks.base import Examples
from echox.tasks.pseudo_labels import EchoBatch, LabelSource, PseudoLabels
from echox.tasks.speech_text import Conversation, SpeechTextBatch
from echox.tasks.spoken import padded

REVISION = 2  # of what a cached array holds


@dataclass(frozen=True, slots=True)
class LabelledBatch(EchoBatch):
    """Spoken conversations whose labels were cached; see `PseudoLabels`."""

    text: Tensor
    spans: Spans
    targets: Tensor
    weights: Tensor | None

    def said(self) -> list[tuple[int, Tensor]]:
        return list(zip(self.spans.rows.tolist(), self.targets))


@dataclass(frozen=True, slots=True)
class Labelled:
    """A conversation and what the teachers make of its answer."""

    conversation: Conversation
    text: tuple[int, ...]
    ends: tuple[int, ...]  # of the segments, in text tokens
    targets: tuple[tuple[int, ...], ...]  # of each segment
    weight: float = 1.0  # of its units in the loss

    @property
    def spans(self) -> list[tuple[int, int]]:
        """Start and end of each segment."""
        return list(zip((0, *self.ends), self.ends))


class CachedLabels(LabelSource):
    """Labels made once by the models that Echo begins with, and kept on disk under the fingerprints of all they come from.

    Args:
        folder: holds a cache for each set of makers.
        makers: what the labels depend on beside their conversation, by name: checkpoints, codec, language model, segments.
        labeller: makes of a model what labels some conversations; asked for only where labels are missing.
        batch_size: conversations labelled at once.
        filled_before: the folder was named by a person and must hold all labels; it is not written to in training.
    """

    def __init__(
        self,
        folder: Path,
        makers: Mapping[str, str],
        labeller: Callable[[EchoModel], Callable[[Sequence[Conversation]], PseudoLabels]],
        *,
        batch_size: int,
        filled_before: bool,
    ) -> None:
        self.folder = folder
        self.makers = dict(makers)
        self.labeller = labeller
        self.batch_size = batch_size
        self.filled_before = filled_before
        self.fingerprint = _hash([REVISION, self.makers], 16)
        self.cache = ArrayCache(folder, self.fingerprint)

    def prepare(self, model: EchoModel, conversations: Iterable[Examples]) -> None:
        """Make what is missing; of a folder that was named, see that nothing is.

        Raises:
            CheckpointError: the labels in the folder were made by others, or of other texts, or there are none.
        """
        rows = [row for split in conversations for row in split]
        if self.filled_before:
            self._refuse_stale(rows)
        else:
            self.write(model, rows)

    def codecs(self) -> dict[str, str]:
        return {"of the pseudo-labels": self.makers["codec"]}

    def write(self, model: EchoModel, rows: Sequence[Conversation]) -> None:
        """Label the conversations that are not labelled yet, with a progress bar; safe to kill and call again."""
        by_key = {label_key(row): row for row in rows}
        costs = [len(row.prompt) + len(row.target) for row in by_key.values()]
        labellers = []

        def compute(keys: list[str]) -> list[Tensor]:
            if not labellers:
                labellers.append(self.labeller(model))
            return packed(labellers[0]([by_key[key] for key in keys]))

        self.cache.fill(list(by_key), compute, costs=costs, batch_size=self.batch_size, label="pseudo-labels")
        with appearing(self._makers_file(self.fingerprint)) as unfinished:
            unfinished.write_text(json.dumps(self.makers, indent=1))

    def _makers_file(self, fingerprint: str) -> Path:
        return self.folder / f"{fingerprint}.json"

    def _refuse_stale(self, rows: Sequence[Conversation]) -> None:
        again = "write them anew with 'echox-prepare labels', or leave echo.task.labels out to have them made"
        if not self._makers_file(self.fingerprint).is_file():
            others = sorted(self.folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
            if not others:
                raise CheckpointError(f"there are no finished pseudo-labels in {self.folder}; {again}")
            before = json.loads(others[-1].read_text())
            changed = [name for name, value in self.makers.items() if before.get(name) != value] or ["version of echox"]
            raise CheckpointError(f"the pseudo-labels in {self.folder} are stale, they were made with another {', '.join(changed)}; {again}")
        missing = [row.row_id for row in rows if label_key(row) not in self.cache]
        if missing:
            raise CheckpointError(
                f"the pseudo-labels in {self.folder} are stale, {len(missing)} of {len(rows)} conversations are not among them as their text and "
                f"audio now are, such as {missing[0]!r}; {again}"
            )

    def examples(self, conversations: Examples) -> Examples:
        return LabelledConversations(conversations, self.cache)

    def batch(self, examples: Sequence[Labelled], collate: Callable[[Sequence[Conversation]], SpeechTextBatch]) -> LabelledBatch:
        conversation = collate([row.conversation for row in examples])
        targets = [target for row in examples for target in row.targets]
        weights = [row.weight for row in examples for _ in row.targets]
        return LabelledBatch(
            row_ids=conversation.row_ids,
            count=sum(map(len, targets)),
            conversation=conversation,
            text=padded([row.text for row in examples], 0),
            spans=spans_of([(number, *span) for number, row in enumerate(examples) for span in row.spans]),
            targets=padded(targets, IGNORE),
            weights=None if set(weights) <= {1.0} else torch.tensor(weights),
        )

    def labels(self, model: EchoModel, batch: LabelledBatch, hidden: Tensor, lengths: Tensor) -> PseudoLabels:
        return PseudoLabels(batch.text, batch.spans, batch.targets, batch.weights)


class LabelledConversations(Examples):
    """Conversations with cached labels."""

    def __init__(self, conversations: Examples, cache: ArrayCache) -> None:
        self.conversations, self.cache = conversations, cache

    def __len__(self) -> int:
        return len(self.conversations)

    def __getitem__(self, index: int) -> Labelled:
        conversation = self.conversations[index]
        return unpacked(conversation, self.cache[label_key(conversation)].tolist())

    def at(self, index: int, epoch: int) -> Labelled:
        # Labels are of the clips as they were recorded, however they are heard now.
        return dataclasses.replace(self[index], conversation=self.conversations.at(index, epoch))

    def cost(self, index: int) -> int:
        return self.conversations.cost(index)

    def costs(self) -> np.ndarray:
        return self.conversations.costs()


def label_key(row: Conversation) -> str:
    """What a conversation's labels are cached under: its text in tokens, and its clips by name and size in bytes."""
    clips = [audio_ref(clip) for clip in row.clips]
    return _hash([row.prompt, row.target, [(clip.name, clip.file.stat().st_size) for clip in clips]], 24)


def packed(labels: PseudoLabels) -> list[Tensor]:
    """Labels as one array per row: number of segments, their ends, sizes of their targets, text, targets."""
    B = len(labels.text)
    cuts: list[list[tuple[int, list[int]]]] = [[] for _ in range(B)]
    for row, end, target in zip(labels.spans.rows.tolist(), labels.spans.ends.tolist(), labels.targets.tolist()):
        cuts[row].append((end, [word for word in target if word != IGNORE]))
    return [
        torch.tensor(
            [len(found), *(end for end, _ in found), *(len(target) for _, target in found), *text[: found[-1][0]], *(word for _, target in found for word in target)],
            dtype=torch.int32,
        )
        for text, found in zip(labels.text.tolist(), cuts)
    ]


def unpacked(conversation: Conversation, stored: Sequence[int]) -> Labelled:
    """A row of `packed` beside its conversation."""
    G = stored[0]
    ends, sizes, rest = stored[1 : 1 + G], stored[1 + G : 1 + 2 * G], stored[1 + 2 * G :]
    text, words = rest[: ends[-1]], iter(rest[ends[-1] :])
    return Labelled(conversation, tuple(text), tuple(ends), tuple(tuple(next(words) for _ in range(size)) for size in sizes))


def _hash(content: object, length: int) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:length]
