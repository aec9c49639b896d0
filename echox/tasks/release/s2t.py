"""S2T in the released form: adapters and LoRA of a released EchoX learn to answer questions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from echox.core.indexable import Indexable
from echox.criteria.base import SpeechTextOutputs
from echox.models.release.model import ReleaseSpeechLLM
from echox.models.release.train_forward import text_outputs
from echox.tasks.base import TASKS, AuditBatch
from echox.tasks.release.conversations import ConversationBatch, ReleaseExample, ReleaseExamples
from echox.tasks.release.spoken import ReleaseTextConfig, SpokenTask, teacher_forced


@TASKS.register("published_s2t", ReleaseTextConfig)
class ReleaseTextTask(SpokenTask[ConversationBatch]):
    """Stage I from a published folder: cross-entropy of the answers, and CTC of the questions.

    CTC is over the language model's vocabulary.

    Source: Soundwave (arXiv:2502.12900) and EchoX (arXiv:2509.09174).
    """

    continues = ()
    has_translator = False

    def read(self, split: str) -> Indexable[ReleaseExample]:
        # Lazily: the name of the file needs fingerprints of all manifests.
        return self.reader.read(split, lengths=partial(self.lengths_path, split))

    def examples(self, split: str) -> ReleaseExamples:
        return self.conversations(split)

    def collate(self, examples: Sequence[ReleaseExample]) -> ConversationBatch:
        """Read the audio of conversations and pad them to one batch of ids [B, N].

        Raises:
            SignalError: a clip cannot be read, or holds NaN.
        """
        return self.reader.collate(examples)

    def forward(self, model: ReleaseSpeechLLM, batch: ConversationBatch) -> SpeechTextOutputs:
        """Next-token logits [N, V] of the answers' N tokens, and CTC scores of the questions."""
        return text_outputs(model.release, teacher_forced(model, batch), batch.transcripts)

    def audit_batch(self, model: ReleaseSpeechLLM, batch: ConversationBatch) -> AuditBatch:
        return self.audit_conversations(batch)
