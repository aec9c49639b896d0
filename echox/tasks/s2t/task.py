"""S2T: instruction tuning of a language model on spoken questions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from echox.backbones.base import BACKBONES, Backbone
from echox.codecs.base import Codec
from echox.core import checkpoint
from echox.core.checkpoint import Checkpoint
from echox.core.config import neutral, refuse_below, to_plain
from echox.core.errors import CheckpointError, ManifestError
from echox.core.sources import code_of
from echox.criteria.base import SpeechTextOutputs
from echox.data.manifest import NO_SPEECH, Row
from echox.data.text import contains_answer
from echox.decoding.greedy_text import greedy_text
from echox.encoders.base import build_encoder, trains
from echox.metrics.base import MetricConfig, text_scores
from echox.models.footprint import SCORE_BYTES
from echox.models.frozen import halve_frozen
from echox.models.speech_adapter import AdaptedSpeech, SpeechAdapter, SpeechAdapterConfig
from echox.models.speech_llm import IGNORE, PAD, Prompted, SpeechLLM, join_speech_llm
from echox.tasks.align.task import token_index
from echox.tasks.base import (
    TASKS,
    AuditBatch,
    Outline,
    Parts,
    StageContext,
    Task,
    TaskConfig,
    Use,
)
from echox.tasks.conversations import SpokenData, SpokenDataConfig, conversation_ids
from echox.tasks.restored import empty_speech_llm, filled
from echox.tasks.s2t.data import (
    Conversation,
    Conversations,
    SpeechTextBatch,
    clips_of,
    collate_conversations,
    padding_of,
)
from echox.tasks.s2t.estimates import (
    SHARES_NOTE,
    longest_conversation,
    speech_llm_activations,
    speech_llm_parts,
)
from echox.tasks.s2t.frozen_states import (
    CachedConversation,
    FrozenStates,
    StatesBatch,
    conversation_key,
)
from echox.tasks.trained_encoder import (
    encoded,
    encoder_group,
    encoder_notes,
    fill_encoder,
    masks_in_training,
    trained_encoder_state,
)
from echox.tasks.views import text_targets


@dataclass(kw_only=True, slots=True)
class SpeechTextTaskConfig(TaskConfig):
    """Instruction tuning on spoken conversations.

    Raises:
        ConfigError: a number is out of range.
    """

    data: SpokenDataConfig = field(default_factory=SpokenDataConfig)
    """Spoken conversations with written answers."""
    adapter: SpeechAdapterConfig = field(default_factory=SpeechAdapterConfig)
    """Shape of the adapter; that of the align stage."""
    adapter_lr_scale: float = 0.3
    """Learning rate of the adapter as a multiple of the stage's; it comes aligned, LoRA starts
    from nothing."""
    train_alignment: bool = True
    """Train the adapter's alignment encoder and CTC head too, as the papers do; off, they stay as
    the align stage left them, and only the look-back is trained. What they learn from few clips
    may cost what they learned from many."""
    train_look_back: bool = True
    """Train the adapter's look-back. Where the whole adapter is frozen and LoRA is in the upper
    layers alone (`lora.top_layers`), the states below are computed once and kept in `cache_dir`,
    and a step runs the upper layers only."""
    max_answer_tokens: int = neutral(48)
    """Tokens generated at most per answer in validation."""
    metrics: dict[str, MetricConfig] = neutral(default_factory=dict)
    """Further scores of the answers generated in validation, by the names that they get,
    `s2t.task.metrics.wer=wer`."""

    def __post_init__(self) -> None:
        refuse_below(self, 0, "adapter_lr_scale")
        refuse_below(self, 1, "max_answer_tokens")


def build_speech_llm(parts: Parts, adapter: SpeechAdapterConfig, token_ids: Tensor) -> SpeechLLM:
    """Load the S2T model's pretrained parts; adapter and LoRA are untrained.

    Args:
        parts: encoder and backbone of the recipe.
        adapter: shape of the adapter.
        token_ids: [C-1] tokens that CTC may emit.
    """
    encoder, backbone = build_encoder(parts.require_encoder()), BACKBONES.build(parts.backbone)
    return join_speech_llm(encoder, backbone, adapter, token_ids)


def freeze_adapter(adapter: SpeechAdapter, config: Any) -> None:
    """Freeze what a config with `train_alignment` and `train_look_back` does not train."""
    adapter.freeze(alignment=not config.train_alignment, look_back=not config.train_look_back)


def speech_llm_state_dict(model: SpeechLLM) -> dict[str, Tensor]:
    """Tensors that echox trains, by their names in the S2T model: adapter, LoRA, and encoder.

    Those of the encoder are there only where it is trained (`encoder.train`).
    """
    # The adapter's buffers too, which hold the tokens that CTC emits.
    tensors = {f"adapter.{name}": tensor for name, tensor in model.adapter.state_dict().items()}
    tensors |= {
        f"backbone.{name}": p for name, p in model.backbone.named_parameters() if "lora_" in name
    }
    return tensors | trained_encoder_state(model.encoder)


def adapter_token_ids(parent: checkpoint.Checkpoint) -> Tensor:
    """The tokens [C-1] that the CTC head of a trained adapter emits.

    Raises:
        CheckpointError: the checkpoint holds no adapter.
    """
    if "adapter.token_ids" not in parent.tensors:
        raise CheckpointError(
            f"{parent.folder} holds no speech adapter; "
            "it must come from the align, s2t or echo stage"
        )
    return parent.tensors["adapter.token_ids"]


@TASKS.register("s2t", SpeechTextTaskConfig)
class SpeechTextTask(Task[SpeechLLM, SpeechTextBatch | StatesBatch]):
    """Stage I: LoRA and the adapter learn to answer spoken questions.

    Source: EchoX (arXiv:2509.09174) and Soundwave (arXiv:2502.12900), speech-to-text training.
    """

    parents = ("align",)
    needs = ("encoder", "backbone")
    use = Use.answer

    def __init__(self, config: SpeechTextTaskConfig, context: StageContext) -> None:
        super().__init__(config, context)
        self.data = SpokenData(config.data, context.cache_dir)
        self.states: FrozenStates | None = None
        # Of the usable training conversations, under which their states are cached.
        self.keys: list[str] = []

    @classmethod
    def cannot_train_encoder_reason(cls, config: SpeechTextTaskConfig) -> str | None:
        return masks_in_training(config.data)

    @classmethod
    def restore(
        cls,
        checkpoint: Checkpoint,
        *,
        backbone: Backbone | None = None,
        codec: Codec | None = None,
    ) -> SpeechLLM:
        return filled(empty_speech_llm(checkpoint, (), "", backbone), checkpoint)

    def build(self) -> SpeechLLM:
        """Load the S2T model with the align stage's adapter, and read the manifests.

        Raises:
            CheckpointError: the align stage's checkpoint is missing, damaged or of another shape.
            ManifestError: no training row has an answer.
        """
        parent = checkpoint.load(self.context.parents["align"])
        model = build_speech_llm(self.context.parts, self.config.adapter, adapter_token_ids(parent))
        # Without the spelling head, which the align stage trains beside them.
        checkpoint.fill(model, parent.part("adapter."), {"adapter.token_ids"})
        fill_encoder(model, parent)
        freeze_adapter(model.adapter, self.config)
        # After freezing, because only frozen weights are rounded.
        if self.context.bf16:
            halve_frozen(model.backbone)
        self.read(model)
        return model

    def manifests(self) -> list[str]:
        return [*self.config.data.train, *self.config.data.valid]

    def outline(self, parents: Mapping[str, Outline]) -> Outline:
        parts = self.context.parts
        encoder = build_encoder(parts.require_encoder(), meta=True)
        backbone = BACKBONES.entry_of(parts.backbone).implementation.outline(parts.backbone)
        with torch.device("meta"):
            # On the meta device: their number counts, not their values.
            token_ids = parents["align"].module("adapter", SpeechAdapter).token_ids
            model = join_speech_llm(encoder, backbone, self.config.adapter, token_ids)
        freeze_adapter(model.adapter, self.config)
        if self.context.bf16:
            halve_frozen(model.backbone)
        return Outline(
            model=model,
            parts=speech_llm_parts(),
            cost_unit="tokens",
            longest_cost=longest_conversation(self.config.data, encoder.frame_rate_hz),
            activations=speech_llm_activations(model, SCORE_BYTES),
            notes=[SHARES_NOTE, *encoder_notes(encoder)],
        )

    def read(self, model: SpeechLLM) -> None:
        """Read the conversations of the manifests in the model's tokens.

        Raises:
            ManifestError: no training row has an answer.
        """
        self.backbone = model.backbone
        self.index = token_index(model.adapter.token_ids, self.backbone.vocab_size)
        # All in memory as token ids; clips stay on the disk.
        self.splits = {split: self._conversations(split) for split in ("train", "valid")}

    def _conversations(self, split: str) -> list[Conversation]:
        conversations = [
            self._conversation(row) for row in self.data.rows(split) if row.answers_a_question
        ]
        if split == "train" and not conversations:
            raise ManifestError(
                f"no row of {', '.join(self.config.data.train)} has an answer to learn, after a "
                "question; give the assistant's turns a 'value', and the user's before them one or "
                "'audio'"
            )
        return conversations

    def _conversation(self, row: Row) -> Conversation:
        prompt, target, clips = conversation_ids(self.backbone, row)
        # The transcription of a question stands on the turn that answers it.
        transcripts = [
            following.transcription
            for item, following in zip(row.turns, row.turns[1:])
            if item.audio is not None and item.audio in clips
        ]
        return Conversation(
            row.id,
            tuple(prompt),
            tuple(target),
            tuple(clips),
            tuple(tuple(self.backbone.tokenize(text)) for text in transcripts),
            str(row.extra.get("answer", "")),
            bool(row.extra.get(NO_SPEECH)),
        )

    def trained_state_dict(self, model: SpeechLLM) -> dict[str, Tensor]:
        return speech_llm_state_dict(model)

    def parameter_groups(self, model: SpeechLLM) -> list[dict]:
        # LoRA is all that is trained of the language model.
        lora = [p for p in model.backbone.parameters() if p.requires_grad]
        adapter = [p for p in model.adapter.parameters() if p.requires_grad]
        groups = [("adapter", adapter, self.config.adapter_lr_scale), ("lora", lora, 1.0)]
        own = [
            {"name": name, "params": params, "lr_scale": scale}
            for name, params, scale in groups
            if params
        ]
        return [*own, *encoder_group(model.encoder, self.context.parts.require_encoder().lr_scale)]

    def prepare(self, model: SpeechLLM) -> None:
        """Cache the encoder features of all clips, and the states of frozen layers.

        Raises:
            SignalError: no clip can be decoded; or one cannot, and broken ones are refused.
            AssetError: a cache cannot be written.
        """
        clips = {
            split: [clip for row in rows for clip in row.clips]
            for split, rows in self.splits.items()
        }
        self.data.cache_features(
            clips, model.encoder, bf16=self.context.bf16, label="encoding questions"
        )
        # In eval mode, because the states must not hold dropout.
        if self._has_constant_states(model):
            self._cache_states(model.eval())

    def _has_constant_states(self, model: SpeechLLM) -> bool:
        """Whether training conversations have the same states below the trained layers always."""
        trains_adapter = self.config.train_alignment or self.config.train_look_back
        changes = trains_adapter or trains(model.encoder) or self.data.augmentation is not None
        return not changes and model.backbone.frozen_layers() > 0

    def _cache_states(self, model: SpeechLLM) -> None:
        conversations = self._usable("train")
        # All that the states depend on besides the conversation; they name the cache.
        makers = {
            "align": checkpoint.fingerprint(self.context.parents["align"]),
            "encoder": model.encoder.fingerprint(),
            "backbone": model.backbone.fingerprint(),
            "layers": model.backbone.frozen_layers(),
            # Settings of the adapter that change its vectors and no weight.
            "adapter": to_plain(self.config.adapter),
            "bf16": self.context.bf16,
        }
        code = code_of(model.encoder, model.backbone)
        self.states = FrozenStates(self.context.cache_dir / "frozen_states", makers, code)
        self.keys = [conversation_key(row.prompt, row.target, row.clips) for row in conversations]
        # Batches of like cost, for padding runs through the frozen layers too.
        cost = Conversations(conversations, self.data).cost
        self.states.fill(
            self.keys,
            lambda indices: self._frozen_states(model, [conversations[i] for i in indices]),
            list(map(cost, range(len(conversations)))),
        )

    @torch.no_grad()
    def _frozen_states(self, model: SpeechLLM, rows: Sequence[Conversation]) -> list[Tensor]:
        """States [P, H] of each conversation after the frozen layers, on the CPU."""
        batch = self.collate_clips(rows).to(self.context.device)
        with torch.autocast(self.context.device.type, torch.bfloat16, enabled=self.context.bf16):
            prompted = model.prompt(batch.ids, model.adapter(batch.features), batch.clip_rows)
            states = model.backbone.forward_lower(prompted.embeddings, prompted.mask)
        # Under autocast in bfloat16, which halves the cache.
        stored = states.to(torch.bfloat16 if self.context.bf16 else torch.float32).cpu()
        lengths = prompted.mask.sum(1).tolist()
        return [row[:length] for row, length in zip(stored, lengths)]

    def _usable(self, split: str) -> list[Conversation]:
        return [row for row in self.splits[split] if all(map(self.data.usable, row.clips))]

    def examples(self, split: str) -> Conversations:
        keys = self.keys if self.states is not None and split == "train" else None
        # Validation and audits read the clips, since they run the whole model.
        return Conversations(self._usable(split), self.data, keys=keys)

    def collate(
        self, examples: Sequence[Conversation | CachedConversation]
    ) -> SpeechTextBatch | StatesBatch:
        """Pad conversations to one batch of ids [B, N] and features, or of states [B, P, H].

        Raises:
            SignalError: a clip that augmentation changes cannot be read.
        """
        # Batches are of one kind: `Conversations.at` gives cached ones to training alone.
        cached = [row for row in examples if isinstance(row, CachedConversation)]
        if cached and self.states is not None:
            return self.states.batch(cached)
        return self.collate_clips([row for row in examples if isinstance(row, Conversation)])

    def collate_clips(self, examples: Sequence[Conversation]) -> SpeechTextBatch:
        """Pad conversations to one batch of ids [B, N] and features [A, F, D].

        Raises:
            SignalError: a clip that augmentation changes cannot be read.
        """
        return collate_conversations(examples, self.data, self.index)

    def forward(self, model: SpeechLLM, batch: SpeechTextBatch | StatesBatch) -> SpeechTextOutputs:
        """Next-token logits [N, V] of the answers' N tokens, and CTC scores of the questions.

        Raises:
            SignalError: a conversation takes more positions than the language model has.
        """
        if isinstance(batch, StatesBatch):
            return self._forward_upper(model, batch)
        speech, hidden = teacher_forced(model, batch)
        is_target = batch.labels != IGNORE
        return SpeechTextOutputs(
            ctc_logits=speech.ctc_logits,
            frame_lengths=speech.frame_lengths,
            targets=batch.ctc_targets,
            target_lengths=batch.ctc_lengths,
            # At the targets alone: scores of all positions would be the largest tensor.
            text_logits=model.backbone.logits(hidden[is_target]),
            text_labels=batch.labels[is_target],
            silent=batch.silent,
            # A frozen alignment learns nothing from CTC's loss, but validation reports it.
            counts_ctc=model.adapter.learns_alignment or not model.training,
        )

    def _forward_upper(self, model: SpeechLLM, batch: StatesBatch) -> SpeechTextOutputs:
        hidden = model.backbone.forward_upper(batch.states, batch.mask())
        # No clip is read, so there is nothing for CTC: A is 0.
        no_targets = batch.targets.new_zeros(0, 1)
        return SpeechTextOutputs(
            ctc_logits=hidden.new_zeros(0, 1, 1),
            frame_lengths=no_targets[:, 0],
            targets=no_targets,
            target_lengths=no_targets[:, 0],
            text_logits=model.backbone.logits(batch.target_states(hidden)),
            text_labels=batch.targets[batch.targets != IGNORE],
            counts_ctc=False,
        )

    def score(
        self, model: SpeechLLM, batches: Callable[[], Iterable[SpeechTextBatch | StatesBatch]]
    ) -> dict[str, float]:
        """Share of generated answers that contain the gold answer, and the scores of `metrics`.

        A gold answer is what a manifest's row may have; `metrics` compare whole answers.
        """
        correct = graded = 0
        answers: list[tuple[str, str]] = []
        for batch in batches():
            if isinstance(batch, StatesBatch):
                continue  # of training alone; it has no prompt to answer
            texts = answer_texts(model, batch, self.config.max_answer_tokens)
            answers += zip(expected_texts(model, batch), texts)
            # Rows without a gold answer cannot be graded.
            pairs = [(text, gold) for text, gold in zip(texts, batch.answers) if gold]
            correct += sum(contains_answer(text, gold) for text, gold in pairs)
            graded += len(pairs)
        accuracy = {"answer_accuracy": correct / graded} if graded else {}
        return accuracy | text_scores(self.config.metrics, answers)

    def audit_batch(self, model: SpeechLLM, batch: SpeechTextBatch | StatesBatch) -> AuditBatch:
        if isinstance(batch, StatesBatch):
            return AuditBatch()  # of training alone; its inputs are no tokens
        targets = text_targets(batch.ids, batch.labels, batch.shared, model.backbone)
        return AuditBatch(list(targets), clips_of(model, batch), padding_of(batch))

    def data_fingerprints(self) -> dict[str, str]:
        return self.data.fingerprints()


def teacher_forced(model: SpeechLLM, batch: SpeechTextBatch) -> tuple[AdaptedSpeech, Tensor]:
    """Run the S2T model over conversations with their answers.

    Args:
        model: the S2T model.
        batch: B conversations of N ids at most.

    Returns:
        the adapter's output, and the hidden state at every id [B, N, H] (at PAD and AUDIO ids it
        is of no use).

    Raises:
        SignalError: a conversation takes more positions than the language model has.
    """
    speech = model.adapter(encoded(model.encoder, batch.features))
    prompted = model.prompt(batch.ids, speech, batch.clip_rows)
    hidden = model.backbone.forward_prefix_shared(prompted.embeddings, prompted.mask, batch.shared)
    # The last vector of a clip has the AUDIO id's place plus its width, so ids after it are found
    # by their own start.
    at = prompted.positions.clamp(max=hidden.shape[1] - 1)
    return speech, hidden.gather(1, at[..., None].expand(-1, -1, hidden.shape[2]))


def expected_texts(model: SpeechLLM, batch: SpeechTextBatch) -> list[str]:
    """Return the answers that a batch teaches, as text, one for each of its B rows."""
    labels = (row[row != IGNORE].tolist() for row in batch.labels)  # prompts are no targets
    return [model.backbone.detokenize(ids) for ids in labels]


@torch.no_grad()
def prompt_only(model: SpeechLLM, batch: SpeechTextBatch) -> Prompted:
    """Prompts of a batch without their answers, as embeddings [B, P, H].

    Raises:
        SignalError: a prompt takes more positions than the language model has.
    """
    width = int(batch.prompt_lengths.max())
    # Right-padded again: in shorter prompts of the batch answers begin before `width`.
    is_prompt = torch.arange(width, device=batch.ids.device)[None] < batch.prompt_lengths[:, None]
    ids = torch.where(is_prompt, batch.ids[:, :width], PAD)
    speech = model.adapter(encoded(model.encoder, batch.features))
    return model.prompt(ids, speech, batch.clip_rows)


def answer_texts(model: SpeechLLM, batch: SpeechTextBatch, max_tokens: int) -> list[str]:
    """Greedy answers to the prompts of a batch.

    Args:
        model: the S2T model.
        batch: B conversations; their answers are not read.
        max_tokens: tokens of an answer at most.

    Raises:
        SignalError: a prompt takes more positions than the language model has.
    """
    prompted = prompt_only(model, batch)
    generated = greedy_text(model.backbone, prompted.embeddings, prompted.mask, max_tokens)
    return [model.backbone.detokenize(ids) for ids in generated.rows()]
