"""Pseudo-labels computed once, cached on disk under the fingerprints of all they depend on."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from echox.core.errors import CheckpointError
from echox.core.files import atomic_write, json_hash
from echox.core.signals import Spans, padded
from echox.core.sources import Code
from echox.data.audio_ref import audio_ref
from echox.data.cache import ArrayCache
from echox.data.code_caches import adopt
from echox.models.echo import EchoModel
from echox.models.segmenting import spans_of
from echox.models.speech_llm import IGNORE
from echox.tasks.base import Examples
from echox.tasks.conversations import Clip, recording_of
from echox.tasks.echo.pseudo_labels import Collate, EchoBatch, LabelSource, PseudoLabels

REVISION = 2  # of the layout of a cached array, see `packed`

WAY_OUT = (
    "write them anew with 'echox-prepare labels', or leave echo.task.labels out to have them made"
)


@dataclass(frozen=True, slots=True)
class LabelledBatch(EchoBatch):
    """B spoken conversations with cached labels; text [B, S], targets [G, U * K].

    The fields are those of `PseudoLabels`.
    """

    text: Tensor
    spans: Spans
    targets: Tensor
    weights: Tensor | None

    def segment_targets(self) -> list[tuple[int, Tensor]]:
        return list(zip(self.spans.rows.tolist(), self.targets))


@dataclass(frozen=True, slots=True)
class LabelledConversation:
    """A conversation with its pseudo-labels: text [S], targets [U * K] of each segment."""

    conversation: Any  # of the form that the task reads
    text: tuple[int, ...]
    ends: tuple[int, ...]  # of the segments, in text tokens
    targets: tuple[tuple[int, ...], ...]  # output ids of each segment
    weight: float = 1.0  # of its units in the loss

    @property
    def spans(self) -> list[tuple[int, int]]:
        """Start and end of each segment, in text tokens."""
        return list(zip((0, *self.ends), self.ends))


class LabelledRow(Protocol):
    """A conversation of echox's own or of the release's form, as `CachedLabels` needs it."""

    @property
    def row_id(self) -> str:
        """Id of its row."""

    @property
    def clips(self) -> tuple[Clip, ...]:
        """Its clips, in order."""

    @property
    def cost(self) -> int:
        """Its length, by which conversations are labelled in batches of equal ones."""

    @property
    def text(self) -> Sequence[Sequence[int]]:
        """Its token ids, which name its labels."""


Labeller = Callable[[Sequence[Any]], PseudoLabels]
"""B conversations -> their labels."""


class CachedLabels(LabelSource[LabelledBatch]):
    """Labels computed once by the models that Echo starts from, and cached on disk.

    Args:
        folder: holds a cache for each set of makers.
        makers: what the labels depend on besides their conversation, by name: checkpoints, codec,
            language model, segments.
        labeller: model -> labeller; called only where labels are missing.
        batch_size: conversations labelled at once.
        filled_before: the folder was named by the user and must hold all labels; training does
            not write to it.
        code: of the encoder, the language model and the codec; None where they are no parts that
            a plugin could be.
    """

    def __init__(
        self,
        folder: Path,
        makers: Mapping[str, str],
        labeller: Callable[[Any], Labeller],
        *,
        batch_size: int,
        filled_before: bool,
        code: Code | None = None,
    ) -> None:
        self.folder = folder
        self.makers = dict(makers)
        self.labeller = labeller
        self.batch_size = batch_size
        self.filled_before = filled_before
        if code is not None:
            self._add_code(code)
        self.fingerprint = json_hash([REVISION, self.makers], 16)
        self.cache = ArrayCache(folder, self.fingerprint)

    def _add_code(self, code: Code) -> None:
        """Count the code among the makers; labels that do not name echox's own are taken over."""
        earlier = json_hash([REVISION, self.makers], 16)
        self.makers["code"] = code.digest
        if code.is_own:
            present = json_hash([REVISION, self.makers], 16)
            for ending in ("", ".json"):
                adopt(self.folder, earlier + ending, present + ending)

    def prepare(self, model: nn.Module, conversations: Iterable[Examples[Any]]) -> None:
        """Compute missing labels, or check that a folder the user named holds all of them.

        Raises:
            CheckpointError: labels in the folder are missing, or depend on other makers or texts.
            AssetError: the cache cannot be written.
        """
        rows = [row for split in conversations for row in split]
        if self.filled_before:
            self._check_complete(rows)
        else:
            self.write(model, rows)

    def codecs(self) -> dict[str, str]:
        # An audit compares it with the codec in use.
        return {"of the pseudo-labels": self.makers["codec"]}

    def write(self, model: nn.Module, rows: Sequence[LabelledRow]) -> None:
        """Label conversations that have no labels yet; safe to kill and call again.

        Args:
            model: before its first step.
            rows: conversations of all splits.

        Raises:
            AssetError: the cache cannot be written.
        """
        # Conversations of several splits with equal content share their labels.
        by_key = {label_key(row): row for row in rows}
        labellers: list[Labeller] = []

        def compute(keys: list[str]) -> list[Tensor]:
            # Made only where labels are missing: it copies the decoder's weights.
            if not labellers:
                labellers.append(self.labeller(model))
            return packed(labellers[0]([by_key[key] for key in keys]))

        self.cache.fill(
            list(by_key),
            compute,
            costs=[row.cost for row in by_key.values()],
            batch_size=self.batch_size,
            label="pseudo-labels",
        )
        # Written last, as the sign that all labels are there.
        with atomic_write(self._makers_file(self.fingerprint)) as unfinished:
            unfinished.write_text(json.dumps(self.makers, indent=1))

    def _makers_file(self, fingerprint: str) -> Path:
        return self.folder / f"{fingerprint}.json"

    def _check_complete(self, rows: Sequence[LabelledRow]) -> None:
        """Check that the labels are there, of these makers and texts.

        Raises:
            CheckpointError: labels are missing, or depend on other makers or texts.
        """
        if not self._makers_file(self.fingerprint).is_file():
            self._refuse_other_makers()
        missing = [row.row_id for row in rows if label_key(row) not in self.cache]
        if missing:
            raise CheckpointError(
                f"the pseudo-labels in {self.folder} are stale, {len(missing)} of {len(rows)} "
                "conversations are not among them as their text and audio now are, "
                f"such as {missing[0]!r}; {WAY_OUT}"
            )

    def _refuse_other_makers(self) -> None:
        """Say what differs from the makers of the newest labels.

        Raises:
            CheckpointError: always.
        """
        others = sorted(self.folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
        if not others:
            raise CheckpointError(
                f"there are no finished pseudo-labels in {self.folder}; {WAY_OUT}"
            )
        # The newest are the likeliest to be meant.
        newest = _makers_in(others[-1])
        changed = [name for name, value in self.makers.items() if newest.get(name) != value]
        # With equal makers, only the revision of the layout can differ.
        changed = changed or ["version of echox"]
        raise CheckpointError(
            f"the pseudo-labels in {self.folder} are stale, "
            f"they were made with another {', '.join(changed)}; {WAY_OUT}"
        )

    def examples(self, conversations: Examples[Any]) -> LabelledConversations:
        return LabelledConversations(conversations, self.cache)

    def batch(self, examples: Sequence[LabelledConversation], collate: Collate) -> LabelledBatch:
        """Pad B examples to one batch of text [B, S] and G targets [G, U * K]."""
        conversation = collate([row.conversation for row in examples])
        targets = [target for row in examples for target in row.targets]
        weights = [row.weight for row in examples for _ in row.targets]
        spans = [(number, *span) for number, row in enumerate(examples) for span in row.spans]
        return LabelledBatch(
            row_ids=conversation.row_ids,
            # Without padding; at least 1, since the loss is divided by it.
            count=max(1, sum(map(len, targets))),
            conversation=conversation,
            text=padded([row.text for row in examples], 0),
            spans=spans_of(spans),
            targets=padded(targets, IGNORE),
            # None weighs all alike.
            weights=None if set(weights) <= {1.0} else torch.tensor(weights),
        )

    def labels(
        self,
        model: EchoModel,
        batch: LabelledBatch,
        hidden: Tensor,
        lengths: Tensor,
        text: Tensor,
    ) -> PseudoLabels:
        return PseudoLabels(batch.text, batch.spans, batch.targets, batch.weights)


class LabelledConversations(Examples[LabelledConversation]):
    """Conversations with cached labels; the cost of one is that of the conversation."""

    def __init__(self, conversations: Examples[Any], cache: ArrayCache) -> None:
        self.conversations, self.cache = conversations, cache

    def __len__(self) -> int:
        return len(self.conversations)

    def __getitem__(self, index: int) -> LabelledConversation:
        conversation = self.conversations[index]
        # By content, so that a changed text or clip has no label instead of a wrong one.
        return unpacked(conversation, self.cache[label_key(conversation)].tolist())

    def at(self, index: int, epoch: int) -> LabelledConversation:
        # Labels are of the clips as they were recorded, also where these are augmented.
        return dataclasses.replace(self[index], conversation=self.conversations.at(index, epoch))

    def cost(self, index: int) -> int:
        return self.conversations.cost(index)

    def costs(self) -> np.ndarray:
        return self.conversations.costs()


def _makers_in(path: Path) -> dict[str, str]:
    """Makers as a file names them; none where it was damaged."""
    try:
        makers = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError):
        return {}
    return makers if isinstance(makers, dict) else {}


def label_key(row: LabelledRow) -> str:
    """Key of a conversation's labels: its token ids, and its clips by name and size in bytes.

    The folder of a clip and its time of change do not count, so labels can be moved with the data.
    """
    clips = [audio_ref(recording_of(clip)) for clip in row.clips]
    files = [(clip.name, clip.file.stat().st_size) for clip in clips]
    return json_hash([*row.text, files], 24)


def packed(labels: PseudoLabels) -> list[Tensor]:
    """Labels as one int32 array per row.

    The array holds the number of segments, their ends, the sizes of their targets, the text, and
    the targets.
    """
    B = len(labels.text)
    # Ends alone: segments of a row follow each other without a gap.
    segments: list[list[tuple[int, list[int]]]] = [[] for _ in range(B)]
    for row, end, target in zip(
        labels.spans.rows.tolist(), labels.spans.ends.tolist(), labels.targets.tolist()
    ):
        segments[row].append((end, [token for token in target if token != IGNORE]))
    return [_pack_row(text, row) for text, row in zip(labels.text.tolist(), segments)]


def _pack_row(text: Sequence[int], segments: Sequence[tuple[int, Sequence[int]]]) -> Tensor:
    ends = [end for end, _ in segments]
    targets = [target for _, target in segments]
    values = [
        len(segments),
        *ends,
        *map(len, targets),
        *text[: max(ends, default=0)],
        *(token for target in targets for token in target),
    ]
    return torch.tensor(values, dtype=torch.int32)


def unpacked(conversation: LabelledRow, stored: Sequence[int]) -> LabelledConversation:
    """A conversation with its row of `packed`."""
    G = stored[0]
    ends, sizes, rest = stored[1 : 1 + G], stored[1 + G : 1 + 2 * G], stored[1 + 2 * G :]
    # The last segment ends with the text.
    size = max(ends, default=0)
    text, tokens = rest[:size], iter(rest[size:])
    return LabelledConversation(
        conversation,
        tuple(text),
        tuple(ends),
        tuple(tuple(next(tokens) for _ in range(size)) for size in sizes),
    )
