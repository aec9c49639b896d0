"""A worked example of a stage after S2T: preference tuning (DPO) of answers to spoken questions.

    echox-train recipe=preference run_dir=runs/echo_mini preference.task.data.train=[pairs.jsonl]

A row of the manifest is a spoken question with two written answers: the assistant's last turn has
the preferred one as its `value`, as in any manifest, and the other one as `rejected`. The policy
starts from the finished S2T stage; its LoRA is trained, and the speech adapter is frozen. The
reference is the S2T stage itself, whose log-probabilities never change, so that they are computed
once and stored in `cache_dir`.

Source: Rafailov et al. 2023, Direct Preference Optimization, arXiv:2305.18290.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from echox.backbones.base import Backbone
from echox.codecs.base import Codec
from echox.core import checkpoint as checkpoints
from echox.core.checkpoint import Checkpoint
from echox.core.config import neutral
from echox.core.errors import ConfigError, ManifestError
from echox.core.signals import Batch, Loss, Outputs
from echox.core.sources import code_of
from echox.criteria.base import CRITERIA, Criterion, CriterionConfig
from echox.data.cache import ArrayCache
from echox.data.manifest import Row
from echox.encoders.base import features_fingerprint
from echox.models.frozen import halve_frozen
from echox.models.speech_llm import IGNORE, SpeechLLM
from echox.tasks.base import (
    TASKS,
    AuditBatch,
    Examples,
    Outline,
    StageContext,
    Task,
    TaskConfig,
    Use,
)
from echox.tasks.conversations import SpokenData, SpokenDataConfig, conversation_ids
from echox.tasks.restored import empty_speech_llm, filled, recorded_adapter
from echox.tasks.s2t.frozen_states import conversation_key
from echox.tasks.s2t.task import (
    Conversation,
    SpeechTextBatch,
    adapter_token_ids,
    build_speech_llm,
    collate_conversations,
    padding_of,
    speech_llm_state_dict,
    teacher_forced,
)
from echox.tasks.trained_encoder import check_encoder

REJECTED = "rejected"  # the key of the answer that is not preferred, beside the preferred `value`
REFERENCE_BATCH_COST = 8_000  # tokens scored by the reference at once
FRAMES_PER_TOKEN = 8  # encoder frames that cost as much as a token


@dataclass(kw_only=True, slots=True)
class PreferenceConfig(TaskConfig):
    """Pairs of answers to spoken questions, one of them preferred."""

    data: SpokenDataConfig = field(default_factory=SpokenDataConfig)
    """Spoken conversations whose last assistant turn has a `value` and a `rejected` text."""
    batch_cost: int = neutral(REFERENCE_BATCH_COST)
    """Tokens that the reference scores at once before training."""

    def __post_init__(self) -> None:
        if self.batch_cost < 1:
            raise ConfigError(f"batch_cost must be at least 1 token, and is {self.batch_cost}")
        if self.data.augmentation is not None:
            raise ConfigError(
                "the reference scores each clip once, so clips cannot change; set augmentation=null"
            )


@dataclass(frozen=True, slots=True)
class Pair:
    """One question with both answers."""

    row_id: str
    preferred: Conversation
    rejected: Conversation


@dataclass(frozen=True, slots=True)
class PreferenceBatch(Batch):
    """B pairs: the preferred conversations of all, then the rejected ones."""

    conversations: SpeechTextBatch  # 2 B rows
    reference: Tensor  # [2 B] log-probability of each answer under the reference


@dataclass(frozen=True, slots=True)
class PreferenceOutputs(Outputs):
    """Log-probabilities of whole answers under the policy and the reference."""

    preferred: Tensor  # [B] under the policy
    rejected: Tensor  # [B]
    reference_preferred: Tensor  # [B]
    reference_rejected: Tensor  # [B]

    @classmethod
    def example(cls, seed: int, rows: int) -> tuple[PreferenceOutputs, Batch]:
        """Return random outputs of B = `rows` pairs, for the contract of criteria."""
        generator = torch.Generator().manual_seed(seed)
        row_ids = tuple(f"row-{number}" for number in range(rows))
        draws = [torch.randn(rows, generator=generator) for _ in range(4)]
        return cls(*draws), Batch(row_ids, max(1, rows))


class Pairs(Examples[Pair]):
    """Questions with both answers; the cost of one is the tokens of both conversations."""

    def __init__(self, pairs: Sequence[Pair], data: SpokenData) -> None:
        self.pairs, self.data = pairs, data

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Pair:
        return self.pairs[index]

    def cost(self, index: int) -> int:
        """Return the tokens of both conversations of a pair."""
        pair = self.pairs[index]
        return sum(conversation_cost(row, self.data) for row in (pair.preferred, pair.rejected))


def conversation_cost(row: Conversation, data: SpokenData) -> int:
    """Return the tokens of a conversation, its clips included at 8 encoder frames each."""
    frames = sum(data.frames(clip) for clip in row.clips)
    return len(row.prompt) + len(row.target) + frames // FRAMES_PER_TOKEN


@TASKS.register("preference", PreferenceConfig)
class PreferenceTask(Task[SpeechLLM, PreferenceBatch]):
    """Preference tuning of a finished S2T stage."""

    parents = ("s2t",)
    needs = ("encoder", "backbone")
    use = Use.answer

    def __init__(self, config: PreferenceConfig, context: StageContext) -> None:
        super().__init__(config, context)
        self.data = SpokenData(config.data, context.cache_dir)

    def build(self) -> SpeechLLM:
        """Build the S2T model with the weights of its checkpoint, the adapter frozen.

        Raises:
            CheckpointError: the checkpoint does not fit.
            ManifestError: no row has two different answers.
        """
        parent = checkpoints.load(self.context.parents["s2t"])
        shape = recorded_adapter(parent)
        model = build_speech_llm(self.context.parts, shape, adapter_token_ids(parent))
        check_encoder(model.encoder, parent)
        checkpoints.fill(model, parent, set(parent.tensors))
        model.adapter.freeze(alignment=True, look_back=True)
        # As S2T left it, where that trained it.
        model.encoder.requires_grad_(False)
        if self.context.bf16:
            halve_frozen(model.backbone)
        # Rows become token ids here, which only the backbone's tokenizer can make.
        self.backbone = model.backbone
        self.splits = {split: self._pairs(split) for split in ("train", "valid")}
        return model

    @classmethod
    def cannot_train_encoder_reason(cls, config: PreferenceConfig) -> str | None:
        return None  # it is that of S2T

    @classmethod
    def restore(
        cls,
        checkpoint: Checkpoint,
        *,
        backbone: Backbone | None = None,
        codec: Codec | None = None,
    ) -> SpeechLLM:
        """Rebuild the tuned S2T model for inference.

        Raises:
            CheckpointError: the checkpoint is damaged.
        """
        return filled(empty_speech_llm(checkpoint, ("s2t",), "", backbone), checkpoint)

    def _pairs(self, split: str) -> list[Pair]:
        pairs = [
            Pair(row.id, self._conversation(row, None), self._conversation(row, rejected))
            for row in self.data.rows(split)
            if row.answers_a_question
            and row.answer is not None
            and isinstance(rejected := row.answer.extra.get(REJECTED), str)
            and rejected not in ("", row.answer.text)
        ]
        if split == "train" and not pairs:
            raise ManifestError(
                f"no row of {', '.join(self.config.data.train)} has two different answers; "
                f"give the assistant's last turn a 'value' and a {REJECTED!r} text"
            )
        return pairs

    def _conversation(self, row: Row, answer: str | None) -> Conversation:
        """Encode a row in token ids, with its own answer or with another one."""
        if answer is not None:
            last = dataclasses.replace(row.turns[-1], text=answer)
            row = dataclasses.replace(row, turns=(*row.turns[:-1], last))
        prompt, target, clips = conversation_ids(self.backbone, row)
        return Conversation(row.id, tuple(prompt), tuple(target), tuple(clips), (), "")

    def manifests(self) -> list[str]:
        return [*self.config.data.train, *self.config.data.valid]

    def outline(self, parents: Mapping[str, Outline]) -> Outline:
        """Return the sizes of S2T with a frozen adapter, for two conversations at once."""
        s2t = parents["s2t"]
        s2t.module("", SpeechLLM).adapter.freeze(alignment=True, look_back=True)
        # Both answers of a pair are in memory at once.
        longest = None if s2t.longest_cost is None else 2 * s2t.longest_cost
        return dataclasses.replace(s2t, longest_cost=longest)

    def trained_state_dict(self, model: SpeechLLM) -> dict[str, Tensor]:
        return speech_llm_state_dict(model)

    def prepare(self, model: SpeechLLM) -> None:
        """Store the encoder's features, and the log-probabilities of the reference."""
        # Both answers of a pair follow the same clips.
        clips = {
            split: [clip for pair in pairs for clip in pair.preferred.clips]
            for split, pairs in self.splits.items()
        }
        self.data.cache_features(
            clips, model.encoder, bf16=self.context.bf16, label="encoding questions"
        )
        parent = checkpoints.fingerprint(self.context.parents["s2t"])
        # All that decides a log-probability, so that another S2T never reads these.
        parts = f"{parent}|{features_fingerprint(model.encoder)}|{model.backbone.fingerprint()}"
        parts += f"|{code_of(model.backbone).digest}"
        maker = hashlib.sha256(f"{parts}|{self.context.bf16}".encode()).hexdigest()[:24]
        self.reference = ArrayCache(self.context.cache_dir / "reference_log_probs", maker)
        self._score_by_reference(model)

    @torch.no_grad()
    def _score_by_reference(self, model: SpeechLLM) -> None:
        """Store the log-probability of every answer under the model, which is not trained yet."""
        # By key, since one row may be in both splits.
        rows = {
            _key(row): row
            for split in self.splits
            for pair in self._usable(split)
            for row in (pair.preferred, pair.rejected)
        }

        def compute(keys: list[str]) -> list[Tensor]:
            batch = self._collate([rows[key] for key in keys]).to(self.context.device)
            device_type, bf16 = self.context.device.type, self.context.bf16
            with torch.autocast(device_type, torch.bfloat16, enabled=bf16):
                # One array [1] for each answer
                return list(answer_log_probs(model, batch).float().cpu()[:, None])

        was_training = model.training
        # Without dropout, of which the stored numbers would be one draw.
        model.eval()
        costs = [conversation_cost(row, self.data) for row in rows.values()]
        limit = self.config.batch_cost
        self.reference.fill(list(rows), compute, costs=costs, batch_cost=limit, label="reference")
        model.train(was_training)

    def _usable(self, split: str) -> list[Pair]:
        """Return the pairs of a split whose clips could all be encoded."""
        pairs = self.splits[split]
        return [pair for pair in pairs if all(map(self.data.usable, pair.preferred.clips))]

    def examples(self, split: str) -> Pairs:
        return Pairs(self._usable(split), self.data)

    def collate(self, examples: Sequence[Pair]) -> PreferenceBatch:
        """Pad B pairs into one batch of 2 B conversations."""
        rows = [pair.preferred for pair in examples] + [pair.rejected for pair in examples]
        reference = torch.cat([self.reference[_key(row)] for row in rows])
        row_ids = tuple(pair.row_id for pair in examples)
        return PreferenceBatch(row_ids, len(examples), self._collate(rows), reference)

    def _collate(self, rows: Sequence[Conversation]) -> SpeechTextBatch:
        # CTC is not trained here, so no clip has targets.
        without_ctc = [dataclasses.replace(row, transcripts=((),) * len(row.clips)) for row in rows]
        return collate_conversations(without_ctc, self.data, index=[])

    def forward(self, model: SpeechLLM, batch: PreferenceBatch) -> PreferenceOutputs:
        """Compute the log-probabilities [B] of both answers under the policy."""
        policy = answer_log_probs(model, batch.conversations)  # [2 B]
        return PreferenceOutputs(*policy.chunk(2), *batch.reference.chunk(2))

    def score(
        self, model: SpeechLLM, batches: Callable[[], Iterable[PreferenceBatch]]
    ) -> dict[str, float]:
        """Return the share of pairs whose margin is positive, as "preference_accuracy"."""
        correct = pairs = 0
        for batch in batches():
            correct += int((margins(self.forward(model, batch)) > 0).sum())
            pairs += len(batch.row_ids)
        return {"preference_accuracy": correct / max(1, pairs)}

    def audit_batch(self, model: SpeechLLM, batch: PreferenceBatch) -> AuditBatch:
        """Return both answers of each pair as notes, for a person to compare."""
        labels, text = batch.conversations.labels, model.backbone.detokenize
        # The labels [2 B, S] hold the answers alone, without prompts.
        answers = [text(row[row != IGNORE].tolist()) for row in labels]
        B = len(batch.row_ids)
        notes = [
            f"{row}: {preferred!r} is preferred to {rejected!r}"
            for row, preferred, rejected in zip(
                batch.row_ids, answers[:B], answers[B:], strict=True
            )
        ]
        return AuditBatch(padding=padding_of(batch.conversations), notes=notes)

    def data_fingerprints(self) -> dict[str, str]:
        return self.data.fingerprints()


def _key(row: Conversation) -> str:
    return conversation_key(row.prompt, row.target, row.clips)


def answer_log_probs(model: SpeechLLM, batch: SpeechTextBatch) -> Tensor:
    """Return the log-probability of each answer [B] float32 in nats, its end token included."""
    _, hidden = teacher_forced(model, batch)
    is_target = batch.labels != IGNORE
    # Logits of targets alone: those of every position would take V floats each.
    scores = model.backbone.logits(hidden[is_target]).float().log_softmax(-1)  # [N, V]
    log_probs = scores.gather(1, batch.labels[is_target][:, None])[:, 0]  # [N]
    rows = is_target.nonzero()[:, 0]  # [N]
    return log_probs.new_zeros(len(batch.labels)).index_add(0, rows, log_probs)


def margins(outputs: PreferenceOutputs) -> Tensor:
    """Return the policy's preference [B] for the preferred answer over the reference's, in nats."""
    preferred = outputs.preferred - outputs.reference_preferred
    rejected = outputs.rejected - outputs.reference_rejected
    return preferred.float() - rejected.float()


@dataclass(kw_only=True, slots=True)
class DpoConfig(CriterionConfig):
    """Direct preference optimisation."""

    beta: float = 0.1
    """Strength of the penalty on leaving the reference; 0.1 in the paper."""

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ConfigError(f"beta must be more than 0, and is {self.beta}")


@CRITERIA.register("dpo", DpoConfig)
class DpoCriterion(Criterion[PreferenceOutputs]):
    """-log sigmoid(beta * margin), summed over pairs; equation 7 of arXiv:2305.18290."""

    def __init__(self, config: DpoConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, outputs: PreferenceOutputs, batch: Batch) -> Loss:
        """Compute the loss, summed over B pairs, with the accuracy and the mean margin in nats."""
        margin = margins(outputs)
        pairs = margin.new_tensor(len(margin))
        parts = {
            "accuracy": ((margin > 0).sum(), pairs),
            "margin": (margin.detach().sum(), pairs),
        }
        return Loss(-F.logsigmoid(self.config.beta * margin).sum(), batch.count, parts)
