"""Echo in the released form: the unit translator learns from hidden states, segment by segment."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial

import torch
from torch import Tensor

from echox.core import checkpoint
from echox.core.config import neutral
from echox.core.signals import Batch
from echox.criteria.base import EchoOutputs
from echox.data.cache import ArrayCache
from echox.data.text import edit_distance
from echox.models.release.model import PublishedEchoX, ReleaseSpeechLLM
from echox.models.release.train_forward import (
    TextPass,
    answer_segments,
    segment_outputs,
    states_and_targets,
)
from echox.models.release.translator import UnitTranslator
from echox.models.release.unit_decoding import generate_after_text
from echox.models.segmenting import (
    RELEASE_RULE,
    Cutter,
    SegmentRule,
    SegmentsConfig,
    segments,
)
from echox.models.speech_llm import IGNORE
from echox.tasks.base import TASKS, AuditBatch, Examples, TokenTargets
from echox.tasks.conversations import padded
from echox.tasks.release.audit import (
    WINDOWS_NOTE,
    clip_targets,
    conversation_targets,
    end_id_padding,
    token_text,
    translator_vocabulary,
    unit_id_range,
    units_of_ids,
)
from echox.tasks.release.base import vocoder_unit_count
from echox.tasks.release.conversations import ConversationBatch, ReleaseExample, ReleaseExamples
from echox.tasks.release.full_model import FullModelConfig, FullModelTask
from echox.tasks.release.s2t import teacher_forced
from echox.tasks.views import length_with_end


@dataclass(kw_only=True, slots=True)
class ReleaseEchoTaskConfig(FullModelConfig):
    """Echo training of a published model on spoken conversations, without recorded answers.

    The last answer of each is synthesized.
    """

    rule: SegmentRule = field(default_factory=lambda: SegmentRule(**asdict(RELEASE_RULE)))
    """Where answers are cut into segments, as in streaming."""
    max_words: int = 2048
    """Unit words of a segment at most; 2048 in the release."""
    label_batch: int = 16
    """Conversations labelled at once."""
    scored_rows: int = neutral(16)
    """Validation conversations whose units are generated and compared with their
    pseudo-labels."""


@dataclass(frozen=True, slots=True)
class LabelledReleaseExample:
    """A conversation with the unit ids [T] that T2C generates for each segment of its answer."""

    example: ReleaseExample
    lengths: tuple[int, ...]  # text tokens of each segment
    units: tuple[tuple[int, ...], ...]  # ids of the unit translator, with the end id


@dataclass(frozen=True, slots=True)
class SegmentsBatch(Batch):
    """B spoken conversations with pseudo-labels [B, C, T] of C segments."""

    conversations: ConversationBatch
    lengths: Tensor  # [B, C] text tokens of each segment, -1 where there is none
    units: Tensor  # [B, C, T] IGNORE-padded


class LabelledReleaseExamples(Examples):
    """Conversations with pseudo-labels; the cost of one is that of the conversation."""

    def __init__(self, examples: ReleaseExamples, labels: ArrayCache) -> None:
        self.examples, self.labels = examples, labels

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> LabelledReleaseExample:
        example = self.examples[index]
        return LabelledReleaseExample(example, *unpacked(self.labels[label_key(example)].tolist()))

    def at(self, index: int, epoch: int) -> LabelledReleaseExample:
        # Labels are of the clips as they were recorded, also where these are augmented.
        return dataclasses.replace(self[index], example=self.examples.at(index, epoch))

    def cost(self, index: int) -> int:
        return self.examples.cost(index)


@TASKS.register("published_echo", ReleaseEchoTaskConfig)
class ReleaseEchoTask(FullModelTask):
    """Stage III from a published folder.

    The states that predict the reference answer are cut as in streaming; for the greedy text X' of
    each segment the frozen T2C generates its label Y'. Labels are computed once, before training,
    and cached under the fingerprints of all they depend on.

    Source: EchoX (arXiv:2509.09174), Echo training; the branch finetune_kd of its release.
    """

    def read(self, split: str) -> Sequence[ReleaseExample]:
        return self.reader.read(split, last_only=True, lengths=partial(self.lengths_path, split))

    def prepare(self, model: ReleaseSpeechLLM) -> None:
        """Compute and cache the pseudo-labels of all conversations.

        Raises:
            SignalError: a clip cannot be read, or holds NaN.
            AssetError: the cache cannot be written.
        """
        by_key = {
            label_key(example): example for split in self.splits.values() for example in split
        }
        self.labels = ArrayCache(
            self.context.cache_dir / "pseudo_labels", self._label_fingerprint()
        )
        # Without dropout: labels must be what inference would generate.
        model.eval()
        self.labels.fill(
            list(by_key),
            lambda keys: self._label(model, [by_key[key] for key in keys]),
            costs=[example.cost for example in by_key.values()],
            batch_size=self.config.label_batch,
            label="pseudo-labels",
        )

    def _label_fingerprint(self) -> str:
        """Fingerprint of all that labels depend on besides their conversation."""
        parents = {
            stage: checkpoint.fingerprint(folder) for stage, folder in self.context.parents.items()
        }
        # The order is part of the fingerprint.
        makers = [
            parents,
            self.data_fingerprints(),
            asdict(self.config.rule),
            self.config.max_words,
            self.config.released_form,
            self.context.bf16,
        ]
        return hashlib.sha256(json.dumps(makers, sort_keys=True).encode()).hexdigest()[:16]

    @torch.no_grad()
    def _label(self, model: ReleaseSpeechLLM, examples: Sequence[ReleaseExample]) -> list[Tensor]:
        """Pseudo-labels of each conversation, as `packed` returns them."""
        device = next(model.parameters()).device
        batch = self.reader.collate(examples).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.context.bf16):
            texts = list(self._segment_texts(model.release, teacher_forced(model, batch)))
            flat = [text for row in texts for text in row]
            units = iter(generate_unit_ids(model.release, flat, self.config.max_words))
        return [packed([(len(text), next(units)) for text in row]) for row in texts]

    def _segment_texts(
        self, model: PublishedEchoX, text_pass: TextPass
    ) -> Iterator[list[list[int]]]:
        """Greedy token ids of each answer's segments, without the end of the turn."""
        states, _ = states_and_targets(text_pass.hidden, text_pass.labels)
        text = model.language.logits(states).argmax(-1).tolist()
        cutter = Cutter(SegmentsConfig(rule=self.config.rule), model.language)
        scores = cutter.scores(states).tolist()
        counts = (text_pass.labels[:, 1:] != IGNORE).sum(1).tolist()
        # States of all rows stand one after the other.
        start = 0
        for count in counts:
            end = start + count - 1  # without the end of the turn
            yield [
                text[start + segment.start : start + segment.end]
                for segment in segments(scores[start:end], cutter.rule)
            ]
            start += count

    def examples(self, split: str) -> Examples:
        examples = ReleaseExamples(self.splits[split], self.rows)
        return LabelledReleaseExamples(examples, self.labels)

    def collate(self, examples: Sequence[LabelledReleaseExample]) -> SegmentsBatch:
        """Pad conversations to ids [B, N], and their segments to units [B, C, T].

        Raises:
            SignalError: a clip cannot be read, or holds NaN.
        """
        conversations = self.reader.collate([labelled.example for labelled in examples])
        # [B, C]; -1 is no length.
        lengths = padded([labelled.lengths for labelled in examples], -1)
        C = lengths.shape[1]
        # Rows with fewer segments are filled up with empty ones, so that all can be reshaped.
        units = [
            segment
            for labelled in examples
            for segment in [*labelled.units, *[()] * (C - len(labelled.units))]
        ]
        flat = padded(units, IGNORE)  # [B * C, T]
        return SegmentsBatch(
            row_ids=conversations.row_ids,
            # At least 1, since the loss is divided by it.
            count=max(1, int((flat != IGNORE).sum())),
            conversations=conversations,
            lengths=lengths,
            units=flat.reshape(*lengths.shape, -1),
        )

    def forward(self, model: ReleaseSpeechLLM, batch: SegmentsBatch) -> EchoOutputs:
        """States [N, C] of the unit translator at its N targets, and text logits [L, V]."""
        text_pass = teacher_forced(model, batch.conversations)
        return segment_outputs(model.release, text_pass, batch.lengths, batch.units)

    def score(
        self, model: ReleaseSpeechLLM, batches: Callable[[], Iterable[Batch]]
    ) -> dict[str, float]:
        """Unit error rate against the pseudo-labels, over `scored_rows` validation rows."""
        errors = units = rows = 0
        tokens = model.release.tokens
        for batch in batches():
            if rows >= self.config.scored_rows:
                break
            cut = answer_segments(teacher_forced(model, batch.conversations), batch.lengths)
            # Segments in the order of rows and places, as `batch.units[...]` below.
            generated = model.release.speak(cut.states, cut.lengths, self.config.max_words)
            targets = batch.units[batch.lengths > 0].tolist()
            for ids, labels in zip(generated.rows(), targets, strict=True):
                reference = tokens.units([label for label in labels if label != IGNORE])
                errors += edit_distance(tokens.units(ids), reference)
                units += len(reference)
            rows += len(batch.row_ids)
        return {"unit_error": errors / max(1, units)}

    def audit_batch(self, model: ReleaseSpeechLLM, batch: SegmentsBatch) -> AuditBatch:
        tokens, conversations = self.reader.tokens, batch.conversations
        units = [
            self._segment_targets(model.release.translator, row, batch.units[row, place])
            for row, place in (batch.lengths > 0).nonzero().tolist()
        ]
        return AuditBatch(
            tracks=[*conversation_targets(tokens, conversations), *units],
            ctc_targets=clip_targets(tokens, conversations),
            padding=end_id_padding(conversations.ids, tokens.end_id),
            unit_count=vocoder_unit_count(self.config.checkpoint),
            notes=[WINDOWS_NOTE],
        )

    def _segment_targets(self, translator: UnitTranslator, row: int, units: Tensor) -> TokenTargets:
        """Targets of a segment, from its pseudo-label [T]."""
        tokens = self.reader.tokens
        # A label as long as allowed may lack its end.
        is_cut = int((units != IGNORE).sum()) >= self.config.max_words
        return TokenTargets(
            row,
            "units",
            read=units,
            scored=units,
            ahead=0,
            length=length_with_end(units, tokens.end_id),
            ids=translator_vocabulary(translator),
            swaps=unit_id_range(tokens),
            stop=None if is_cut else tokens.end_id,
            text=token_text(tokens),
            units=units_of_ids(tokens, units.tolist()),
        )


def label_key(example: ReleaseExample) -> str:
    """Key of a conversation's labels: its token ids and clips, as released rows have no ids."""
    content = json.dumps([example.ids, list(map(str, example.clips))])
    return hashlib.sha256(content.encode()).hexdigest()[:24]


def generate_unit_ids(
    model: PublishedEchoX, texts: Sequence[Sequence[int]], max_tokens: int
) -> list[list[int]]:
    """Decode the unit tokens of texts by T2C, each framed as in T2C's own training.

    Args:
        model: whose unit translator is T2C.
        texts: token ids of each text.
        max_tokens: unit tokens of a text at most.

    Returns:
        unit token ids of each text, with the end id unless the limit was met.
    """
    if not texts:
        return []
    tokens, device = model.tokens, model.language.head.weight.device
    header = tokens.before_text(model.compatibility, begin=False)
    rows = []
    for text in texts:
        # Not twice: the greedy text of an answer's first segment may begin with it already.
        begin = [] if text[:1] == [tokens.begin_id] else [tokens.begin_id]
        rows.append([*header, *begin, *text, *tokens.after_text()])
    # End ids within the text are hidden too, as in T2C's training.
    ids = padded(rows, tokens.end_id).to(device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    prompt = model.translator.prefix_prompt(ids, lengths, ids != tokens.end_id)
    generated = generate_after_text(model.translator, prompt, tokens.end_id, max_tokens)
    return [
        [*ids, *([tokens.end_id] if ended else [])]
        for ids, ended in zip(generated.rows(), generated.ended.tolist())
    ]


def packed(labels: Sequence[tuple[int, Sequence[int]]]) -> Tensor:
    """Segments (text tokens, unit ids) of an answer as one int32 array.

    The array holds the number of segments, the text tokens of each, the number of unit ids of
    each, then all unit ids.
    """
    lengths = [length for length, _ in labels]
    sizes = [len(units) for _, units in labels]
    ids = [token for _, units in labels for token in units]
    return torch.tensor([len(labels), *lengths, *sizes, *ids], dtype=torch.int32)


def unpacked(values: Sequence[int]) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """The inverse of `packed`: text tokens of each segment, and unit ids of each segment."""
    count = values[0]
    lengths, sizes = values[1 : 1 + count], values[1 + count : 1 + 2 * count]
    units, start = [], 1 + 2 * count
    for size in sizes:
        units.append(tuple(values[start : start + size]))
        start += size
    return tuple(lengths), tuple(units)
