"""T2C: a text in, the unit-language words of its speech out."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from echox.backbones.base import BACKBONES, Backbone
from echox.codecs.base import CODECS, Codec
from echox.config import neutral
from echox.criteria.base import UnitOutputs
from echox.data.manifest import OnBroken, Row, manifest_fingerprint, read_manifests
from echox.errors import ConfigError, ManifestError
from echox.models.denoising import TextVoice, join_voice
from echox.models.footprint import layer_bytes
from echox.models.unit_decoder import IGNORE, UnitDecoder, UnitDecoderConfig
from echox.signals import Batch
from echox.tasks.base import TASKS, Examples, Outline, StageContext, Task, TaskConfig, View, named_parts
from echox.tasks.spoken import padded, unit_distance
from echox.tasks.unit_alignment import UnitAlignment, Utterance
from echox.tasks.views import past, text_of, word_track


@dataclass(kw_only=True, slots=True)
class TextUnitsTaskConfig(TaskConfig):
    """Learning to speak text in units."""

    train: list[str] = field(default_factory=list)
    """Manifests whose assistant turns have text and units."""
    valid: list[str] = neutral(default_factory=list)
    """Manifests to validate on."""
    on_broken: OnBroken = neutral(OnBroken.skip)
    """What to do with broken rows: skip them, each reported with its line, or refuse the manifest."""
    rows: int | None = None
    """Training utterances drawn from the manifests; null takes all."""
    repeat: dict[str, int] = field(default_factory=dict)
    """Times that training utterances of a kind, as their rows say, stand in an epoch; all others stand there once."""
    decoder: UnitDecoderConfig = field(default_factory=UnitDecoderConfig)
    """Shape of the unit decoder."""
    spelling_channels: int = 64
    """Channels of the spelling reader that helps the text rows; 0 uses the LLM's rows alone, as EchoX does."""
    aligner_steps: int = 250
    """Training steps of the aligner that finds which units sound which token (monotonic decoders only)."""
    max_units: int = 1500
    """Units at most in an example, frames with several codebooks; longer ones are left out."""
    scored_rows: int = neutral(64)
    """Validation rows that are spoken and compared with their units."""

    def __post_init__(self) -> None:
        for kind, times in self.repeat.items():
            if times < 1:
                raise ConfigError(f"repeat.{kind} is {times}; use 1 or more, or leave its rows out of the manifest")


@dataclass(frozen=True, slots=True)
class TextUnitsBatch(Batch):
    """Texts and the words that speak them."""

    ids: Tensor  # [B, S] text tokens
    lengths: Tensor  # [B]
    targets: Tensor  # [B, U * K] output ids of the decoder, IGNORE-padded
    units: tuple[tuple[int, ...], ...]  # reference units per row, frame after frame with K codebooks


class Utterances(Examples):
    """Texts with targets, of K ids a step."""

    def __init__(self, rows: Sequence[Utterance], codebooks: int) -> None:
        self.rows = rows
        self.codebooks = codebooks

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Utterance:
        return self.rows[index]

    def cost(self, index: int) -> int:
        return len(self.rows[index].ids) + len(self.rows[index].target) // self.codebooks


def build_voice(config: TextUnitsTaskConfig, backbone: Backbone, codec: Codec) -> TextVoice:
    """The untrained T2C model over a backbone's text rows and a codec's unit language."""
    return join_voice(config.decoder, config.spelling_channels, backbone, codec.word_count, codec.codebooks)


def voice_parts(path: str = "") -> dict[str, list[str]]:
    """The T2C model's parts as `Outline.parts` wants them, where it stands at `path` ("" or "name.")."""
    return {"text rows": [f"{path}rows"], **named_parts("unit decoder", f"{path}decoder", UnitDecoder.parts)}


@TASKS.register("t2c", TextUnitsTaskConfig)
class TextUnitsTask(Task):
    """Stage II: the unit decoder learns to read text aloud."""

    needs = ("backbone", "codec")

    def __init__(self, config: TextUnitsTaskConfig, context: StageContext) -> None:
        super().__init__(config, context)

    def build(self) -> TextVoice:
        self.use(BACKBONES.build(self.context.parts.backbone), CODECS.build(self.context.parts.codec))
        return build_voice(self.config, self.backbone, self.codec)

    def use(self, backbone: Backbone, codec: Codec) -> None:
        """Read and speak with these."""
        self.backbone, self.codec = backbone, codec
        self.alignment = UnitAlignment(backbone, codec, self.context, self.config.aligner_steps)

    def manifests(self) -> list[str]:
        return [*self.config.train, *self.config.valid]

    def outline(self, parents: Mapping[str, Outline]) -> Outline:
        codec = CODECS.entry_of(self.context.parts.codec).implementation
        backbone = BACKBONES.entry_of(self.context.parts.backbone).implementation.outline(self.context.parts.backbone)
        with torch.device("meta"):
            words, codebooks = codec.expected_word_count(self.context.parts.codec), codec.expected_codebooks(self.context.parts.codec)
            model = join_voice(self.config.decoder, self.config.spelling_channels, backbone, words, codebooks)
        return Outline(
            model=model,
            parts=voice_parts(),
            cost_unit="text tokens and words",
            longest_cost=self.config.decoder.positions,
            activations={"unit decoder": layer_bytes(model.decoder.body, self.config.decoder.width)},
            notes=[] if codec.is_ready(self.context.parts.codec) else ["the words are those that the codec is to have; it is not fitted yet"],
        )

    def learned(self, model: TextVoice) -> dict[str, Tensor]:
        return dict(model.state_dict())

    def prepare(self, model: TextVoice) -> None:
        splits = {split: self._utterances(split) for split in ("train", "valid")}
        if model.decoder.config.monotonic:
            counts = iter(self.alignment.counts([*splits["train"], *splits["valid"]], len(splits["train"])))
        else:
            counts = itertools.repeat(None)
        self.splits = {split: [self._with_target(row, next(counts), model.decoder) for row in rows] for split, rows in splits.items()}

    def _utterances(self, split: str) -> list[Utterance]:
        paths = {"train": self.config.train, "valid": self.config.valid}[split]
        if split == "valid" and not paths:
            return []
        rows = read_manifests(paths, on_broken=self.config.on_broken)
        found = [utterance for row in rows if (utterance := self._utterance(row)) is not None]
        if split == "train" and not found:
            raise ManifestError(f"no row of {', '.join(paths)} has units on its assistant turn; write them with 'echox-prepare units'")
        if split == "train" and self.config.rows is not None and self.config.rows < len(found):
            chosen = random.Random(self.context.seed).sample(range(len(found)), self.config.rows)
            return [found[index] for index in sorted(chosen)]
        return found

    def _utterance(self, row: Row) -> Utterance | None:
        """The row's text and units, or None where it has none or they cannot be aligned."""
        answer = row.answer
        if answer is None or not answer.text or not answer.units or len(answer.units) // self.codec.codebooks > self.config.max_units:
            return None
        written_by = row.extra.get("codec")
        if written_by != self.codec.fingerprint():
            raise ManifestError(
                f"row {row.id!r} has units of codec {written_by or 'unknown'}, but codec={self.codec.fingerprint()} is in use; run 'echox-prepare units' with this codec"
            )
        ids = tuple(self.backbone.tokenize(answer.text))
        self.written_by = written_by
        found = Utterance(row.id, ids, answer.units, str(row.extra.get("kind", "")))
        return found if self.alignment.fits(found) else None

    def _with_target(self, row: Utterance, counts: list[int] | None, decoder: UnitDecoder) -> Utterance:
        if counts is None:
            words = [self.codec.words(list(row.units))]
        else:
            ends = torch.tensor(counts).cumsum(0).tolist()
            K = self.codec.codebooks
            words = [self.codec.words(list(row.units[(end - count) * K : end * K])) for end, count in zip(ends, counts)]
        return dataclasses.replace(row, target=tuple(decoder.target_of(words)))

    def examples(self, split: str) -> Examples:
        times = self.config.repeat if split == "train" else {}
        rows = [row for row in self.splits[split] for _ in range(times.get(row.kind, 1))]
        return Utterances(rows, self.codec.codebooks)

    def collate(self, examples: Sequence[Utterance]) -> TextUnitsBatch:
        return TextUnitsBatch(
            row_ids=tuple(row.row_id for row in examples),
            # Where a codebook says nothing, nothing is learned.
            count=sum(token != self.codec.word_count for row in examples for token in row.target),
            ids=padded([row.ids for row in examples], 0),
            lengths=torch.tensor([len(row.ids) for row in examples]),
            targets=padded([row.target for row in examples], IGNORE),
            units=tuple(row.units for row in examples),
        )

    def forward(self, model: TextVoice, batch: TextUnitsBatch) -> UnitOutputs:
        hidden = model.decoder(model.rows(batch.ids), batch.lengths, batch.targets)
        return UnitOutputs(*model.decoder.labelled(hidden, batch.targets), model.decoder.head)

    def score(self, model: TextVoice, batches: Callable[[], Iterable[Batch]]) -> dict[str, float]:
        errors = units = rows = 0
        for batch in batches():
            if rows >= self.config.scored_rows:
                break
            for words, reference in zip(model.speak(batch.ids, batch.lengths), batch.units):
                errors += unit_distance(self.codec.units_of(words), reference, self.codec.codebooks)
                units += len(reference)
                rows += 1
        return {"unit_error": errors / max(1, units)}

    def view(self, model: TextVoice, batch: TextUnitsBatch) -> View:
        text = text_of(self.backbone)
        given = [text(ids[:length].tolist()) for ids, length in zip(batch.ids, batch.lengths)]
        tracks = [word_track(row, batch.targets[row], model.decoder, batch.units[row], given[row]) for row in range(len(given))]
        codecs = {"in use": self.codec.fingerprint(), "of the units": self.written_by}
        return View(tracks, padding=past(batch.ids, batch.lengths), unit_count=self.codec.vocab_size, codecs=codecs)

    def data_fingerprints(self) -> dict[str, str]:
        manifests = {f"manifest:{path}": manifest_fingerprint(path) for path in [*self.config.train, *self.config.valid]}
        return manifests | {"codec": self.codec.fingerprint()}
