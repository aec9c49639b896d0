"""Echo in the published form: the voice of a published EchoX learns to speak hidden states, segment by segment."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial

import torch
from torch import Tensor

from echox import checkpoint
from echox.config import neutral
from echox.criteria.base import VoicedOutputs
from echox.data.cache import ArrayCache
from echox.data.text import edit_distance
from echox.models.published.causal import decode
from echox.models.published.model import PublishedEchoX
from echox.models.published.student import HearingStudent
from echox.models.published.teaching import TaughtText, answer_segments, predicted, segment_outputs
from echox.models.published.translator import UnitTranslator
from echox.models.segmenting import RELEASE_RULE, SegmentRule, segments
from echox.models.speech_llm import IGNORE
from echox.signals import Batch
from echox.tasks.base import TASKS, Examples, Track, View
from echox.tasks.published import HEARD_WHOLE, HeardBatch, Lesson, Lessons, released_padding, released_text, unit_count_of, unit_rows, units_said
from echox.tasks.published_s2t import lengths_of, taught
from echox.tasks.published_speaking import SpeakingConfig, SpeakingTask
from echox.tasks.spoken import padded
from echox.tasks.views import spoken_length


@dataclass(kw_only=True, slots=True)
class ReleaseEchoTaskConfig(SpeakingConfig):
    """Echo training of a published model on spoken conversations; the last answer is spoken, and no recorded one is needed."""

    rule: SegmentRule = field(default_factory=lambda: SegmentRule(**asdict(RELEASE_RULE)))
    """Where answers are cut into segments, as in streaming."""
    max_words: int = 2048
    """Unit words of a segment at most; 2048 in the release."""
    label_batch: int = 16
    """Conversations labelled at once."""
    scored_rows: int = neutral(16)
    """Validation conversations that are spoken and compared with their pseudo-labels."""


@dataclass(frozen=True, slots=True)
class LabelledLesson:
    """A conversation, and what the frozen T2C says for the segments of its answer."""

    lesson: Lesson
    lengths: tuple[int, ...]  # text tokens of each segment
    words: tuple[tuple[int, ...], ...]  # ids of the unit translator, with the end id


@dataclass(frozen=True, slots=True)
class EchoedBatch(Batch):
    """Spoken conversations with pseudo-labels."""

    heard: HeardBatch
    chunk_lengths: Tensor  # [B, C] text tokens per segment, -1 where there is none
    units: Tensor  # [B, C, T] IGNORE-padded


class LabelledLessons(Examples):
    """Conversations with pseudo-labels."""

    def __init__(self, lessons: Lessons, labels: ArrayCache) -> None:
        self.lessons, self.labels = lessons, labels

    def __len__(self) -> int:
        return len(self.lessons)

    def __getitem__(self, index: int) -> LabelledLesson:
        lesson = self.lessons[index]
        return LabelledLesson(lesson, *unpacked(self.labels[label_key(lesson)].tolist()))

    def at(self, index: int, epoch: int) -> LabelledLesson:
        # Labels are of the clips as they were recorded, however they are heard now.
        return dataclasses.replace(self[index], lesson=self.lessons.at(index, epoch))

    def cost(self, index: int) -> int:
        return self.lessons.cost(index)


@TASKS.register("published_echo", ReleaseEchoTaskConfig)
class ReleaseEchoTask(SpeakingTask):
    """Stage III from a published folder.

    The states that predict the reference answer are cut as in streaming; each segment X' of their greedy reading is said by the frozen
    T2C, which gives its label Y'. Labels are made once, before training, and cached under the fingerprints of all they come from.
    Source: EchoX (arXiv:2509.09174), Echo training; the branch finetune_kd of its release.
    """

    def read(self, split: str) -> Sequence[Lesson]:
        return self.lessons.read(split, last_only=True, lengths=partial(lengths_of, self, split))

    def prepare(self, model: HearingStudent) -> None:
        lessons = {label_key(lesson): lesson for split in self.splits.values() for lesson in split}
        self.labels = ArrayCache(self.context.cache_dir / "pseudo_labels", self._label_fingerprint())
        model.eval()
        self.labels.fill(
            list(lessons),
            lambda keys: self._label(model, [lessons[key] for key in keys]),
            costs=[lesson.cost for lesson in lessons.values()],
            batch_size=self.config.label_batch,
            label="pseudo-labels",
        )

    def _label_fingerprint(self) -> str:
        makers = {stage: checkpoint.fingerprint(folder) for stage, folder in self.context.parents.items()}
        settings = [makers, self.data_fingerprints(), asdict(self.config.rule), self.config.max_words, self.config.released_form, self.context.bf16]
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]

    @torch.no_grad()
    def _label(self, model: HearingStudent, lessons: Sequence[Lesson]) -> list[Tensor]:
        device = next(model.parameters()).device
        batch = self.lessons.collate(lessons).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.context.bf16):
            cuts = list(self._segments(model.release, taught(model, batch)))
            words = iter(speak_texts(model.release, [text for row in cuts for text in row], self.config.max_words))
        return [packed([(len(text), next(words)) for text in row]) for row in cuts]

    def _segments(self, model: PublishedEchoX, passed: TaughtText) -> Iterable[list[list[int]]]:
        """The greedy reading of each answer in segments, the end of the turn left out."""
        states, labels = predicted(passed.hidden, passed.labels)
        reading, scores = model.language.logits(states).argmax(-1).tolist(), model.trigger_scores(states).tolist()
        counts = (passed.labels[:, 1:] != IGNORE).sum(1).tolist()
        start = 0
        for count in counts:
            end = start + count - 1
            yield [reading[start + cut.start : start + cut.end] for cut in segments(scores[start:end], self.config.rule)]
            start += count

    def examples(self, split: str) -> Examples:
        return LabelledLessons(Lessons(self.splits[split], self.lessons.rows), self.labels)

    def collate(self, examples: Sequence[LabelledLesson]) -> EchoedBatch:
        heard = self.lessons.collate([example.lesson for example in examples])
        lengths = padded([example.lengths for example in examples], -1)
        flat = [word for example in examples for word in [*example.words, *[()] * (lengths.shape[1] - len(example.words))]]
        units = padded(flat, IGNORE)
        return EchoedBatch(
            row_ids=heard.row_ids,
            count=max(1, int((units != IGNORE).sum())),
            heard=heard,
            chunk_lengths=lengths,
            units=units.reshape(*lengths.shape, -1),
        )

    def forward(self, model: HearingStudent, batch: EchoedBatch) -> VoicedOutputs:
        return segment_outputs(model.release, taught(model, batch.heard), batch.chunk_lengths, batch.units)

    def score(self, model: HearingStudent, batches: Callable[[], Iterable[Batch]]) -> dict[str, float]:
        errors = units = rows = 0
        tokens = model.release.tokens
        for batch in batches():
            if rows >= self.config.scored_rows:
                break
            cut = answer_segments(taught(model, batch.heard), batch.chunk_lengths)
            said = model.release.speak(cut.states, cut.lengths, self.config.max_words)
            for row, labels in enumerate(batch.units[batch.chunk_lengths > 0].tolist()):
                wanted = tokens.units([label for label in labels if label != IGNORE])
                errors += edit_distance(tokens.units(said.row(row)), wanted)
                units += len(wanted)
            rows += len(batch.row_ids)
        return {"unit_error": errors / max(1, units)}

    def view(self, model: HearingStudent, batch: EchoedBatch) -> View:
        segments_ = (batch.chunk_lengths > 0).nonzero().tolist()
        spoken = [self._track(model.release.translator, row, batch.units[row, place]) for row, place in segments_]
        return View(
            tracks=[*self.lessons.tracks(batch.heard), *spoken],
            heard=self.lessons.heard(batch.heard),
            padding=released_padding(batch.heard.ids, self.lessons.tokens.end_id),
            unit_count=unit_count_of(self.config.checkpoint),
            notes=[HEARD_WHOLE],
        )

    def _track(self, translator: UnitTranslator, row: int, words: Tensor) -> Track:
        """A segment's pseudo-label [T]; one that is as long as allowed may lack its end."""
        tokens = self.lessons.tokens
        was_cut = int((words != IGNORE).sum()) >= self.config.max_words
        return Track(
            row,
            "units",
            read=words,
            scored=words,
            ahead=0,
            length=spoken_length(words, tokens.end_id),
            ids=range(translator.text_size + translator.unit_rows.num_embeddings),
            swaps=unit_rows(tokens),
            stop=None if was_cut else tokens.end_id,
            text=released_text(tokens),
            units=units_said(tokens, words.tolist()),
        )


def label_key(lesson: Lesson) -> str:
    """What a conversation's labels are cached under: published rows have no ids of their own."""
    return hashlib.sha256(json.dumps([lesson.ids, list(map(str, lesson.clips))]).encode()).hexdigest()[:24]


def speak_texts(model: PublishedEchoX, texts: Sequence[Sequence[int]], max_words: int) -> list[list[int]]:
    """What T2C says for pieces of text, each begun and framed as in its own training; with the end id where it came to an end."""
    if not texts:
        return []
    tokens, device = model.tokens, model.language.head.weight.device
    header = tokens.before_text(model.compatibility, begin=False)
    rows = [[*header, *([] if text[:1] == [tokens.begin_id] else [tokens.begin_id]), *text, *tokens.after_text()] for text in texts]
    ids = padded(rows, tokens.end_id).to(device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    said = decode(model.translator, model.translator.given(ids, lengths, ids != tokens.end_id), tokens.end_id, max_words)
    return [[*said.row(row), *([tokens.end_id] if ended else [])] for row, ended in enumerate(said.ended.tolist())]


def packed(segments_: Sequence[tuple[int, Sequence[int]]]) -> Tensor:
    """Segments (text tokens, words) as one array: how many, the text tokens of each, the words of each, then all words."""
    sizes = [len(segments_), *(length for length, _ in segments_), *(len(words) for _, words in segments_)]
    return torch.tensor([*sizes, *(word for _, words in segments_ for word in words)], dtype=torch.int32)


def unpacked(values: Sequence[int]) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """The inverse of `packed`: text tokens of each segment, words of each segment."""
    count = values[0]
    lengths, sizes = values[1 : 1 + count], values[1 + count : 1 + 2 * count]
    words, start = [], 1 + 2 * count
    for size in sizes:
        words.append(tuple(values[start : start + size]))
        start += size
    return tuple(lengths), tuple(words)
