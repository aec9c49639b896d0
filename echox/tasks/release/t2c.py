"""T2C in the released form: the unit translator learns text to units; "pretrain" in the release."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from echox.core.config import neutral, refuse_below
from echox.core.errors import ManifestError
from echox.core.indexable import Indexable
from echox.core.signals import Batch
from echox.criteria.base import UnitOutputs
from echox.data.manifest import Item, Role, Row
from echox.models.footprint import layer_bytes
from echox.models.release.model import PublishedEchoX
from echox.models.release.tokens import ReleaseTokens
from echox.models.release.train_forward import pretrain_outputs
from echox.models.release.trainable import (
    TrainableEchoX,
    cast_parameters,
    select_trained,
    starting_model,
    trained_tensors,
)
from echox.models.release.unit_decoding import generate_after_text
from echox.models.speech_llm import IGNORE
from echox.tasks.base import TASKS, AuditBatch, Outline, StageContext, named_parts
from echox.tasks.conversations import RowsConfig, UnitPair, padded, unit_error
from echox.tasks.lazy_examples import RowExamples, row_examples
from echox.tasks.release.audit import end_id_padding, translator_targets
from echox.tasks.release.base import (
    TRANSLATOR_MODULES,
    ReleaseTask,
    ReleaseTaskConfig,
    vocoder_unit_count,
)
from echox.tasks.release.conversations import grouped_units

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
    """Training of text to unit tokens.

    Raises:
        ConfigError: a number is out of range.
    """

    data: RowsConfig = field(default_factory=RowsConfig)
    """Manifests whose assistant turns have text and units, as words ("12_4 5") or one by one."""
    modules: list[str] = field(default_factory=lambda: list(TRANSLATOR_MODULES))
    """Modules that learn, by the release's names; the text rows are those of the language model's
    head and stay."""
    max_tokens: int = POSITIONS
    """Text tokens and unit words at most; longer turns are left out."""
    scored_rows: int = neutral(64)
    """Validation rows whose units are generated and compared with the recorded ones."""
    max_words: int = POSITIONS
    """Unit words generated for a validation row at most."""

    def __post_init__(self) -> None:
        refuse_below(self, 1, "max_tokens", "max_words")
        refuse_below(self, 0, "scored_rows")


@dataclass(frozen=True, slots=True)
class TextUnitsExample:
    """A text and its units as one sequence [L] of the unit translator."""

    row_id: str
    ids: tuple[int, ...]
    text_length: int  # ids before the units


@dataclass(frozen=True, slots=True)
class TextUnitsBatch(Batch):
    """B texts and their units as sequences [B, L] of the unit translator."""

    ids: Tensor  # [B, L] padded with the end id
    labels: Tensor  # [B, L] the units, IGNORE elsewhere
    visible: Tensor  # bool [B, L] keys: all but end ids, those that close a text too
    text_lengths: Tensor  # [B] ids before the units


def _cost(example: TextUnitsExample) -> int:
    return len(example.ids)


@TASKS.register("published_t2c", ReleaseUnitsConfig)
class ReleaseUnitsTask(ReleaseTask[TrainableEchoX, TextUnitsBatch]):
    """Stage II from a published folder: cross-entropy of the units after a text.

    The language model is not needed, and not built.

    Source: EchoX (arXiv:2509.09174); the branch pretrain of its release.
    """

    needs = ()

    def __init__(self, config: ReleaseUnitsConfig, context: StageContext) -> None:
        super().__init__(config, context)

    def build(self) -> TrainableEchoX:
        """Load the unit translator, and read the manifests.

        Raises:
            CheckpointError: the folder is incomplete or damaged.
            ConfigError: a module does not exist.
            ManifestError: no training turn has a text and units.
        """
        release = starting_model(self.config.checkpoint, self.config.form())
        self.tokens, self.compatibility = release.tokens, release.compatibility
        model = self._translator_of(release)
        self.splits = {split: self._read_examples(split) for split in ("train", "valid")}
        return model

    def _translator_of(self, release: PublishedEchoX) -> TrainableEchoX:
        """The unit translator as it is trained; the rest of the release is dropped.

        Raises:
            ConfigError: a module does not exist.
        """
        select_trained(release, self.config.modules)
        model = TrainableEchoX(release.require_translator())
        cast_parameters(model, half=self.context.bf16)
        return model

    def outline(self, parents: Mapping[str, Outline]) -> Outline:
        # The whole model is outlined, because shapes of the translator depend on the rest.
        with torch.device("meta"):
            release = starting_model(self.config.checkpoint, self.config.form(), meta=True)
        model = self._translator_of(release)
        body = model.translator.body
        return Outline(
            model=model,
            parts=named_parts("unit translator", "translator", TRANSLATOR_PARTS),
            cost_unit="text tokens and words",
            longest_cost=self.config.max_tokens,
            activations={"unit translator": layer_bytes(body, body.config.hidden_size)},
        )

    def _read_examples(self, split: str) -> Indexable[TextUnitsExample]:
        examples = row_examples(
            self.rows.rows(split),
            self._examples_of,
            _cost,
            on_broken=self.config.data.on_broken,
            lengths=lambda: self.lengths_path(split),
        )
        if split == "train" and not examples:
            raise ManifestError(
                f"no turn of {', '.join(self.config.data.train)} has a text and units that the "
                "checkpoint's unit words say; give the assistant's turns 'units'"
            )
        return examples

    def _examples_of(self, row: Row) -> list[TextUnitsExample]:
        """An example for each of a row's answers that is not too long."""
        examples = (self._example(row.id, turn) for turn in row.turns)
        return [
            example
            for example in examples
            if example is not None and len(example.ids) <= self.config.max_tokens
        ]

    def _example(self, row_id: str, turn: Item) -> TextUnitsExample | None:
        units = unit_token_ids(self.tokens, grouped_units(turn))
        if turn.role is not Role.ASSISTANT or not turn.text or not units:
            return None
        text = [
            *self.tokens.before_text(self.compatibility, begin=False),
            # Begins with begin-of-text.
            *self.tokens.tokenize(turn.text),
            *self.tokens.after_text(),
        ]
        # Units begin with begin-of-text, as any piece of text does in the release.
        ids = (*text, self.tokens.begin_id, *units, self.tokens.end_id)
        return TextUnitsExample(row_id, ids, len(text))

    def trained_state_dict(self, model: TrainableEchoX) -> dict[str, Tensor]:
        return trained_tensors(model)

    def examples(self, split: str) -> RowExamples[TextUnitsExample]:
        return RowExamples(self.splits[split], _cost)

    def collate(self, examples: Sequence[TextUnitsExample]) -> TextUnitsBatch:
        """Pad sequences to one batch of ids [B, L] and labels [B, L]."""
        ids = padded([example.ids for example in examples], self.tokens.end_id)
        # At their own ids: `states_and_targets` shifts them.
        labels = [
            [*[IGNORE] * example.text_length, *example.ids[example.text_length :]]
            for example in examples
        ]
        padded_labels = padded(labels, IGNORE)
        return TextUnitsBatch(
            row_ids=tuple(example.row_id for example in examples),
            count=int((padded_labels != IGNORE).sum()),
            ids=ids,
            labels=padded_labels,
            visible=ids != self.tokens.end_id,
            text_lengths=torch.tensor([example.text_length for example in examples]),
        )

    def forward(self, model: TrainableEchoX, batch: TextUnitsBatch) -> UnitOutputs:
        """States [N, C] of the unit translator at its N targets."""
        return pretrain_outputs(model.translator, batch.ids, batch.labels, batch.visible)

    def score(
        self, model: TrainableEchoX, batches: Callable[[], Iterable[TextUnitsBatch]]
    ) -> dict[str, float]:
        """Unit error rate of generated speech, over `scored_rows` validation rows."""

        def pairs(batch: TextUnitsBatch) -> Iterator[UnitPair]:
            # The text part of each sequence, as in training.
            prompt = model.translator.prefix_prompt(batch.ids, batch.text_lengths, batch.visible)
            generated = generate_after_text(
                model.translator, prompt, self.tokens.end_id, self.config.max_words
            )
            for ids, labels in zip(generated.rows(), batch.labels.tolist(), strict=True):
                yield self.tokens.units(ids), self.tokens.units([i for i in labels if i != IGNORE])

        return unit_error(batches(), pairs, self.config.scored_rows)

    def audit_batch(self, model: TrainableEchoX, batch: TextUnitsBatch) -> AuditBatch:
        return AuditBatch(
            translator_targets(model.translator, self.tokens, batch.ids, batch.labels),
            padding=end_id_padding(batch.ids, self.tokens.end_id),
            unit_count=vocoder_unit_count(self.config.checkpoint),
        )


def unit_token_ids(
    tokens: ReleaseTokens, groups: Sequence[Sequence[int]] | None
) -> list[int] | None:
    """Unit token ids of the units of a manifest.

    Args:
        tokens: the tokenizer of the checkpoint.
        groups: units as the manifest groups them into tokens; where all stand one by one, they
            are grouped here.

    Returns:
        ids, or None where there are no units, or no unit token stands for one of them.
    """
    if not groups:
        return None
    if all(len(group) == 1 for group in groups):
        return tokens.tokenize_units([unit for group in groups for unit in group])
    return tokens.tokenize_grouped(groups)
