"""S2T: a spoken question in, the answer's text out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from echox import checkpoint
from echox.backbones.base import BACKBONES
from echox.config import neutral, to_plain
from echox.criteria.base import SpeechTextOutputs
from echox.data.manifest import NO_SPEECH
from echox.data.text import contains_answer
from echox.encoders.base import ENCODERS
from echox.errors import CheckpointError, ManifestError
from echox.models.decoding import greedy_text
from echox.models.footprint import MIXTURE_BYTES, SCORE_BYTES, layer_bytes
from echox.models.frozen import halve_frozen
from echox.models.speech_adapter import AdaptedSpeech, SpeechAdapter, SpeechAdapterConfig
from echox.models.speech_llm import AUDIO, IGNORE, PAD, Prompted, SpeechLLM, join_speech_llm
from echox.signals import Batch, Features
from echox.tasks.alignment import adapter_activations, known_indices, token_index
from echox.tasks.base import TASKS, Examples, Hearing, Outline, Parts, StageContext, Task, TaskConfig, View, named_parts
from echox.tasks.frozen_states import (
    FrozenStates,
    KeptConversation,
    StatesBatch,
    conversation_key,
)
from echox.tasks.spoken import Clip, SpokenData, SpokenDataConfig, conversation_ids, padded, prompt_and_labels
from echox.tasks.views import heard_clips, past, text_of, text_tracks


FRAMES_PER_TOKEN = 8  # encoder frames that cost as much as a token
# What estimates assume of the tokens of a conversation, for want of the data.
HEARD_SHARE, ANSWER_SHARE = 0.5, 0.25
WRITTEN_TOKENS = 256  # of a long conversation


@dataclass(kw_only=True, slots=True)
class SpeechTextTaskConfig(TaskConfig):
    """Instruction tuning on spoken conversations."""

    data: SpokenDataConfig = field(default_factory=SpokenDataConfig)
    """Spoken conversations with written answers."""
    adapter: SpeechAdapterConfig = field(default_factory=SpeechAdapterConfig)
    """Shape of the adapter; that of the align stage."""
    adapter_lr_scale: float = 0.3
    """Learning rate of the adapter as a multiple of the stage's; it comes aligned, LoRA starts from nothing."""
    train_alignment: bool = True
    """Let the adapter's alignment encoder and CTC head learn too, as the papers do; off, it hears as the align stage taught it, and only
    the look-back learns. What it learns from few clips it may forget of many."""
    train_look_back: bool = True
    """Let the adapter's look-back learn. Where the whole adapter stands still and LoRA is in the upper layers alone (`lora.top_layers`), the
    states below are computed once and kept in `cache_dir`, and a step runs the upper layers only."""
    max_answer_tokens: int = neutral(48)
    """Tokens generated at most per answer in validation."""


@dataclass(frozen=True, slots=True)
class SpeechTextBatch(Batch):
    """Spoken conversations."""

    ids: Tensor  # [B, N] prompt and answer ids with AUDIO placeholders, PAD-padded
    labels: Tensor  # [B, N] the id that comes next, IGNORE where it is no target
    prompt_lengths: Tensor  # [B] ids before the answer
    features: Features  # A clips, in the order of their placeholders
    clip_rows: Tensor  # [A] the row of each clip
    ctc_targets: Tensor  # [A, S]
    ctc_lengths: Tensor  # [A]
    answers: tuple[str, ...]  # short gold answers, "" where the manifest has none
    shared: int = 0  # ids at the front that all rows have in common
    silent: Tensor | None = None  # bool [A], True where it is known that nobody speaks


@dataclass(frozen=True, slots=True)
class Conversation:
    """A row made ready."""

    row_id: str
    prompt: tuple[int, ...]
    target: tuple[int, ...]  # ends with the end token
    clips: tuple[Clip, ...]
    said: tuple[tuple[int, ...], ...]  # token ids of each clip's transcription, () where unknown
    answer: str
    silent: bool = False  # whether it is known that nobody speaks in its clips


class Conversations(Examples):
    """Spoken conversations with written answers."""

    def __init__(
        self,
        rows: Sequence[Conversation],
        data: SpokenData,
        frames_per_token: int = FRAMES_PER_TOKEN,
        keys: Sequence[str] | None = None,
    ) -> None:
        """Args: keys: of the rows' kept states, which training reads; None where none are kept."""
        self.rows, self.data, self.frames_per_token, self.keys = rows, data, frames_per_token, keys

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Conversation:
        return self.rows[index]

    def at(self, index: int, epoch: int) -> Conversation | KeptConversation:
        row = self.rows[index]
        if self.keys is not None:
            return KeptConversation(row.row_id, self.keys[index], row.target)
        return dataclasses.replace(row, clips=self.data.drawn(row.row_id, row.clips, epoch))

    def cost(self, index: int) -> int:
        row = self.rows[index]
        heard = sum(self.data.frames(clip) for clip in row.clips) // self.frames_per_token
        return len(row.prompt) + len(row.target) + heard


def build_speech_llm(parts: Parts, adapter: SpeechAdapterConfig, token_ids: Tensor) -> SpeechLLM:
    """The S2T model with pretrained parts loaded; adapter and LoRA as at the start of training."""
    return join_speech_llm(ENCODERS.build(parts.encoder), BACKBONES.build(parts.backbone), adapter, token_ids)


def freeze_adapter(adapter: SpeechAdapter, config: Any) -> None:
    """Leave what a config with `train_alignment` and `train_look_back` does not train."""
    adapter.freeze(alignment=not config.train_alignment, look_back=not config.train_look_back)


def learned_speech_llm(model: SpeechLLM) -> dict[str, Tensor]:
    """Adapter and LoRA: what echox trains of an S2T model."""
    tensors = {f"adapter.{name}": tensor for name, tensor in model.adapter.state_dict().items()}
    tensors |= {f"backbone.{name}": p for name, p in model.backbone.named_parameters() if "lora_" in name}
    return tensors


def adapter_token_ids(parent: checkpoint.Checkpoint) -> Tensor:
    """The tokens a trained adapter's CTC emits.

    Raises:
        CheckpointError: the checkpoint holds no adapter.
    """
    if "adapter.token_ids" not in parent.tensors:
        raise CheckpointError(f"{parent.folder} holds no speech adapter; it must come from the align, s2t or echo stage")
    return parent.tensors["adapter.token_ids"]


@TASKS.register("s2t", SpeechTextTaskConfig)
class SpeechTextTask(Task):
    """Stage I: LoRA and the adapter learn to answer what is heard."""

    parents = ("align",)
    needs = ("encoder", "backbone")

    def __init__(self, config: SpeechTextTaskConfig, context: StageContext) -> None:
        super().__init__(config, context)
        self.data = SpokenData(config.data, context.cache_dir)
        self.states: FrozenStates | None = None
        self.keys: list[str] = []  # of the usable training conversations, where their states are kept

    def build(self) -> SpeechLLM:
        parent = checkpoint.load(self.context.parents["align"])
        model = build_speech_llm(self.context.parts, self.config.adapter, adapter_token_ids(parent))
        checkpoint.fill(model, parent.part("adapter."), {"adapter.token_ids"})
        freeze_adapter(model.adapter, self.config)
        if self.context.bf16:
            halve_frozen(model.backbone)
        self.read(model)
        return model

    def manifests(self) -> list[str]:
        return [*self.config.data.train, *self.config.data.valid]

    def outline(self, parents: Mapping[str, Outline]) -> Outline:
        encoder = ENCODERS.entry_of(self.context.parts.encoder).implementation.outline(self.context.parts.encoder)
        backbone = BACKBONES.entry_of(self.context.parts.backbone).implementation.outline(self.context.parts.backbone)
        with torch.device("meta"):
            model = join_speech_llm(encoder, backbone, self.config.adapter, parents["align"].model.adapter.token_ids)
        freeze_adapter(model.adapter, self.config)
        if self.context.bf16:
            halve_frozen(model.backbone)
        return Outline(
            model=model,
            parts=speech_llm_parts(),
            cost_unit="tokens",
            longest_cost=longest_conversation(self.config.data, encoder.frame_rate_hz),
            activations=speech_llm_activations(model, SCORE_BYTES),
            notes=[ASSUMED],
        )

    def read(self, model: SpeechLLM) -> None:
        """Read the manifests in the model's tokens."""
        self.backbone = model.backbone
        self.index = token_index(model.adapter.token_ids, self.backbone.vocab_size)
        self.splits = {split: self._conversations(split) for split in ("train", "valid")}

    def _conversations(self, split: str) -> list[Conversation]:
        rows = [self._conversation(row) for row in self.data.rows(split) if row.answer is not None and row.answer.text]
        if split == "train" and not rows:
            raise ManifestError(f"no row of {', '.join(self.config.data.train)} has an answer to learn; give the assistant's turns a 'value'")
        return rows

    def _conversation(self, row) -> Conversation:
        prompt, target, clips = conversation_ids(self.backbone, row)
        said = [following.transcription for item, following in zip(row.turns, row.turns[1:]) if item.audio is not None and item.audio in clips]
        tokens = tuple(tuple(self.backbone.tokenize(text)) for text in said)
        answer, silent = str(row.extra.get("answer", "")), bool(row.extra.get(NO_SPEECH))
        return Conversation(row.id, tuple(prompt), tuple(target), tuple(clips), tokens, answer, silent)

    def learned(self, model: SpeechLLM) -> dict[str, Tensor]:
        return learned_speech_llm(model)

    def parameter_groups(self, model: SpeechLLM) -> list[dict]:
        lora = [p for p in model.backbone.parameters() if p.requires_grad]
        adapter = [p for p in model.adapter.parameters() if p.requires_grad]
        groups = [("adapter", adapter, self.config.adapter_lr_scale), ("lora", lora, 1.0)]
        return [{"name": name, "params": params, "lr_scale": scale} for name, params, scale in groups if params]

    def prepare(self, model: SpeechLLM) -> None:
        clips = {split: [clip for row in rows for clip in row.clips] for split, rows in self.splits.items()}
        self.data.cache_features(clips, model.encoder, bf16=self.context.bf16, label="encoding questions")
        if self._keeps_states(model):
            self._keep_states(model.eval())

    def _keeps_states(self, model: SpeechLLM) -> bool:
        """Whether a training conversation has the same states below the layers that learn at every step."""
        learns = self.config.train_alignment or self.config.train_look_back
        return not learns and self.data.augmentation is None and model.backbone.frozen_layers() > 0

    def _keep_states(self, model: SpeechLLM) -> None:
        rows = self._usable("train")
        makers = {
            "align": checkpoint.fingerprint(self.context.parents["align"]),
            "encoder": model.encoder.fingerprint(),
            "backbone": model.backbone.fingerprint(),
            "layers": model.backbone.frozen_layers(),
            # Settings of the adapter that change its vectors and no weight.
            "adapter": to_plain(self.config.adapter),
            "bf16": self.context.bf16,
        }
        self.states = FrozenStates(self.context.cache_dir / "frozen_states", makers)
        self.keys = [conversation_key(row.prompt, row.target, row.clips) for row in rows]
        costs = list(map(Conversations(rows, self.data).cost, range(len(rows))))
        self.states.fill(self.keys, lambda places: self._lower(model, [rows[place] for place in places]), costs)

    @torch.no_grad()
    def _lower(self, model: SpeechLLM, rows: Sequence[Conversation]) -> list[Tensor]:
        """Conversations -> states [P_i, H] of each after the frozen layers."""
        batch = self.collate(rows).to(self.context.device)
        with torch.autocast(self.context.device.type, torch.bfloat16, enabled=self.context.bf16):
            prompted = model.prompt(batch.ids, model.adapter(batch.features), batch.clip_rows)
            states = model.backbone.lower(prompted.embeddings, prompted.mask)
        kept = states.to(torch.bfloat16 if self.context.bf16 else torch.float32).cpu()
        return [row[:length] for row, length in zip(kept, prompted.mask.sum(1).tolist())]

    def _usable(self, split: str) -> list[Conversation]:
        return [row for row in self.splits[split] if all(map(self.data.usable, row.clips))]

    def examples(self, split: str) -> Examples:
        keys = self.keys if self.states is not None and split == "train" else None
        return Conversations(self._usable(split), self.data, keys=keys)

    def collate(self, examples: Sequence[Conversation | KeptConversation]) -> SpeechTextBatch | StatesBatch:
        if isinstance(examples[0], KeptConversation):
            return self.states.batch(examples)
        return collate_conversations(examples, self.data, self.index)

    def forward(self, model: SpeechLLM, batch: SpeechTextBatch | StatesBatch) -> SpeechTextOutputs:
        if isinstance(batch, StatesBatch):
            return self._forward_upper(model, batch)
        speech, hidden = teacher_forced(model, batch)
        labels = batch.labels != IGNORE
        return SpeechTextOutputs(
            ctc_logits=speech.ctc_logits,
            frame_lengths=speech.frame_lengths,
            targets=batch.ctc_targets,
            target_lengths=batch.ctc_lengths,
            text_logits=model.backbone.logits(hidden[labels]),
            text_labels=batch.labels[labels],
            silent=batch.silent,
            counts_ctc=model.adapter.learns_alignment or not model.training,
        )

    def _forward_upper(self, model: SpeechLLM, batch: StatesBatch) -> SpeechTextOutputs:
        hidden = model.backbone.upper(batch.states, batch.mask())
        return SpeechTextOutputs(
            ctc_logits=None,
            frame_lengths=None,
            targets=None,
            target_lengths=None,
            text_logits=model.backbone.logits(batch.predicting(hidden)),
            text_labels=batch.targets[batch.targets != IGNORE],
            counts_ctc=False,
        )

    def score(self, model: SpeechLLM, batches: Callable[[], Iterable[Batch]]) -> dict[str, float]:
        right = asked = 0
        for batch in batches():
            texts = answer_texts(model, batch, self.config.max_answer_tokens)
            graded = [(text, gold) for text, gold in zip(texts, batch.answers) if gold]
            right += sum(contains_answer(text, gold) for text, gold in graded)
            asked += len(graded)
        return {"answer_accuracy": right / asked} if asked else {}

    def view(self, model: SpeechLLM, batch: SpeechTextBatch) -> View:
        return View(list(text_tracks(batch.ids, batch.labels, batch.shared, model.backbone)), clips_of(model, batch), padding_of(batch))

    def data_fingerprints(self) -> dict[str, str]:
        return self.data.fingerprints()


ASSUMED = f"activations: {HEARD_SHARE:.0%} of the tokens are taken to be heard and {ANSWER_SHARE:.0%} to be answers"


def speech_llm_parts(path: str = "") -> dict[str, list[str]]:
    """The S2T model's parts as `Outline.parts` wants them, where it stands at `path` ("" or "name.")."""
    adapter = named_parts("adapter", f"{path}adapter", SpeechAdapter.parts)
    return {"encoder": [f"{path}encoder"], **adapter, "language model": [f"{path}backbone"]}


def speech_llm_activations(model: SpeechLLM, bytes_per_ctc_score: int) -> dict[str, float]:
    """Estimated bytes kept from forward to backward per token of a conversation, heard speech included."""
    frames = HEARD_SHARE * FRAMES_PER_TOKEN
    adapter = adapter_activations(model.adapter, bytes_per_ctc_score + MIXTURE_BYTES) if model.adapter.learns else {}
    return {name: frames * size for name, size in adapter.items()} | {
        # Behind a frozen adapter, the backward pass ends at the lowest layer that learns.
        "language model": layer_bytes(
            model.backbone, model.backbone.hidden_size, from_first_trained=not model.adapter.learns
        ),
        "text scores": ANSWER_SHARE * SCORE_BYTES * model.backbone.vocab_size,
    }


def longest_conversation(data: SpokenDataConfig, frame_rate_hz: float) -> int:
    """Tokens of a conversation with one clip as long as allowed and a long text."""
    return round(data.max_audio_s * frame_rate_hz) // FRAMES_PER_TOKEN + WRITTEN_TOKENS


def collate_conversations(examples: Sequence[Conversation], data: SpokenData, index: Sequence[int]) -> SpeechTextBatch:
    """Conversations -> one padded batch."""
    ids, labels = prompt_and_labels([row.prompt for row in examples], [row.target for row in examples])
    said = [known_indices(index, tokens) for row in examples for tokens in row.said]
    return SpeechTextBatch(
        row_ids=tuple(row.row_id for row in examples),
        count=max(1, int((labels != IGNORE).sum())),
        ids=ids,
        labels=labels,
        prompt_lengths=torch.tensor([len(row.prompt) for row in examples]),
        features=data.features([clip for row in examples for clip in row.clips]),
        clip_rows=torch.tensor([number for number, row in enumerate(examples) for _ in row.clips], dtype=torch.int64),
        ctc_targets=padded(said, 0),
        ctc_lengths=torch.tensor([len(tokens) for tokens in said], dtype=torch.int64),
        answers=tuple(row.answer for row in examples),
        shared=common_prefix(ids),
        silent=torch.tensor([row.silent for row in examples for _ in row.clips], dtype=torch.bool),
    )


def clips_of(model: SpeechLLM, batch: SpeechTextBatch) -> list[Hearing]:
    """The clips of a batch as an audit shows them."""
    ids, text = model.adapter.token_ids.tolist(), text_of(model.backbone)
    places = (batch.ids == AUDIO).nonzero()[:, 1].tolist()
    return list(
        heard_clips(
            batch.features,
            batch.clip_rows.tolist(),
            places,
            batch.ctc_targets,
            batch.ctc_lengths,
            range(len(ids)),
            lambda said: text([ids[index] for index in said if index < len(ids)]),
        )
    )


def padding_of(batch: SpeechTextBatch) -> list[Tensor]:
    """What must not count in a batch; padded ids have no other form."""
    return past(batch.features.values, batch.features.lengths) + past(batch.ctc_targets, batch.ctc_lengths)


def common_prefix(ids: Tensor) -> int:
    """Token ids at the front of ids [B, N] that are the same in every row."""
    same = (ids == ids[:1]).all(0) & (ids[0] >= 0)
    return int(same.long().cumprod(0).sum())


def teacher_forced(model: SpeechLLM, batch: SpeechTextBatch) -> tuple[AdaptedSpeech, Tensor]:
    """The adapter's result, and the hidden state at every id of the batch [B, N, H] (at PAD and AUDIO ids it is of no use)."""
    speech = model.adapter(batch.features)
    prompted = model.prompt(batch.ids, speech, batch.clip_rows)
    hidden = model.backbone.whole(prompted.embeddings, prompted.mask, batch.shared)
    # The last vector of a clip has the AUDIO id's place plus its width, so ids after it are found by their own start.
    at = prompted.positions.clamp(max=hidden.shape[1] - 1)
    return speech, hidden.gather(1, at[..., None].expand(-1, -1, hidden.shape[2]))


@torch.no_grad()
def prompt_only(model: SpeechLLM, batch: SpeechTextBatch) -> Prompted:
    """The batch's prompts without their answers, spliced."""
    width = int(batch.prompt_lengths.max())
    inside = torch.arange(width, device=batch.ids.device)[None] < batch.prompt_lengths[:, None]
    ids = torch.where(inside, batch.ids[:, :width], PAD)
    return model.prompt(ids, model.adapter(batch.features), batch.clip_rows)


def answer_texts(model: SpeechLLM, batch: SpeechTextBatch, max_tokens: int) -> list[str]:
    """Greedy answers to the batch's prompts."""
    prompted = prompt_only(model, batch)
    said = greedy_text(model.backbone, prompted.embeddings, prompted.mask, max_tokens)
    return [model.backbone.detokenize(ids[:length]) for ids, length in zip(said.ids.tolist(), said.lengths.tolist())]
