"""T2C in the published form: the unit translator learns to read text aloud; the release calls it pretrain."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from echox.config import neutral
from echox.criteria.base import UnitOutputs
from echox.data.manifest import Item, Role, Row
from echox.data.text import edit_distance
from echox.errors import ManifestError
from echox.models.footprint import layer_bytes
from echox.models.published.causal import decode
from echox.models.published.student import SpeakingStudent, choose_trained, learned_tensors, outline_of, round_frozen, starting_model
from echox.models.published.teaching import pretrain_outputs
from echox.models.published.tokens import ReleaseTokens
from echox.models.speech_llm import IGNORE
from echox.signals import Batch
from echox.tasks.at_access import cost_of, costs_of, lengths_file, made_of
from echox.tasks.base import TASKS, Examples, Outline, StageContext, Task, View, named_parts
from echox.tasks.published import (
    SPEAKING,
    ReleaseTaskConfig,
    checkpoint_fingerprint,
    missing_of,
    released_padding,
    spoken_tracks,
    unit_count_of,
)
from echox.tasks.spoken import RowsConfig, SpokenRows, padded

TRANSLATOR_PARTS = {
    "text rows": ["text_rows"],
    "unit rows": ["unit_rows"],
    "projection": ["adapter"],
    "body": ["body"],
    "output head": ["head"],
    "denoising adapter": ["denoiser"],
}
POSITIONS = 2048  # of the release's unit translator


@dataclass(kw_only=True, slots=True)
class ReleaseUnitsConfig(ReleaseTaskConfig):
    """Learning to speak text in unit words."""

    data: RowsConfig = field(default_factory=RowsConfig)
    """Manifests whose assistant turns have text and units, as words ("12_4 5") or one by one."""
    modules: list[str] = field(default_factory=lambda: list(SPEAKING))
    """Modules that learn, by the release's names; the text rows are those of the language model's head and stay."""
    max_tokens: int = POSITIONS
    """Text tokens and unit words at most; longer turns are left out."""
    scored_rows: int = neutral(64)
    """Validation rows that are spoken and compared with their units."""
    max_words: int = POSITIONS
    """Unit words of a row that is spoken at most."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A text and its units as one sequence of the unit translator."""

    row_id: str
    ids: tuple[int, ...]
    text_length: int  # ids before the units


@dataclass(frozen=True, slots=True)
class ReadBatch(Batch):
    """Texts and the words that speak them."""

    ids: Tensor  # [B, L] padded with the end id
    labels: Tensor  # [B, L]
    visible: Tensor  # bool [B, L] keys: all but end ids, those that close a text too
    text_lengths: Tensor  # [B]


class Readings(Examples):
    """Texts with units."""

    def __init__(self, readings: Sequence[Reading]) -> None:
        self.readings = readings

    def __len__(self) -> int:
        return len(self.readings)

    def __getitem__(self, index: int) -> Reading:
        return self.readings[index]

    def cost(self, index: int) -> int:
        return cost_of(self.readings, index, reading_cost)

    def costs(self) -> np.ndarray:
        return costs_of(self.readings, reading_cost)


def reading_cost(reading: Reading) -> int:
    """What a reading counts in a batch."""
    return len(reading.ids)


@TASKS.register("published_t2c", ReleaseUnitsConfig)
class ReleaseUnitsTask(Task):
    """Stage II from a published folder: cross-entropy of the units after a text. The language model is not needed, and not there."""

    needs = ()

    def __init__(self, config: ReleaseUnitsConfig, context: StageContext) -> None:
        super().__init__(config, context)
        self.rows = SpokenRows(config.data)

    def build(self) -> SpeakingStudent:
        release = starting_model(self.config.checkpoint, self.config.form())
        choose_trained(release, self.config.modules)
        self.tokens, self.compatibility = release.tokens, release.compatibility
        student = SpeakingStudent(release.translator)
        round_frozen(student, half=self.context.bf16)
        self.splits = {split: self._readings(split) for split in ("train", "valid")}
        return student

    def manifests(self) -> list[str]:
        return [*self.config.data.train, *self.config.data.valid]

    def missing(self) -> list[str]:
        return missing_of(self.config.checkpoint)

    def outline(self, parents: Mapping[str, Outline]) -> Outline:
        with torch.device("meta"):
            release = outline_of(self.config.checkpoint, self.config.form())
        choose_trained(release, self.config.modules)
        student = SpeakingStudent(release.translator)
        round_frozen(student, half=self.context.bf16)
        body = release.translator.body
        return Outline(
            model=student,
            parts=named_parts("unit translator", "translator", TRANSLATOR_PARTS),
            cost_unit="text tokens and words",
            longest_cost=self.config.max_tokens,
            activations={"unit translator": layer_bytes(body, body.config.hidden_size)},
        )

    def _readings(self, split: str) -> Sequence[Reading]:
        rows = self.rows.rows(split)
        found = made_of(
            rows,
            self._readings_of,
            reading_cost,
            on_broken=self.config.data.on_broken,
            lengths=lambda: lengths_file(self.context, split, self.config, self.data_fingerprints()),
        )
        if split == "train" and not found:
            raise ManifestError(
                f"no turn of {', '.join(self.config.data.train)} has a text and units that the checkpoint's unit words say; give the assistant's turns 'units'"
            )
        return found

    def _readings_of(self, row: Row) -> list[Reading]:
        readings = (self._reading(row.id, item) for item in row.turns)
        return [reading for reading in readings if reading is not None and len(reading.ids) <= self.config.max_tokens]

    def _reading(self, row_id: str, item: Item) -> Reading | None:
        words = spoken_words(self.tokens, item.words or item.units and [(unit,) for unit in item.units])
        if item.role is not Role.ASSISTANT or not item.text or not words:
            return None
        text = [*self.tokens.before_text(self.compatibility, begin=False), *self.tokens.piece(item.text), *self.tokens.after_text()]
        return Reading(row_id, (*text, self.tokens.begin_id, *words, self.tokens.end_id), len(text))

    def learned(self, model: SpeakingStudent) -> dict[str, Tensor]:
        return learned_tensors(model)

    def examples(self, split: str) -> Examples:
        return Readings(self.splits[split])

    def collate(self, examples: Sequence[Reading]) -> ReadBatch:
        ids = padded([reading.ids for reading in examples], self.tokens.end_id)
        labels = padded([[*[IGNORE] * reading.text_length, *reading.ids[reading.text_length :]] for reading in examples], IGNORE)
        return ReadBatch(
            row_ids=tuple(reading.row_id for reading in examples),
            count=int((labels != IGNORE).sum()),
            ids=ids,
            labels=labels,
            visible=ids != self.tokens.end_id,
            text_lengths=torch.tensor([reading.text_length for reading in examples]),
        )

    def forward(self, model: SpeakingStudent, batch: ReadBatch) -> UnitOutputs:
        return pretrain_outputs(model.translator, batch.ids, batch.labels, batch.visible)

    def score(self, model: SpeakingStudent, batches: Callable[[], Iterable[Batch]]) -> dict[str, float]:
        errors = units = rows = 0
        for batch in batches():
            if rows >= self.config.scored_rows:
                break
            prompt = model.translator.given(batch.ids, batch.text_lengths, batch.visible)
            said = decode(model.translator, prompt, self.tokens.end_id, self.config.max_words)
            for row, ids in enumerate(batch.labels.tolist()):
                wanted = self.tokens.units([label for label in ids if label != IGNORE])
                errors += edit_distance(self.tokens.units(said.row(row)), wanted)
                units += len(wanted)
                rows += 1
        return {"unit_error": errors / max(1, units)}

    def view(self, model: SpeakingStudent, batch: ReadBatch) -> View:
        tracks = spoken_tracks(model.translator, self.tokens, batch.ids, batch.labels)
        padding = released_padding(batch.ids, self.tokens.end_id)
        return View(tracks, padding=padding, unit_count=unit_count_of(self.config.checkpoint))

    def data_fingerprints(self) -> dict[str, str]:
        return {**self.rows.fingerprints(), "checkpoint": checkpoint_fingerprint(self.config.checkpoint)}


def spoken_words(tokens: ReleaseTokens, words: Sequence[Sequence[int]] | None) -> list[int] | None:
    """Units as a manifest groups them -> ids of the unit translator; None where there are none, or no unit word says one of them.

    Units that stand one by one are grouped into words here.
    """
    if not words:
        return None
    if all(len(word) == 1 for word in words):
        return tokens.spoken([unit for word in words for unit in word])
    return tokens.words(words)
