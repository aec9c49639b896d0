"""Alignment: teach the speech adapter which of the language model's tokens it hears, without running the language model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from echox.backbones.base import BACKBONES
from echox.criteria.base import AlignmentOutputs, SpelledOutputs
from echox.data.manifest import spoken_pairs
from echox.data.text import edit_distance
from echox.encoders.base import ENCODERS, Encoder
from echox.errors import ConfigError, ManifestError
from echox.models.footprint import SCORE_BYTES, layer_bytes
from echox.models.speech_adapter import SpeechAdapter, SpeechAdapterConfig, ctc_tokens
from echox.models.speech_llm import join_adapter
from echox.signals import Batch, Features
from echox.tasks.base import TASKS, Examples, Outline, StageContext, Task, TaskConfig, View, named_parts
from echox.tasks.spoken import Clip, SpokenData, SpokenDataConfig, padded
from echox.tasks.views import heard_clips, past, text_of


BYTES = 256


@dataclass(kw_only=True, slots=True)
class AlignmentTaskConfig(TaskConfig):
    """CTC training of the speech adapter (stage I of Soundwave)."""

    data: SpokenDataConfig = field(default_factory=SpokenDataConfig)
    """Clips with known words: questions with transcriptions, answers with audio."""
    adapter: SpeechAdapterConfig = field(default_factory=SpeechAdapterConfig)
    """Shape of the adapter."""
    answers: bool = True
    """Learn from the assistant's recordings too, where there are any."""
    full_vocabulary: bool = False
    """Let CTC emit every token of the LLM; off, only tokens that occur in the training texts, which is much cheaper."""
    drawn_tokens: int | None = None
    """Tokens drawn at random in each training step, from which the batch's own are told in place of the whole vocabulary; null scores all."""

    def __post_init__(self) -> None:
        if self.drawn_tokens is not None and self.drawn_tokens < 1:
            raise ConfigError(f"align.task.drawn_tokens is {self.drawn_tokens}; use 1 or more, or null to score the whole vocabulary")


@dataclass(frozen=True, slots=True)
class AlignmentBatch(Batch):
    """Clips and what is said in them."""

    features: Features
    targets: Tensor  # [A, S] indices into the adapter's tokens
    target_lengths: Tensor  # [A]
    spoken: Tensor  # [N] the distinct targets
    places: Tensor  # [A, S] the place of each target in `spoken`
    spelling: Tensor  # [A, Y] bytes
    spelling_lengths: Tensor  # [A]
    silent: Tensor  # bool [A], True where nobody speaks


@dataclass(frozen=True, slots=True)
class _Clip:
    row_id: str
    path: Clip
    token_ids: tuple[int, ...]
    spelling: bytes


class Clips(Examples):
    """Clips with known words."""

    def __init__(self, clips: Sequence[_Clip], data: SpokenData) -> None:
        self.clips, self.data = clips, data

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> _Clip:
        return self.clips[index]

    def at(self, index: int, epoch: int) -> _Clip:
        clip = self.clips[index]
        return dataclasses.replace(clip, path=self.data.drawn(clip.row_id, [clip.path], epoch)[0])

    def cost(self, index: int) -> int:
        return self.data.frames(self.clips[index].path)


class AlignmentModel(nn.Module):
    """The adapter in training; encoder and embeddings are frozen and only read."""

    def __init__(self, encoder: Encoder, adapter: SpeechAdapter) -> None:
        super().__init__()
        self.encoder = encoder
        self.adapter = adapter
        # Letters are too short for the adapter's frames, so each of them scores `stack` frames of the encoder's.
        self.spelling = nn.Linear(adapter.out_norm.normalized_shape[0], adapter.config.stack * (BYTES + 1))

    def spell(self, frames: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Adapter frames [A, F, H] -> scores of bytes [A, F * stack, BYTES + 1], the blank last, and their lengths."""
        A, N, _ = frames.shape
        stack = self.adapter.config.stack
        return self.spelling(frames).reshape(A, N * stack, BYTES + 1), lengths * stack


@TASKS.register("align", AlignmentTaskConfig)
class AlignmentTask(Task):
    """Clips -> the LLM's tokens by CTC."""

    needs = ("encoder", "backbone")

    def __init__(self, config: AlignmentTaskConfig, context: StageContext) -> None:
        super().__init__(config, context)
        self.data = SpokenData(config.data, context.cache_dir)

    def build(self) -> AlignmentModel:
        encoder = ENCODERS.build(self.context.parts.encoder)
        self.backbone = BACKBONES.build(self.context.parts.backbone)
        self.splits = {split: self._clips(split) for split in ("train", "valid")}
        return AlignmentModel(encoder, join_adapter(encoder, self.backbone, self.config.adapter, self._token_ids()))

    def manifests(self) -> list[str]:
        return [*self.config.data.train, *self.config.data.valid]

    def outline(self, parents: Mapping[str, Outline]) -> Outline:
        encoder = ENCODERS.entry_of(self.context.parts.encoder).implementation.outline(self.context.parts.encoder)
        backbone = BACKBONES.entry_of(self.context.parts.backbone).implementation.outline(self.context.parts.backbone)
        with torch.device("meta"):
            ids = torch.arange(backbone.vocab_size)
            model = AlignmentModel(encoder, join_adapter(encoder, backbone, self.config.adapter, ids))
        notes = ["the language model gives its embeddings from the CPU's memory and is not on the GPU"]
        if not self.config.full_vocabulary:
            notes.append("CTC is counted over the whole vocabulary; it will be over the tokens of the training texts alone")
        return Outline(
            model=model,
            parts={"encoder": ["encoder"], **named_parts("adapter", "adapter", SpeechAdapter.parts), "spelling head": ["spelling"]},
            cost_unit="encoder frames",
            longest_cost=round(self.config.data.max_audio_s * encoder.frame_rate_hz),
            activations=adapter_activations(model.adapter, SCORE_BYTES),
            notes=notes,
        )

    def _clips(self, split: str) -> list[_Clip]:
        pairs = [(row.id, path, said) for row in self.data.rows(split) for path, said in spoken_pairs(row, answers=self.config.answers)]
        if split == "train" and not pairs:
            raise ManifestError(f"no row of {', '.join(self.config.data.train)} has both audio and its words; set 'transcription' on the assistant's turns")
        return [_Clip(row_id, path, tuple(self.backbone.tokenize(said)), said.casefold().encode()) for row_id, path, said in pairs]

    def _token_ids(self) -> Tensor:
        if self.config.full_vocabulary:
            return torch.arange(self.backbone.vocab_size)
        return torch.tensor(sorted({token for clip in self.splits["train"] for token in clip.token_ids}))

    def learned(self, model: AlignmentModel) -> dict[str, Tensor]:
        tensors = {f"adapter.{name}": tensor for name, tensor in model.adapter.state_dict().items()}
        return tensors | {f"spelling.{name}": tensor for name, tensor in model.spelling.state_dict().items()}

    def prepare(self, model: AlignmentModel) -> None:
        clips = {split: [clip.path for clip in found] for split, found in self.splits.items()}
        self.data.cache_features(clips, model.encoder, bf16=self.context.bf16, label="encoding clips")
        self.index = token_index(model.adapter.token_ids, self.backbone.vocab_size)

    def examples(self, split: str) -> Examples:
        return Clips([clip for clip in self.splits[split] if self.data.usable(clip.path)], self.data)

    def collate(self, examples: Sequence[_Clip]) -> AlignmentBatch:
        targets = [known_indices(self.index, clip.token_ids) for clip in examples]
        spoken = sorted({token for target in targets for token in target})
        place = {token: number for number, token in enumerate(spoken)}
        return AlignmentBatch(
            row_ids=tuple(clip.row_id for clip in examples),
            count=max(1, sum(map(len, targets))),
            features=self.data.features([clip.path for clip in examples]),
            targets=padded(targets, 0),
            target_lengths=torch.tensor([len(target) for target in targets]),
            spoken=torch.tensor(spoken, dtype=torch.int64),
            places=padded([[place[token] for token in target] for target in targets], 0),
            spelling=padded([clip.spelling for clip in examples], 0),
            spelling_lengths=torch.tensor([len(clip.spelling) for clip in examples]),
            silent=torch.tensor([not clip.spelling for clip in examples]),
        )

    def forward(self, model: AlignmentModel, batch: AlignmentBatch) -> SpelledOutputs:
        frames, lengths = model.adapter.align(batch.features)
        spelled, spelled_lengths = model.spell(frames, lengths)
        spelling = AlignmentOutputs(spelled, spelled_lengths, batch.spelling, batch.spelling_lengths, silent=batch.silent)
        if model.training and self.config.drawn_tokens is not None:
            scores = model.adapter.sampled_scores(frames, batch.spoken, self.config.drawn_tokens)
            return SpelledOutputs(scores, lengths, batch.places, batch.target_lengths, spelling, silent=batch.silent)
        return SpelledOutputs(model.adapter.scores(frames), lengths, batch.targets, batch.target_lengths, spelling, silent=batch.silent)

    def score(self, model: AlignmentModel, batches: Callable[[], Iterable[Batch]]) -> dict[str, float]:
        errors = tokens = 0
        for batch in batches():
            outputs = self.forward(model, batch)
            for heard, said, length in zip(ctc_tokens(outputs.ctc_logits, outputs.frame_lengths), batch.targets.tolist(), batch.target_lengths.tolist()):
                errors += edit_distance(heard, said[:length])
                tokens += length
        return {"token_error": errors / max(1, tokens)}

    def view(self, model: AlignmentModel, batch: AlignmentBatch) -> View:
        ids, A = model.adapter.token_ids.tolist(), len(batch.row_ids)
        text = text_of(self.backbone)
        clips = heard_clips(
            batch.features, range(A), [None] * A, batch.targets, batch.target_lengths, range(len(ids)), lambda said: text([ids[index] for index in said if index < len(ids)])
        )
        padding = [past(batch.features.values, batch.features.lengths), past(batch.spelling, batch.spelling_lengths)]
        padding += [past(targets, batch.target_lengths) for targets in (batch.targets, batch.places)]
        return View(heard=list(clips), padding=sum(padding, []))

    def data_fingerprints(self) -> dict[str, str]:
        return self.data.fingerprints()


def adapter_activations(adapter: SpeechAdapter, bytes_per_score: int) -> dict[str, float]:
    """Estimated bytes kept from forward to backward per encoder frame, where CTC's scores take so many bytes each."""
    H, stack = adapter.ctc_head.in_features, adapter.config.stack
    return {
        "alignment encoder": layer_bytes(adapter.layers, H) / stack,
        "CTC scores": bytes_per_score * adapter.ctc_head.out_features / stack,
    }


def token_index(token_ids: Tensor, vocab_size: int) -> list[int]:
    """LLM token id -> index in the adapter's tokens, -1 for those CTC cannot emit."""
    index = torch.full((vocab_size,), -1)
    index[token_ids.cpu()] = torch.arange(len(token_ids))
    return index.tolist()


def known_indices(index: Sequence[int], token_ids: Iterable[int]) -> list[int]:
    """CTC targets of a text; tokens that CTC cannot emit are left out."""
    return [index[token] for token in token_ids if index[token] >= 0]
