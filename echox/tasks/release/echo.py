"""Echo in the released form: the unit translator learns from hidden states, segment by segment."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial

import torch
from torch import Tensor

from echox.core import checkpoint
from echox.core.config import neutral, refuse_below
from echox.core.indexable import Indexable
from echox.core.signals import padded
from echox.criteria.base import EchoOutputs
from echox.models.release.echo import ReleaseEcho
from echox.models.release.model import PublishedEchoX, ReleaseSpeechLLM
from echox.models.release.train_forward import answer_states, segment_outputs
from echox.models.release.translator import UnitTranslator
from echox.models.release.unit_decoding import generate_after_text
from echox.models.segmenting import RELEASE_RULE, SegmentRule
from echox.models.speech_llm import IGNORE
from echox.tasks.base import TASKS, AuditBatch, Examples, TokenTargets
from echox.tasks.conversations import UnitPair, unit_error
from echox.tasks.echo.cached_labels import CachedLabels, LabelledBatch, LabelledConversation
from echox.tasks.echo.pseudo_labels import PseudoLabels, make_labels
from echox.tasks.release.audit import (
    token_text,
    translator_vocabulary,
    unit_id_range,
    units_of_ids,
)
from echox.tasks.release.conversations import ReleaseExample
from echox.tasks.release.spoken import FullModelConfig, SpokenTask, teacher_forced
from echox.tasks.views import length_with_end


@dataclass(kw_only=True, slots=True)
class ReleaseEchoTaskConfig(FullModelConfig):
    """Echo training of a published model on spoken conversations, without recorded answers.

    The last answer of each is synthesized.

    Raises:
        ConfigError: a number is out of range.
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

    def __post_init__(self) -> None:
        refuse_below(self, 1, "max_words", "label_batch")
        refuse_below(self, 0, "scored_rows")


@TASKS.register("published_echo", ReleaseEchoTaskConfig)
class ReleaseEchoTask(SpokenTask[LabelledBatch]):
    """Stage III from a published folder.

    The states that predict the reference answer are cut as in streaming; for the greedy text X' of
    each segment the frozen T2C generates its label Y'. Labels are computed once, before training,
    and cached under the fingerprints of all they depend on.

    Source: EchoX (arXiv:2509.09174), Echo training; the branch finetune_kd of its release.
    """

    def read(self, split: str) -> Indexable[ReleaseExample]:
        return self.reader.read(split, last_only=True, lengths=partial(self.lengths_path, split))

    def prepare(self, model: ReleaseSpeechLLM) -> None:
        """Compute and cache the pseudo-labels of all conversations.

        Raises:
            SignalError: a clip cannot be read, or holds NaN.
            AssetError: the cache cannot be written.
        """
        self.labels = CachedLabels(
            self.context.cache_dir / "pseudo_labels",
            self._label_makers(),
            lambda model: partial(self._label, model),
            batch_size=self.config.label_batch,
            filled_before=False,
        )
        # Without dropout: labels must be what inference would generate.
        self.labels.prepare(model.eval(), map(self.conversations, self.splits))

    def _label_makers(self) -> dict[str, str]:
        """All that labels depend on besides their conversation, by name."""
        settings = {
            "rule": asdict(self.config.rule),
            "max_words": self.config.max_words,
            "released_form": self.config.released_form,
            "bf16": self.context.bf16,
        }
        return {
            **{role: checkpoint.fingerprint(path) for role, path in self.context.parents.items()},
            **self.data_fingerprints(),
            "settings": json.dumps(settings, sort_keys=True),
        }

    @torch.no_grad()
    def _label(self, model: ReleaseSpeechLLM, examples: Sequence[ReleaseExample]) -> PseudoLabels:
        """Label B conversations with the greedy text of their states, and T2C's units of it."""
        device = next(model.parameters()).device
        batch = self.reader.collate(examples).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.context.bf16):
            states, _, lengths = answer_states(teacher_forced(model, batch))
            text = model.release.language.logits(states).argmax(-1)  # [B, S]
            echo = ReleaseEcho(model, self.config.rule)
            return make_labels(echo, partial(self._targets, model.release), states, lengths, text)

    def _targets(self, release: PublishedEchoX, text: Tensor, lengths: Tensor) -> list[list[int]]:
        """Unit ids of texts [G, S] of some lengths [G]."""
        texts = [row[:length] for row, length in zip(text.tolist(), lengths.tolist())]
        return generate_unit_ids(release, texts, self.config.max_words)

    def examples(self, split: str) -> Examples:
        return self.labels.examples(self.conversations(split))

    def collate(self, examples: Sequence[LabelledConversation]) -> LabelledBatch:
        """Pad conversations to ids [B, N], and their segments to units [G, T].

        Raises:
            SignalError: a clip cannot be read, or holds NaN.
        """
        return self.labels.batch(examples, self.reader.collate)

    def forward(self, model: ReleaseSpeechLLM, batch: LabelledBatch) -> EchoOutputs:
        """States [N, C] of the unit translator at its N targets, and text logits [L, V]."""
        text_pass = teacher_forced(model, batch.conversation)
        return segment_outputs(model.release, text_pass, batch.spans, batch.targets)

    def score(
        self, model: ReleaseSpeechLLM, batches: Callable[[], Iterable[LabelledBatch]]
    ) -> dict[str, float]:
        """Unit error rate against the pseudo-labels, over `scored_rows` validation rows."""
        tokens, echo = model.release.tokens, ReleaseEcho(model, self.config.rule)

        def pairs(batch: LabelledBatch) -> Iterator[UnitPair]:
            states, _, _ = answer_states(teacher_forced(model, batch.conversation))
            generated = echo.speak_segments(states, batch.spans, self.config.max_words)
            for hypothesis, labels in zip(generated, batch.targets.tolist(), strict=True):
                yield hypothesis, tokens.units([label for label in labels if label != IGNORE])

        return unit_error(batches(), pairs, self.config.scored_rows)

    def audit_batch(self, model: ReleaseSpeechLLM, batch: LabelledBatch) -> AuditBatch:
        translator = model.release.require_translator()
        units = [
            self._segment_targets(translator, row, targets)
            for row, targets in batch.segment_targets()
        ]
        return self.audit_conversations(batch.conversation, units)

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
    prompt = model.require_translator().prefix_prompt(ids, lengths, ids != tokens.end_id)
    generated = generate_after_text(model.require_translator(), prompt, tokens.end_id, max_tokens)
    return [
        [*ids, *([tokens.end_id] if ended else [])]
        for ids, ended in zip(generated.rows(), generated.ended.tolist())
    ]
