"""T2C: text in, the unit-language tokens of its speech out."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from echox.backbones.base import BACKBONES, Backbone
from echox.codecs.base import CODECS, Codec
from echox.core.checkpoint import Checkpoint
from echox.core.config import neutral, refuse_below
from echox.core.errors import ConfigError, ManifestError
from echox.core.signals import Batch, padded
from echox.criteria.base import UnitOutputs
from echox.data.manifest import OnBroken, Row, manifest_fingerprint, read_manifests
from echox.models.denoising import T2CModel, build_t2c_model
from echox.models.footprint import layer_bytes
from echox.models.speech_llm import IGNORE
from echox.models.unit_decoder import UnitDecoder, UnitDecoderConfig
from echox.tasks.base import (
    TASKS,
    AuditBatch,
    Examples,
    Outline,
    StageContext,
    Task,
    TaskConfig,
    Use,
    named_parts,
)
from echox.tasks.conversations import UnitPair, unit_error
from echox.tasks.recorded import recorded_config
from echox.tasks.restored import filled, recorded_backbone, required_codec
from echox.tasks.t2c.unit_alignment import UnitAlignment, Utterance
from echox.tasks.views import backbone_text, padding_of_rows, unit_targets

# Mean of EchoX's unit language (table 5 of the paper), for estimates without the data.
UNIT_TOKENS_PER_TEXT_TOKEN = 4.57


@dataclass(kw_only=True, slots=True)
class TextUnitsTaskConfig(TaskConfig):
    """Training of text to units.

    Raises:
        ConfigError: a kind of utterances is to be repeated less than once.
    """

    train: list[str] = field(default_factory=list)
    """Manifests whose assistant turns have text and units."""
    valid: list[str] = neutral(default_factory=list)
    """Manifests to validate on."""
    on_broken: OnBroken = neutral(OnBroken.skip)
    """What to do with broken rows: skip them, each reported with its line, or refuse the
    manifest."""
    rows: int | None = None
    """Training utterances drawn from the manifests; null takes all."""
    repeat: dict[str, int] = field(default_factory=dict)
    """Times that training utterances of a kind, as their rows say, stand in an epoch; all others
    stand there once."""
    decoder: UnitDecoderConfig = field(default_factory=UnitDecoderConfig)
    """Shape of the unit decoder."""
    spelling_channels: int = 64
    """Channels of the spelling reader that helps the text rows; 0 uses the LLM's rows alone, as
    EchoX does."""
    aligner_steps: int = 250
    """Training steps of the aligner that finds which units belong to which token (monotonic
    decoders only)."""
    max_units: int = 1500
    """Units at most in an example, frames with several codebooks; longer ones are left out."""
    scored_rows: int = neutral(64)
    """Validation rows whose units are generated and compared with the recorded ones."""

    def __post_init__(self) -> None:
        refuse_below(self, 1, "rows", "max_units")
        refuse_below(self, 0, "spelling_channels", "aligner_steps", "scored_rows")
        for kind, times in self.repeat.items():
            if times < 1:
                raise ConfigError(
                    f"repeat.{kind} is {times}; "
                    "use 1 or more, or leave its rows out of the manifest"
                )


@dataclass(frozen=True, slots=True)
class TextUnitsBatch(Batch):
    """B texts [B, S] and the unit tokens of their speech [B, U * K]."""

    ids: Tensor  # [B, S] text tokens
    lengths: Tensor  # [B] text tokens of each row
    targets: Tensor  # [B, U * K] output ids of the decoder, IGNORE-padded
    units: tuple[tuple[int, ...], ...]  # of each row, frame by frame with K codebooks


class Utterances(Examples[Utterance]):
    """Texts with targets, K ids to a step; the cost of one is its text tokens and steps."""

    def __init__(self, utterances: Sequence[Utterance], codebooks: int) -> None:
        self.utterances = utterances
        self.codebooks = codebooks

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, index: int) -> Utterance:
        return self.utterances[index]

    def cost(self, index: int) -> int:
        utterance = self.utterances[index]
        return len(utterance.ids) + len(utterance.target) // self.codebooks


def t2c_model_of(config: TextUnitsTaskConfig, backbone: Backbone, codec: Codec) -> T2CModel:
    """Build the untrained T2C model over a backbone's text rows and a codec's unit language."""
    return build_t2c_model(
        config.decoder, config.spelling_channels, backbone, codec.unit_vocab_size, codec.codebooks
    )


def t2c_parts(path: str = "") -> dict[str, list[str]]:
    """Parts of the T2C model for `Outline.parts`.

    Args:
        path: prefix of the model's names in the stage's model, "" or "name.".
    """
    return {
        "text rows": [f"{path}rows"],
        **named_parts("unit decoder", f"{path}decoder", UnitDecoder.parts),
    }


@TASKS.register("t2c", TextUnitsTaskConfig)
class TextUnitsTask(Task[T2CModel, TextUnitsBatch]):
    """Stage II: the unit decoder learns to turn text into units.

    Source: EchoX (arXiv:2509.09174), text-to-codec training.
    """

    needs = ("backbone", "codec")
    use = Use.synthesize

    def __init__(self, config: TextUnitsTaskConfig, context: StageContext) -> None:
        super().__init__(config, context)

    @classmethod
    def restore(
        cls,
        checkpoint: Checkpoint,
        *,
        backbone: Backbone | None = None,
        codec: Codec | None = None,
    ) -> T2CModel:
        backbone = backbone or recorded_backbone(checkpoint)
        config = recorded_config(checkpoint, TextUnitsTaskConfig)
        model = t2c_model_of(config, backbone, required_codec(checkpoint, codec))
        return filled(model, checkpoint)

    def build(self) -> T2CModel:
        backbone = BACKBONES.build(self.context.parts.backbone)
        self.attach(backbone, CODECS.build(self.context.parts.codec))
        return t2c_model_of(self.config, self.backbone, self.codec)

    def attach(self, backbone: Backbone, codec: Codec) -> None:
        """Set the language model and the codec whose tokens and units the examples are made of.

        `build` does so; other tasks that read utterances by this one have them already.
        """
        self.backbone, self.codec = backbone, codec
        self.alignment = UnitAlignment(backbone, codec, self.context, self.config.aligner_steps)

    def manifests(self) -> list[str]:
        return [*self.config.train, *self.config.valid]

    def outline(self, parents: Mapping[str, Outline]) -> Outline:
        parts, config = self.context.parts, self.config
        codec = CODECS.entry_of(parts.codec).implementation
        backbone = BACKBONES.entry_of(parts.backbone).implementation.outline(parts.backbone)
        # Expected sizes, because the codec may not be fitted yet.
        with torch.device("meta"):
            vocab_size = codec.expected_unit_vocab_size(parts.codec)
            codebooks = codec.expected_codebooks(parts.codec)
            model = build_t2c_model(
                config.decoder, config.spelling_channels, backbone, vocab_size, codebooks
            )
        notes = ["the words are those that the codec is to have; it is not fitted yet"]
        return Outline(
            model=model,
            parts=t2c_parts(),
            cost_unit="text tokens and words",
            longest_cost=config.decoder.positions,
            activations={"unit decoder": layer_bytes(model.decoder.body, config.decoder.width)},
            notes=[] if codec.is_ready(parts.codec) else notes,
        )

    def trained_state_dict(self, model: T2CModel) -> dict[str, Tensor]:
        return dict(model.state_dict())

    def prepare(self, model: T2CModel) -> None:
        """Read the utterances, and align their units with their text for a monotonic decoder.

        Raises:
            ManifestError: no training row has units, or they are of another codec.
            AssetError: the cache of alignments cannot be written.
        """
        splits = {split: self._utterances(split) for split in ("train", "valid")}
        counts: Iterator[list[int] | None]
        if model.decoder.config.monotonic:
            # The aligner is trained on the training split alone.
            utterances = [*splits["train"], *splits["valid"]]
            counts = iter(self.alignment.counts(utterances, len(splits["train"])))
        else:
            # The paper's prefix form has no marks, hence needs no alignment.
            counts = itertools.repeat(None)
        self.splits = {
            split: [self._with_target(row, next(counts), model.decoder) for row in rows]
            for split, rows in splits.items()
        }

    def _utterances(self, split: str) -> list[Utterance]:
        paths = {"train": self.config.train, "valid": self.config.valid}[split]
        if split == "valid" and not paths:
            return []
        rows = read_manifests(paths, on_broken=self.config.on_broken)
        utterances = [utterance for row in rows if (utterance := self._utterance(row)) is not None]
        if split == "train" and not utterances:
            raise ManifestError(
                f"no row of {', '.join(paths)} has units on its assistant turn; "
                "write them with 'echox-prepare units'"
            )
        count = self.config.rows
        if split == "train" and count is not None and count < len(utterances):
            chosen = random.Random(self.context.seed).sample(range(len(utterances)), count)
            # In the order of the manifests.
            return [utterances[index] for index in sorted(chosen)]
        return utterances

    def _utterance(self, row: Row) -> Utterance | None:
        """Text and units of a row; None where it has none or they cannot be aligned.

        Raises:
            ManifestError: the units are of another codec, or none of its units.
        """
        answer = row.answer
        if answer is None or not answer.text or not answer.units:
            return None
        if len(answer.units) // self.codec.codebooks > self.config.max_units:
            return None
        # Units of another codec are numbers of other sounds.
        written_by = row.extra.get("codec")
        if written_by != self.codec.fingerprint():
            raise ManifestError(
                f"row {row.id!r} has units of codec {written_by or 'unknown'}, "
                f"but codec={self.codec.fingerprint()} is in use; "
                "run 'echox-prepare units' with this codec"
            )
        self._refuse_unknown_units(row.id, answer.units)
        self.written_by = written_by
        ids = tuple(self.backbone.tokenize(answer.text))
        utterance = Utterance(row.id, ids, answer.units, str(row.extra.get("kind", "")))
        return utterance if self.alignment.fits(utterance) else None

    def _refuse_unknown_units(self, row_id: str, units: Sequence[int]) -> None:
        V, K = self.codec.vocab_size, self.codec.codebooks
        # Manifests hold no negative ones.
        if max(units) >= V or len(units) % K:
            raise ManifestError(
                f"row {row_id!r} has {len(units)} units from {min(units)} to {max(units)}, but the "
                f"codec has units 0..{V - 1} in {K} codebook{'s' if K > 1 else ''}; "
                "run 'echox-prepare units' with this codec"
            )

    def _with_target(
        self, utterance: Utterance, counts: list[int] | None, decoder: UnitDecoder
    ) -> Utterance:
        """An utterance with the decoder's targets.

        Args:
            counts: units, or frames of K codebooks, of each text token; None leaves them unmarked.
        """
        K = self.codec.codebooks
        if counts is None:
            pieces = [utterance.units]
        else:
            # Frame by frame, K units each.
            ends = torch.tensor(counts).cumsum(0).tolist()
            pieces = [
                utterance.units[(end - count) * K : end * K] for end, count in zip(ends, counts)
            ]
        # Each text token's units are tokenized by themselves: no unit token spans two of them.
        unit_tokens = [self.codec.unit_tokens_of(list(piece)) for piece in pieces]
        return dataclasses.replace(utterance, target=tuple(decoder.target_of(unit_tokens)))

    def examples(self, split: str) -> Utterances:
        # Repeated rows are the same objects: nothing is augmented here.
        times = self.config.repeat if split == "train" else {}
        rows = [row for row in self.splits[split] for _ in range(times.get(row.kind, 1))]
        return Utterances(rows, self.codec.codebooks)

    def collate(self, examples: Sequence[Utterance]) -> TextUnitsBatch:
        """Pad utterances to one batch of text [B, S] and targets [B, U * K]."""
        nothing = self.codec.unit_vocab_size  # BEGIN, as the decoder's output ids have it
        return TextUnitsBatch(
            row_ids=tuple(row.row_id for row in examples),
            # Where a codebook has no code, there is no target.
            count=sum(token != nothing for row in examples for token in row.target),
            ids=padded([row.ids for row in examples], 0),
            lengths=torch.tensor([len(row.ids) for row in examples]),
            targets=padded([row.target for row in examples], IGNORE),
            units=tuple(row.units for row in examples),
        )

    def forward(self, model: T2CModel, batch: TextUnitsBatch) -> UnitOutputs:
        """States [N, C] of the unit decoder at its N targets."""
        # [B, U, C]: one state for the K ids of a step.
        hidden = model.decoder(model.rows(batch.ids), batch.lengths, batch.targets)
        return UnitOutputs(*model.decoder.labelled(hidden, batch.targets), model.decoder.head)

    def score(
        self, model: T2CModel, batches: Callable[[], Iterable[TextUnitsBatch]]
    ) -> dict[str, float]:
        """Unit error rate of generated speech, over `scored_rows` validation rows."""

        def pairs(batch: TextUnitsBatch) -> Iterator[UnitPair]:
            generated = model.speak(batch.ids, batch.lengths)
            return zip(map(self.codec.units_of, generated), batch.units)

        return unit_error(batches(), pairs, self.config.scored_rows, self.codec.codebooks)

    def audit_batch(self, model: T2CModel, batch: TextUnitsBatch) -> AuditBatch:
        text = backbone_text(self.backbone)
        texts = [text(ids[:length].tolist()) for ids, length in zip(batch.ids, batch.lengths)]
        targets = [
            unit_targets(row, batch.targets[row], model.decoder, batch.units[row], texts[row])
            for row in range(len(texts))
        ]
        return AuditBatch(
            targets,
            padding=padding_of_rows(batch.ids, batch.lengths),
            unit_count=self.codec.vocab_size,
            # An audit compares the two.
            codecs={"in use": self.codec.fingerprint(), "of the units": self.written_by},
        )

    def data_fingerprints(self) -> dict[str, str]:
        manifests = {
            f"manifest:{path}": manifest_fingerprint(path)
            for path in [*self.config.train, *self.config.valid]
        }
        return manifests | {"codec": self.codec.fingerprint()}
