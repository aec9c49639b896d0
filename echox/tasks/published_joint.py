"""S2T and the voice at once, on recorded units, in the published form; the release calls it finetune."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from echox.criteria.base import JointOutputs
from echox.errors import ManifestError
from echox.models.published.student import HearingStudent
from echox.models.published.teaching import joint_outputs
from echox.models.speech_llm import IGNORE
from echox.signals import Batch
from echox.tasks.base import TASKS, Examples, View
from echox.tasks.published import HEARD_WHOLE, HeardBatch, Lesson, Lessons, released_padding, spoken_tracks, unit_count_of
from echox.tasks.published_s2t import lengths_of, taught
from echox.tasks.published_speaking import SpeakingConfig, SpeakingTask
from echox.tasks.published_t2c import spoken_words
from echox.tasks.spoken import padded


@dataclass(kw_only=True, slots=True)
class ReleaseJointTaskConfig(SpeakingConfig):
    """Training of a published model on spoken conversations whose last answers have units."""


@dataclass(frozen=True, slots=True)
class JointBatch(Batch):
    """Spoken conversations, and their last answers as sequences of the unit translator."""

    heard: HeardBatch
    ids: Tensor  # [B, L] the answer's text where it stands in `heard.ids`, then its units; the end id elsewhere
    labels: Tensor  # [B, L]


@TASKS.register("published_joint", ReleaseJointTaskConfig)
class ReleaseJointTask(SpeakingTask):
    """The release's branch finetune: units of the recorded answer from the states at its own tokens, beside S2T."""

    def read(self, split: str) -> Sequence[Lesson]:
        lessons = self.lessons.read(
            split,
            last_only=True,
            wanted=lambda lesson: bool(spoken_words(self.lessons.tokens, lesson.units)),
            lengths=partial(lengths_of, self, split),
        )
        if split == "train" and not lessons:
            raise ManifestError(
                f"no last answer of {', '.join(self.config.data.train)} has units that the checkpoint's unit words say; give them 'units', or use task published_echo"
            )
        return lessons

    def examples(self, split: str) -> Examples:
        return Lessons(self.splits[split], self.lessons.rows)

    def collate(self, examples: Sequence[Lesson]) -> JointBatch:
        heard = self.lessons.collate(examples)
        sequences = [self._sequence(lesson) for lesson in examples]
        width = heard.ids.shape[1]
        ids = padded([[*text, *units, *[self.lessons.tokens.end_id] * (width - len(text) - len(units))] for text, units in sequences], self.lessons.tokens.end_id)
        labels = padded([[*[IGNORE] * len(text), *units, *[IGNORE] * (width - len(text) - len(units))] for text, units in sequences], IGNORE)
        return JointBatch(heard.row_ids, int((labels != IGNORE).sum()), heard, ids, labels)

    def _sequence(self, lesson: Lesson) -> tuple[list[int], list[int]]:
        """The answer with its header at its place in the conversation, and what opens its units; and the units."""
        tokens = self.lessons.tokens
        first = next(at for at, label in enumerate(lesson.labels) if label != IGNORE)
        header = len(tokens.header("assistant") + tokens.piece("\n"))
        text = [*[tokens.end_id] * (first - header), *lesson.ids[first - header :], *tokens.after_text()[1:]]
        return text, [tokens.begin_id, *spoken_words(tokens, lesson.units), tokens.end_id]

    def forward(self, model: HearingStudent, batch: JointBatch) -> JointOutputs:
        heard = batch.heard
        visible = batch.ids != model.release.tokens.end_id
        return joint_outputs(model.release, taught(model, heard), heard.said, heard.labels, batch.ids, batch.labels, visible)

    def view(self, model: HearingStudent, batch: JointBatch) -> View:
        end_id = self.lessons.tokens.end_id
        return View(
            tracks=[*self.lessons.tracks(batch.heard), *spoken_tracks(model.release.translator, self.lessons.tokens, batch.ids, batch.labels)],
            heard=self.lessons.heard(batch.heard),
            padding=released_padding(batch.heard.ids, end_id) + released_padding(batch.ids, end_id),
            unit_count=unit_count_of(self.config.checkpoint),
            notes=[HEARD_WHOLE],
        )
