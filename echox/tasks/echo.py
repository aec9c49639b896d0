"""Echo: speech from the language model's own hidden states, with labels that S2T and T2C make themselves."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from echox import checkpoint
from echox.checkpoint import Checkpoint
from echox.codecs.base import CODECS, Codec
from echox.criteria.base import EchoOutputs
from echox.data.cache import ArrayCache
from echox.data.text import edit_distance
from echox.errors import CheckpointError
from echox.models.denoising import DenoisingAdapter, DenoisingConfig
from echox.models.echo import EchoModel
from echox.models.footprint import BYTES_PER_CHANNEL, SCORE_BYTES, layer_bytes
from echox.models.frozen import halve_frozen
from echox.models.speech_llm import IGNORE
from echox.signals import Batch
from echox.tasks.base import TASKS, Examples, Outline, Parts, StageContext, Task, TaskConfig
from echox.tasks.speech_text import (
    ANSWER_SHARE,
    ASSUMED,
    Conversation,
    SpeechTextBatch,
    SpeechTextTask,
    SpeechTextTaskConfig,
    adapter_token_ids,
    build_speech_llm,
    learned_speech_llm,
    longest_conversation,
    speech_llm_activations,
    speech_llm_parts,
    teacher_forced,
)
from echox.tasks.spoken import SpokenDataConfig, padded
from echox.tasks.text_units import build_voice, voice_parts

WORDS_PER_TOKEN = 4.57  # of EchoX's unit language (its table 5)


@dataclass(kw_only=True, slots=True)
class EchoTaskConfig(TaskConfig):
    """Echo training on spoken conversations; no recorded answer is needed."""

    data: SpokenDataConfig = field(default_factory=SpokenDataConfig)
    """Spoken conversations with written answers."""
    denoiser: DenoisingConfig = field(default_factory=DenoisingConfig)
    """Shape of the denoising adapter."""
    rows: int | None = None
    """Training conversations drawn from the manifests; null takes all."""
    train_speech_llm: bool = True
    """Train LoRA and the speech adapter too, as the paper does; off, the S2T model stays as it is and only its voice is trained."""
    speech_llm_lr_scale: float = 0.1
    """Learning rate of LoRA and the speech adapter as a multiple of the stage's."""
    label_batch: int = 16
    """Conversations labelled at once."""
    scored_rows: int = 64
    """Validation rows that are spoken and compared with their pseudo-labels."""


@dataclass(frozen=True, slots=True)
class EchoBatch(Batch):
    """Spoken conversations with pseudo-labels."""

    conversation: SpeechTextBatch
    text: Tensor  # [B, S] pseudo-label text X', one token per answer position, 0-padded
    text_lengths: Tensor  # [B]
    targets: Tensor  # [B, U] pseudo-label units Y', as the decoder's output ids, IGNORE-padded


@dataclass(frozen=True, slots=True)
class Labelled:
    """A conversation and what the frozen teachers make of its answer."""

    conversation: Conversation
    text: tuple[int, ...]
    target: tuple[int, ...]


class LabelledConversations(Examples):
    """Conversations with pseudo-labels."""

    def __init__(self, conversations: Examples, labels: ArrayCache) -> None:
        self.conversations, self.labels = conversations, labels

    def __len__(self) -> int:
        return len(self.conversations)

    def __getitem__(self, index: int) -> Labelled:
        conversation = self.conversations[index]
        stored = self.labels[conversation.row_id].tolist()
        text = len(conversation.target) - 1
        return Labelled(conversation, tuple(stored[:text]), tuple(stored[text:]))

    def cost(self, index: int) -> int:
        return self.conversations.cost(index)


def load_echo_model(parts: Parts, speech_text: Checkpoint, text_units: Checkpoint, denoiser: DenoisingConfig, codec: Codec) -> EchoModel:
    """S2T and T2C, as their checkpoints left them, joined by a fresh denoising adapter.

    Raises:
        CheckpointError: a checkpoint does not fit, or T2C was trained with another codec.
    """
    trained_with = text_units.meta["lineage"]["data"].get("codec")
    if trained_with != codec.fingerprint():
        raise CheckpointError(f"T2C checkpoint {text_units.folder} was trained with codec {trained_with}, but codec {codec.fingerprint()} is in use; set codec.folder to the former")
    adapter = TASKS.parse(speech_text.meta["recipe"]["s2t"]["task"]).adapter
    speech_llm = build_speech_llm(parts, adapter, adapter_token_ids(speech_text))
    checkpoint.fill(speech_llm, speech_text, set(speech_text.tensors))
    voice = build_voice(TASKS.parse(text_units.meta["recipe"]["t2c"]["task"]), speech_llm.backbone, codec)
    checkpoint.fill(voice, text_units, set(text_units.tensors))
    return EchoModel(speech_llm, DenoisingAdapter(denoiser, speech_llm.backbone.hidden_size), voice)


@TASKS.register("echo", EchoTaskConfig)
class EchoTask(Task):
    """Stage III: the unit decoder, begun as T2C, learns to speak hidden states; LoRA goes on learning text.

    Pseudo-labels: X' is the greedy reading of the frozen S2T model's states at every position of the reference answer, Y' what the
    frozen T2C says for X'. Both are made once, before training, and cached under the fingerprints of everything they come from.
    Source: EchoX (arXiv:2509.09174), Echo training.
    """

    parents = ("s2t", "t2c")

    def __init__(self, config: EchoTaskConfig, context: StageContext) -> None:
        super().__init__(config, context)
        self.speech_text = SpeechTextTask(SpeechTextTaskConfig(data=config.data), context)

    def build(self) -> EchoModel:
        self.codec = CODECS.build(self.context.parts.codec)
        speech_text, text_units = (checkpoint.load(self.context.parents[stage]) for stage in self.parents)
        model = load_echo_model(self.context.parts, speech_text, text_units, self.config.denoiser, self.codec)
        if self.context.bf16:
            halve_frozen(model.speech_llm.backbone)
        if not self.config.train_speech_llm:
            model.speech_llm.requires_grad_(False)
        self.speech_text.read(model.speech_llm)
        self._draw_rows()
        return model

    def manifests(self) -> list[str]:
        return [*self.config.data.train, *self.config.data.valid]

    def outline(self, parents: Mapping[str, Outline]) -> Outline:
        speech_llm, voice = parents["s2t"].model, parents["t2c"].model
        backbone, decoder = speech_llm.backbone, voice.decoder
        with torch.device("meta"):
            model = EchoModel(speech_llm, DenoisingAdapter(self.config.denoiser, backbone.hidden_size), voice)
        if self.context.bf16:
            halve_frozen(backbone)
        if not self.config.train_speech_llm:
            speech_llm.requires_grad_(False)
        heard = speech_llm_activations(speech_llm, 0) if self.config.train_speech_llm else {}
        spoken = ANSWER_SHARE * (1 + WORDS_PER_TOKEN) * layer_bytes(decoder.body, decoder.config.width)
        # Next-token scores at the answer are taken a second time, where the denoising adapter starts from them.
        denoised = ANSWER_SHARE * (SCORE_BYTES * backbone.vocab_size if self.config.denoiser.candidates and heard else 0)
        denoised += ANSWER_SHARE * BYTES_PER_CHANNEL * backbone.hidden_size
        return Outline(
            model=model,
            parts={**speech_llm_parts("speech_llm."), "denoising adapter": ["denoiser"], **voice_parts("voice.")},
            cost_unit="tokens",
            longest_cost=longest_conversation(self.config.data, speech_llm.encoder.frame_rate_hz),
            activations={**heard, "denoising adapter": denoised, "unit decoder": spoken},
            notes=[ASSUMED, f"activations: {WORDS_PER_TOKEN} unit-language words to a text token"],
        )

    def _draw_rows(self) -> None:
        rows = self.speech_text.splits["train"]
        if self.config.rows is not None and self.config.rows < len(rows):
            chosen = random.Random(self.context.seed).sample(range(len(rows)), self.config.rows)
            self.speech_text.splits["train"] = [rows[index] for index in sorted(chosen)]

    def learned(self, model: EchoModel) -> dict[str, Tensor]:
        tensors = {f"speech_llm.{name}": tensor for name, tensor in learned_speech_llm(model.speech_llm).items()}
        tensors |= {f"denoiser.{name}": tensor for name, tensor in model.denoiser.state_dict().items()}
        return tensors | {f"voice.{name}": tensor for name, tensor in model.voice.state_dict().items()}

    def parameter_groups(self, model: EchoModel) -> list[dict]:
        groups = [{"name": "voice", "params": [*model.denoiser.parameters(), *(p for p in model.voice.parameters() if p.requires_grad)], "lr_scale": 1.0}]
        speech_llm = [p for p in model.speech_llm.parameters() if p.requires_grad]
        return groups + ([{"name": "speech_llm", "params": speech_llm, "lr_scale": self.config.speech_llm_lr_scale}] if speech_llm else [])

    def prepare(self, model: EchoModel) -> None:
        self.speech_text.prepare(model.speech_llm)
        self.conversations = {split: self.speech_text.examples(split) for split in ("train", "valid")}
        self.labels = ArrayCache(self.context.cache_dir / "pseudo_labels", self._label_fingerprint())
        rows = {row.row_id: row for split in self.conversations.values() for row in split}
        costs = [len(row.prompt) + len(row.target) for row in rows.values()]
        model.eval()
        self.labels.fill(
            list(rows), lambda keys: self._label(model, [rows[key] for key in keys]), costs=costs, batch_size=self.config.label_batch, label="pseudo-labels"
        )

    def _label_fingerprint(self) -> str:
        makers = {stage: checkpoint.fingerprint(self.context.parents[stage]) for stage in self.parents}
        return hashlib.sha256(json.dumps([makers, self.data_fingerprints()], sort_keys=True).encode()).hexdigest()[:16]

    @torch.no_grad()
    def _label(self, model: EchoModel, rows: Sequence[Conversation]) -> list[Tensor]:
        device = next(model.parameters()).device
        batch = self.speech_text.collate(rows).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.context.bf16):
            _, states = teacher_forced(model.speech_llm, batch)
            hidden, lengths = answer_states(states, batch)
            text = model.speech_llm.backbone.logits(hidden).argmax(-1)
            targets = model.voice.decoder.generate_targets(model.voice.rows(text), lengths)
        return [torch.tensor([*ids[:length], *target], dtype=torch.int32) for ids, length, target in zip(text.tolist(), lengths.tolist(), targets)]

    def examples(self, split: str) -> Examples:
        return LabelledConversations(self.conversations[split], self.labels)

    def collate(self, examples: Sequence[Labelled]) -> EchoBatch:
        conversation = self.speech_text.collate([row.conversation for row in examples])
        return EchoBatch(
            row_ids=conversation.row_ids,
            count=sum(len(row.target) for row in examples),
            conversation=conversation,
            text=padded([row.text for row in examples], 0),
            text_lengths=torch.tensor([len(row.text) for row in examples]),
            targets=padded([row.target for row in examples], IGNORE),
        )

    def forward(self, model: EchoModel, batch: EchoBatch) -> EchoOutputs:
        conversation = batch.conversation
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.train_speech_llm):
            _, states = teacher_forced(model.speech_llm, conversation)
            hidden, lengths = answer_states(states, conversation)
            labels = conversation.labels != IGNORE
            text_logits = model.speech_llm.backbone.logits(states[labels])
            answer_logits = model.speech_llm.backbone.logits(hidden)
        denoised = model.denoise(hidden, answer_logits)
        states = model.voice.decoder(denoised, lengths, batch.targets)
        spoken = batch.targets != IGNORE
        real = torch.arange(denoised.shape[1], device=denoised.device)[None] < lengths[:, None]
        return EchoOutputs(
            unit_states=states[spoken],
            unit_labels=batch.targets[spoken],
            unit_head=model.voice.decoder.head,
            denoised=denoised[real],
            text_vectors=model.voice.rows(batch.text[:, : denoised.shape[1]])[real].detach(),
            text_logits=text_logits,
            text_labels=conversation.labels[labels],
        )

    def score(self, model: EchoModel, batches: Callable[[], Iterable[Batch]]) -> dict[str, float]:
        errors = units = rows = 0
        for batch in batches():
            if rows >= self.config.scored_rows:
                break
            _, states = teacher_forced(model.speech_llm, batch.conversation)
            hidden, lengths = answer_states(states, batch.conversation)
            for words, target in zip(model.speak(hidden, lengths), batch.targets.tolist()):
                reference = self.codec.units_of([word for word in target if 0 <= word < model.voice.decoder.word_count])
                errors += edit_distance(self.codec.units_of(words), reference)
                units += len(reference)
                rows += 1
        return {"unit_error": errors / max(1, units)}

    def data_fingerprints(self) -> dict[str, str]:
        return self.speech_text.data_fingerprints() | {"codec": CODECS.build(self.context.parts.codec).fingerprint()}


def answer_states(states: Tensor, batch: SpeechTextBatch) -> tuple[Tensor, Tensor]:
    """States that predict the answer's tokens, the end token left out: states [B, N, H] -> hidden [B, S, H], lengths [B]."""
    is_label = batch.labels != IGNORE
    lengths = is_label.sum(1) - 1
    S = max(1, int(lengths.max()))
    first = batch.prompt_lengths - 1
    at = (first[:, None] + torch.arange(S, device=states.device)).clamp(max=states.shape[1] - 1)
    return states.gather(1, at[..., None].expand(-1, -1, states.shape[2])), lengths
