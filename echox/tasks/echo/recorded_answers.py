"""Recorded answers in Echo training: units of recordings as targets of some answers.

Such answers are learned from their own text and recorded units, beside pseudo-labels of the rest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from echox.backbones.base import Backbone
from echox.codecs.base import Codec
from echox.core.errors import ConfigError, ManifestError
from echox.models.codebook_pattern import aligned, frames_of
from echox.models.denoising import T2CModel
from echox.models.unit_decoder import UnitDecoder
from echox.tasks.base import Examples, StageContext
from echox.tasks.conversations import SpokenDataConfig
from echox.tasks.echo.cached_labels import LabelledConversation
from echox.tasks.t2c.task import TextUnitsTask, TextUnitsTaskConfig
from echox.tasks.t2c.unit_alignment import Utterance


@dataclass(kw_only=True, slots=True)
class RecordedAnswersConfig:
    """Learning from recorded answers beside pseudo-labels.

    Raises:
        ConfigError: share or weight is out of its range.
    """

    share: float = 0.5
    """Share, above 0 and at most 1, of the training answers with recorded units that are learned
    as they were recorded; the rest keep pseudo-labels."""
    weight: float = 1.0
    """Weight of a recorded unit in the unit loss, above 0; one of a pseudo-label weighs 1."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ConfigError(
                f"recorded.share must be above 0 and at most 1, and is {self.share}; "
                "set recorded=null to learn from pseudo-labels alone"
            )
        if not self.weight > 0:
            raise ConfigError(
                f"recorded.weight must be above 0, and is {self.weight}; "
                "set recorded=null to learn from pseudo-labels alone"
            )


class RecordedAnswers:
    """The training answers that are learned as they were recorded.

    Args:
        config: which answers, and their weight.
        data: the manifests of Echo training.
        text_units: the task of the T2C stage, whose aligner finds the units of each token here too.
        context: of the stage.
        t2c: the Echo model's unit decoder and text rows.
        backbone: the language model.
        codec: of the recorded units.
        in_segments: answers are cut into segments.

    Raises:
        ConfigError: answers are cut into segments, and the unit decoder is not monotonic, so that
            it is not known which units belong to which token.
        ManifestError: no answer has units, none is drawn, or the units are of another codec.
    """

    def __init__(
        self,
        config: RecordedAnswersConfig,
        data: SpokenDataConfig,
        text_units: TextUnitsTaskConfig,
        context: StageContext,
        t2c: T2CModel,
        backbone: Backbone,
        codec: Codec,
        *,
        in_segments: bool,
    ) -> None:
        if in_segments and not t2c.decoder.config.monotonic:
            raise ConfigError(
                "recorded answers cannot be cut into segments with a decoder that is not "
                "monotonic; set echo.task.segments=null or echo.task.recorded=null"
            )
        self.config = config
        self.decoder = t2c.decoder
        # The T2C task reads, aligns and tokenizes the answers as it did its own utterances; its
        # draw of rows does not apply here.
        reader = TextUnitsTask(
            replace(text_units, train=data.train, valid=[], rows=None, on_broken=data.on_broken),
            context,
        )
        reader.attach(backbone, codec)
        reader.prepare(t2c)
        self.utterances: Mapping[str, Utterance] = {
            utterance.row_id: utterance
            for utterance in reader.splits["train"]
            if self._is_drawn(utterance.row_id, context.seed)
        }
        if not self.utterances:
            raise ManifestError(
                f"echo.task.recorded draws none of the answers with units of "
                f"{', '.join(data.train)}; raise its share, or set it to null"
            )

    def _is_drawn(self, row_id: str, seed: int) -> bool:
        # By a hash, so that a row's draw does not depend on which other rows are read.
        digest = hashlib.sha256(f"{seed}|{row_id}".encode()).digest()
        return int.from_bytes(digest[:8], "big") / 2**64 < self.config.share

    def replace_labels(self, labelled: Examples[LabelledConversation]) -> RecordedExamples:
        """Wrap examples with pseudo-labels, so that drawn ones have the recording's labels."""
        return RecordedExamples(labelled, self)

    def label(self, example: LabelledConversation) -> LabelledConversation:
        """Replace the labels of a conversation by the recording's where it was drawn.

        Pseudo-labels stay where the recorded text is not the one that is learned.
        """
        # By id: a row without recorded units, or one that was not drawn, is not among them.
        utterance = self.utterances.get(example.conversation.row_id)
        text = example.conversation.target[:-1]  # without the end token
        if utterance is None or utterance.ids != text:
            return example
        # At the segments' ends, so that a recorded answer is cut where a pseudo-label would be.
        pieces = split_target(utterance.target, example.ends, self.decoder)
        targets = tuple(map(tuple, pieces))
        return replace(example, text=text, targets=targets, weight=self.config.weight)


class RecordedExamples(Examples[LabelledConversation]):
    """Labelled conversations, some with the labels of their recordings."""

    def __init__(self, labelled: Examples[LabelledConversation], recorded: RecordedAnswers) -> None:
        self.labelled, self.recorded = labelled, recorded

    def __len__(self) -> int:
        return len(self.labelled)

    def __getitem__(self, index: int) -> LabelledConversation:
        return self.recorded.label(self.labelled[index])

    def at(self, index: int, epoch: int) -> LabelledConversation:
        return self.recorded.label(self.labelled.at(index, epoch))

    def cost(self, index: int) -> int:
        return self.labelled.cost(index)

    def costs(self) -> np.ndarray:
        return self.labelled.costs()


def split_target(
    target: Sequence[int], ends: Sequence[int], decoder: UnitDecoder
) -> list[list[int]]:
    """Cut the target of a whole answer after some of its text tokens.

    Args:
        target: [U * K] output ids of a monotonic decoder, with a NEXT mark after each text token.
        ends: text tokens after which to cut, the last one being the answer's end.
        decoder: whose marks and codebooks are in the target.

    Returns:
        output ids of each piece, with an END of its own.
    """
    if len(ends) == 1:
        return [list(target)]
    # Codebooks lag behind each other in the target; aligned rows can be cut.
    steps = aligned(frames_of(list(target), decoder.codebooks), decoder.delays)
    rows = [row for row in steps if row[0] != decoder.end_id]  # marks are the first codebook's
    # Where the units of the next text token begin.
    after_marks = [at + 1 for at, row in enumerate(rows) if row[0] == decoder.next_id]
    starts = [0, *(after_marks[end - 1] for end in ends[:-1])]
    stops = [*starts[1:], len(rows)]
    return [decoder.target_of_rows(rows[start:stop]) for start, stop in zip(starts, stops)]
