"""S2T and unit prediction at once, on recorded units, in the released form; its "finetune"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from echox.core.errors import ManifestError
from echox.core.indexable import Indexable
from echox.core.signals import Batch
from echox.criteria.base import JointOutputs
from echox.models.release.model import ReleaseSpeechLLM
from echox.models.release.train_forward import joint_outputs
from echox.models.speech_llm import IGNORE
from echox.tasks.base import TASKS, AuditBatch
from echox.tasks.conversations import padded
from echox.tasks.release.audit import end_id_padding, translator_targets
from echox.tasks.release.conversations import ConversationBatch, ReleaseExample, ReleaseExamples
from echox.tasks.release.spoken import FullModelConfig, SpokenTask, teacher_forced
from echox.tasks.release.t2c import unit_token_ids


@dataclass(kw_only=True, slots=True)
class ReleaseJointTaskConfig(FullModelConfig):
    """Training of a published model on spoken conversations whose last answers have units."""


@dataclass(frozen=True, slots=True)
class JointBatch(Batch):
    """B spoken conversations, and their last answers as sequences [B, L] of text and units."""

    conversations: ConversationBatch
    # [B, L] the answer's text where it stands in `conversations.ids`, then its units; the end id
    # elsewhere.
    ids: Tensor
    labels: Tensor  # [B, L] the units, IGNORE elsewhere


@TASKS.register("published_joint", ReleaseJointTaskConfig)
class ReleaseJointTask(SpokenTask[JointBatch]):
    """The release's branch finetune: units of recorded answers from hidden states, beside S2T.

    The states are those at the answer's own tokens.

    Source: github.com/FreedomIntelligence/EchoX, models/echox_s2s.py, state of 2025-09-19.
    """

    def read(self, split: str) -> Indexable[ReleaseExample]:
        examples = self.reader.read(
            split,
            last_only=True,
            wanted=lambda example: bool(unit_token_ids(self.reader.tokens, example.units)),
            lengths=partial(self.lengths_path, split),
        )
        if split == "train" and not examples:
            raise ManifestError(
                f"no last answer of {', '.join(self.config.data.train)} has units that the "
                "checkpoint's unit words say; give them 'units', or use task published_echo"
            )
        return examples

    def examples(self, split: str) -> ReleaseExamples:
        return self.conversations(split)

    def collate(self, examples: Sequence[ReleaseExample]) -> JointBatch:
        """Pad conversations to ids [B, N], and their last answers to ids [B, L].

        Raises:
            SignalError: a clip cannot be read, or holds NaN.
        """
        conversations, end_id = self.reader.collate(examples), self.reader.tokens.end_id
        ids, labels = [], []
        for text, units in map(self._sequence, examples):
            # As wide as the conversations at least: `joint_outputs` finds the text by its place.
            spare = conversations.ids.shape[1] - len(text) - len(units)
            ids.append([*text, *units, *[end_id] * spare])
            labels.append([*[IGNORE] * len(text), *units, *[IGNORE] * spare])
        # Rows whose units reach past their conversation are longer than the others.
        padded_ids, padded_labels = padded(ids, end_id), padded(labels, IGNORE)
        count = int((padded_labels != IGNORE).sum())
        return JointBatch(conversations.row_ids, count, conversations, padded_ids, padded_labels)

    def _sequence(self, example: ReleaseExample) -> tuple[list[int], list[int]]:
        """Text and units of an answer for the unit translator.

        The text is the answer with its header at its place in the conversation, and what opens
        the units.
        """
        tokens = self.reader.tokens
        # The first label is the answer's first token, which follows its header.
        first = next(at for at, label in enumerate(example.labels) if label != IGNORE)
        start = first - len(tokens.header("assistant") + tokens.tokenize("\n"))
        # The answer ends with the end id that would close the text.
        closing = tokens.after_text()[1:]
        text = [*[tokens.end_id] * start, *example.ids[start:], *closing]
        # `read` takes no conversation without them.
        units = unit_token_ids(tokens, example.units) or []
        return text, [tokens.begin_id, *units, tokens.end_id]

    def forward(self, model: ReleaseSpeechLLM, batch: JointBatch) -> JointOutputs:
        """Text logits [N, V], CTC scores, and states of the unit translator at its targets.

        Raises:
            SignalError: the text of an answer is not what the S2T pass predicts.
        """
        conversations = batch.conversations
        return joint_outputs(
            model.release,
            teacher_forced(model, conversations),
            conversations.transcripts,
            conversations.labels,
            batch.ids,
            batch.labels,
            batch.ids != model.release.tokens.end_id,
        )

    def audit_batch(self, model: ReleaseSpeechLLM, batch: JointBatch) -> AuditBatch:
        tokens, translator = self.reader.tokens, model.release.require_translator()
        units = translator_targets(translator, tokens, batch.ids, batch.labels)
        padding = end_id_padding(batch.ids, tokens.end_id)
        return self.audit_conversations(batch.conversations, units, padding)
