"""Recorded answers in Echo training: some answers are learned as a voice has spoken them, from their own text, beside pseudo-labels."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from echox.backbones.base import Backbone
from echox.codecs.base import Codec
from echox.errors import ConfigError, ManifestError
from echox.models.codebook_pattern import aligned, frames_of
from echox.models.denoising import TextVoice
from echox.models.unit_decoder import UnitDecoder
from echox.tasks.base import Examples, StageContext
from echox.tasks.pseudo_labels import Labelled
from echox.tasks.spoken import SpokenDataConfig
from echox.tasks.text_units import TextUnitsTask, TextUnitsTaskConfig, Utterance


@dataclass(kw_only=True, slots=True)
class RecordedAnswersConfig:
    """Learning from recorded answers beside pseudo-labels."""

    share: float = 0.5
    """Share, above 0 and at most 1, of the training answers with recorded units that are learned as they were spoken; the rest keep pseudo-labels."""
    weight: float = 1.0
    """Weight of a recorded unit in the unit loss, above 0; one of a pseudo-label weighs 1."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ConfigError(f"recorded.share must be above 0 and at most 1, and is {self.share}; set recorded=null to learn from pseudo-labels alone")
        if not self.weight > 0:
            raise ConfigError(f"recorded.weight must be above 0, and is {self.weight}; set recorded=null to learn from pseudo-labels alone")


class RecordedAnswers:
    """The training answers that are learned as they were recorded.

    Raises:
        ConfigError: answers are cut into segments, and the unit decoder does not tell which token a unit sounds.
        ManifestError: no answer has units, or they are of another codec.
    """

    def __init__(
        self,
        config: RecordedAnswersConfig,
        data: SpokenDataConfig,
        text_units: TextUnitsTaskConfig,
        context: StageContext,
        voice: TextVoice,
        backbone: Backbone,
        codec: Codec,
        *,
        in_segments: bool,
    ) -> None:
        """Args: text_units: how T2C was taught, whose aligner finds the units of each token here too."""
        if in_segments and not voice.decoder.config.monotonic:
            raise ConfigError("recorded answers cannot be cut into segments with a decoder that is not monotonic; set echo.task.segments=null or echo.task.recorded=null")
        self.config = config
        self.decoder = voice.decoder
        reader = TextUnitsTask(replace(text_units, train=data.train, valid=[], rows=None, on_broken=data.on_broken), context)
        reader.use(backbone, codec)
        reader.prepare(voice)
        self.spoken: Mapping[str, Utterance] = {utterance.row_id: utterance for utterance in reader.splits["train"] if self._is_drawn(utterance.row_id, context.seed)}
        if not self.spoken:
            raise ManifestError(f"echo.task.recorded draws none of the answers with units of {', '.join(data.train)}; raise its share, or set it to null")

    def _is_drawn(self, row_id: str, seed: int) -> bool:
        """The same rows in every run of a seed, whatever else is read."""
        draw = int.from_bytes(hashlib.sha256(f"{seed}|{row_id}".encode()).digest()[:8], "big") / 2**64
        return draw < self.config.share

    def among(self, labelled: Examples) -> Examples:
        """Examples with pseudo-labels, of which those that were drawn have the recording's in their place."""
        return WithRecordings(labelled, self)

    def label(self, row: Labelled) -> Labelled:
        """A conversation's labels: the recording's where it was drawn and its text is the one that is learned."""
        utterance = self.spoken.get(row.conversation.row_id)
        text = row.conversation.target[:-1]
        if utterance is None or utterance.ids != text:
            return row
        pieces = pieces_of(utterance.target, row.ends, self.decoder)
        return replace(row, text=text, targets=tuple(map(tuple, pieces)), weight=self.config.weight)


class WithRecordings(Examples):
    """Labelled conversations, some of them as they were recorded."""

    def __init__(self, labelled: Examples, recorded: RecordedAnswers) -> None:
        self.labelled, self.recorded = labelled, recorded

    def __len__(self) -> int:
        return len(self.labelled)

    def __getitem__(self, index: int) -> Labelled:
        return self.recorded.label(self.labelled[index])

    def at(self, index: int, epoch: int) -> Labelled:
        return self.recorded.label(self.labelled.at(index, epoch))

    def cost(self, index: int) -> int:
        return self.labelled.cost(index)


def pieces_of(target: Sequence[int], ends: Sequence[int], decoder: UnitDecoder) -> list[list[int]]:
    """Target ids of a whole answer, cut after some of its text tokens, each piece with an end of its own."""
    if len(ends) == 1:
        return [list(target)]
    steps = aligned(frames_of(list(target), decoder.codebooks), decoder.delays)
    rows = [row for row in steps if row[0] != decoder.end_id]
    marks = [at + 1 for at, row in enumerate(rows) if row[0] == decoder.next_id]
    starts = [0, *(marks[end - 1] for end in ends[:-1])]
    return [decoder.target_of_rows(rows[start:stop]) for start, stop in zip(starts, [*starts[1:], len(rows)])]
