"""CTC training of the speech adapter on the language model's tokens, without running that model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from echox.backbones.base import BACKBONES
from echox.core.errors import ConfigError, ManifestError
from echox.core.signals import Batch, Features, Waveform, padded
from echox.criteria.base import AlignmentOutputs, SpelledOutputs
from echox.data.manifest import spoken_pairs
from echox.data.text import edit_distance
from echox.encoders.base import Encoder, build_encoder
from echox.models.footprint import SCORE_BYTES, layer_bytes
from echox.models.frame_runs import ctc_tokens
from echox.models.speech_adapter import SpeechAdapter, SpeechAdapterConfig
from echox.models.speech_llm import join_adapter
from echox.tasks.base import (
    TASKS,
    AuditBatch,
    Examples,
    Outline,
    StageContext,
    Task,
    TaskConfig,
    named_parts,
)
from echox.tasks.conversations import Clip, SpokenData, SpokenDataConfig
from echox.tasks.trained_encoder import (
    encoded,
    encoder_group,
    encoder_notes,
    masks_in_training,
    trained_encoder_state,
)
from echox.tasks.views import backbone_text, clip_targets, padding_of_clips, padding_of_rows

BYTES = 256


@dataclass(kw_only=True, slots=True)
class AlignmentTaskConfig(TaskConfig):
    """CTC training of the speech adapter (stage I of Soundwave).

    Raises:
        ConfigError: `drawn_tokens` is below 1.
    """

    data: SpokenDataConfig = field(default_factory=SpokenDataConfig)
    """Clips with known words: questions with transcriptions, answers with audio."""
    adapter: SpeechAdapterConfig = field(default_factory=SpeechAdapterConfig)
    """Shape of the adapter."""
    answers: bool = True
    """Learn from the assistant's recordings too, where there are any."""
    full_vocabulary: bool = False
    """Let CTC emit every token of the LLM; off, only tokens that occur in the training texts,
    which is much cheaper."""
    drawn_tokens: int | None = None
    """Tokens sampled at random in each training step, against which the batch's own are scored in
    place of the whole vocabulary; null scores all."""

    def __post_init__(self) -> None:
        if self.drawn_tokens is not None and self.drawn_tokens < 1:
            raise ConfigError(
                f"align.task.drawn_tokens is {self.drawn_tokens}; "
                "use 1 or more, or null to score the whole vocabulary"
            )


@dataclass(frozen=True, slots=True)
class AlignmentBatch(Batch):
    """A clips and their transcripts: features [A, F, D], targets [A, S]."""

    features: Features | Waveform  # [A, F, D]; samples [A, T] where the encoder is trained
    targets: Tensor  # [A, S] indices into the adapter's tokens
    target_lengths: Tensor  # [A]
    distinct: Tensor  # [N] the distinct targets, ascending
    distinct_indices: Tensor  # [A, S] index of each target in `distinct`
    spelling: Tensor  # [A, Y] bytes
    spelling_lengths: Tensor  # [A]
    silent: Tensor  # bool [A], True for a clip without speech


@dataclass(frozen=True, slots=True)
class AlignmentExample:
    """A clip with its transcript, as tokens [S] and bytes [Y]."""

    row_id: str
    clip: Clip
    token_ids: tuple[int, ...]  # of the language model
    spelling: bytes  # the transcript in lower case


class AlignmentExamples(Examples[AlignmentExample]):
    """Clips with transcripts; the cost of one is its encoder frames."""

    def __init__(self, examples: Sequence[AlignmentExample], data: SpokenData) -> None:
        self.examples, self.data = examples, data

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> AlignmentExample:
        return self.examples[index]

    def at(self, index: int, epoch: int) -> AlignmentExample:
        example = self.examples[index]
        (clip,) = self.data.drawn(example.row_id, [example.clip], epoch)
        return dataclasses.replace(example, clip=clip)

    def cost(self, index: int) -> int:
        return self.data.frames(self.examples[index].clip)


class AlignmentModel(nn.Module):
    """The adapter in training, behind the encoder, with an auxiliary spelling head.

    Args:
        encoder: gives features [A, F, D]; it is not run where they are cached.
        adapter: features -> aligned frames [A, ceil(F / stack), H].
    """

    def __init__(self, encoder: Encoder, adapter: SpeechAdapter) -> None:
        super().__init__()
        self.encoder = encoder
        self.adapter = adapter
        # Letters are shorter than the adapter's frames, so each frame scores `stack` of them, at
        # the encoder's rate.
        self.spelling = nn.Linear(
            adapter.out_norm.normalized_shape[0], adapter.config.stack * (BYTES + 1)
        )

    def spell(self, frames: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Score the bytes of the transcript.

        Args:
            frames: [A, F, H] aligned frames of the adapter.
            lengths: [A] frames of each clip.

        Returns:
            scores [A, F * stack, BYTES + 1], the blank last, and their lengths [A].
        """
        A, N, _ = frames.shape
        stack = self.adapter.config.stack
        return self.spelling(frames).reshape(A, N * stack, BYTES + 1), lengths * stack


@TASKS.register("align", AlignmentTaskConfig)
class AlignmentTask(Task[AlignmentModel, AlignmentBatch]):
    """Clips -> the LLM's tokens by CTC.

    Source: Soundwave (arXiv:2502.12900), alignment stage.
    """

    needs = ("encoder", "backbone")

    def __init__(self, config: AlignmentTaskConfig, context: StageContext) -> None:
        super().__init__(config, context)
        self.data = SpokenData(config.data, context.cache_dir)

    @classmethod
    def cannot_train_encoder_reason(cls, config: AlignmentTaskConfig) -> str | None:
        return masks_in_training(config.data)

    def build(self) -> AlignmentModel:
        """Load encoder and embeddings, and build an untrained adapter between them.

        Raises:
            ManifestError: no training row has both audio and a transcript.
        """
        encoder = build_encoder(self.context.parts.require_encoder())
        self.backbone = BACKBONES.build(self.context.parts.backbone)
        # Read first: the adapter's CTC head has a row for each token of the training texts.
        self.splits = {split: self._read_examples(split) for split in ("train", "valid")}
        adapter = join_adapter(encoder, self.backbone, self.config.adapter, self._token_ids())
        return AlignmentModel(encoder, adapter)

    def manifests(self) -> list[str]:
        return [*self.config.data.train, *self.config.data.valid]

    def outline(self, parents: Mapping[str, Outline]) -> Outline:
        parts = self.context.parts
        encoder = build_encoder(parts.require_encoder(), meta=True)
        backbone = BACKBONES.entry_of(parts.backbone).implementation.outline(parts.backbone)
        with torch.device("meta"):
            # The training texts are not read, so that their number of tokens is not known.
            ids = torch.arange(backbone.vocab_size)
            adapter = join_adapter(encoder, backbone, self.config.adapter, ids)
            model = AlignmentModel(encoder, adapter)
        return Outline(
            model=model,
            parts={
                "encoder": ["encoder"],
                **named_parts("adapter", "adapter", SpeechAdapter.parts),
                "spelling head": ["spelling"],
            },
            cost_unit="encoder frames",
            longest_cost=round(self.config.data.max_audio_s * encoder.frame_rate_hz),
            activations=adapter_activations(model.adapter, SCORE_BYTES),
            notes=self._notes(encoder),
        )

    def _notes(self, encoder: Encoder) -> list[str]:
        """Notes of the outline, which a dry run shows as they are."""
        notes = [
            "the language model gives its embeddings from the CPU's memory and is not on the GPU",
            *encoder_notes(encoder),
        ]
        if not self.config.full_vocabulary:
            notes.append(
                "CTC is counted over the whole vocabulary; "
                "it will be over the tokens of the training texts alone"
            )
        return notes

    def _read_examples(self, split: str) -> list[AlignmentExample]:
        pairs = [
            (row.id, clip, transcript)
            for row in self.data.rows(split)
            for clip, transcript in spoken_pairs(row, answers=self.config.answers)
        ]
        # Clips that are known to be silent have no words.
        if split == "train" and not any(transcript for _, _, transcript in pairs):
            raise ManifestError(
                f"no row of {', '.join(self.config.data.train)} has both audio and its words; "
                "set 'transcription' on the assistant's turns"
            )
        return [
            AlignmentExample(
                row_id,
                clip,
                tuple(self.backbone.tokenize(transcript)),
                # Case is not heard, so that capitals would be guessed.
                transcript.casefold().encode(),
            )
            for row_id, clip, transcript in pairs
        ]

    def _token_ids(self) -> Tensor:
        """Tokens [C-1] of the language model that CTC may emit."""
        if self.config.full_vocabulary:
            return torch.arange(self.backbone.vocab_size)
        examples = self.splits["train"]
        # Sorted, because the order of the head's rows is part of the checkpoint.
        return torch.tensor(sorted({token for example in examples for token in example.token_ids}))

    def trained_state_dict(self, model: AlignmentModel) -> dict[str, Tensor]:
        tensors = {f"adapter.{name}": tensor for name, tensor in model.adapter.state_dict().items()}
        tensors |= {
            f"spelling.{name}": tensor for name, tensor in model.spelling.state_dict().items()
        }
        return tensors | trained_encoder_state(model.encoder)

    def parameter_groups(self, model: AlignmentModel) -> list[dict[str, Any]]:
        modules = (model.adapter, model.spelling)
        params = [p for module in modules for p in module.parameters() if p.requires_grad]
        own = {"name": "all", "params": params, "lr_scale": 1.0}
        return [own, *encoder_group(model.encoder, self.context.parts.require_encoder().lr_scale)]

    def prepare(self, model: AlignmentModel) -> None:
        """Cache the encoder features of all clips.

        Raises:
            SignalError: no clip can be decoded; or one cannot, and broken ones are refused.
        """
        clips = {
            split: [example.clip for example in examples] for split, examples in self.splits.items()
        }
        self.data.cache_features(
            clips, model.encoder, bf16=self.context.bf16, label="encoding clips"
        )
        self.index = token_index(model.adapter.token_ids, self.backbone.vocab_size)

    def examples(self, split: str) -> AlignmentExamples:
        usable = [example for example in self.splits[split] if self.data.usable(example.clip)]
        return AlignmentExamples(usable, self.data)

    def collate(self, examples: Sequence[AlignmentExample]) -> AlignmentBatch:
        """Pad clips and transcripts to one batch: features [A, F, D], targets [A, S].

        Raises:
            SignalError: a clip that augmentation changes cannot be read.
        """
        targets = [ctc_indices(self.index, example.token_ids) for example in examples]
        # Sorted, so that equal batches are equal to the bit.
        distinct = sorted({token for target in targets for token in target})
        place = {token: number for number, token in enumerate(distinct)}
        return AlignmentBatch(
            row_ids=tuple(example.row_id for example in examples),
            # At least 1, since the loss is divided by it; a batch of silence alone has no target.
            count=max(1, sum(map(len, targets))),
            features=self.data.features([example.clip for example in examples]),
            targets=padded(targets, 0),
            target_lengths=torch.tensor([len(target) for target in targets]),
            distinct=torch.tensor(distinct, dtype=torch.int64),
            distinct_indices=padded([[place[token] for token in target] for target in targets], 0),
            spelling=padded([example.spelling for example in examples], 0),
            spelling_lengths=torch.tensor([len(example.spelling) for example in examples]),
            silent=torch.tensor([not example.spelling for example in examples]),
        )

    def forward(self, model: AlignmentModel, batch: AlignmentBatch) -> SpelledOutputs:
        """CTC scores of tokens [A, F, C] and of bytes [A, F * stack, BYTES + 1]."""
        features = encoded(model.encoder, batch.features)
        frames, lengths = model.adapter.align(features)  # [A, F / stack, H]
        byte_scores, byte_lengths = model.spell(frames, lengths)
        spelling = AlignmentOutputs(
            byte_scores, byte_lengths, batch.spelling, batch.spelling_lengths, silent=batch.silent
        )
        # A sample estimates the loss for a training step; validation counts all tokens.
        if model.training and self.config.drawn_tokens is not None:
            scores = model.adapter.sampled_scores(frames, batch.distinct, self.config.drawn_tokens)
            targets = batch.distinct_indices
        else:
            scores, targets = model.adapter.scores(frames), batch.targets
        return SpelledOutputs(
            scores, lengths, targets, batch.target_lengths, spelling, silent=batch.silent
        )

    def score(
        self, model: AlignmentModel, batches: Callable[[], Iterable[AlignmentBatch]]
    ) -> dict[str, float]:
        """Token error rate of the CTC head's greedy output, over all clips together."""
        errors = tokens = 0
        for batch in batches():
            outputs = self.forward(model, batch)
            hypotheses = ctc_tokens(outputs.ctc_logits, outputs.frame_lengths)
            lengths = batch.target_lengths.tolist()
            for hypothesis, target, length in zip(hypotheses, batch.targets.tolist(), lengths):
                errors += edit_distance(hypothesis, target[:length])
                tokens += length
        return {"token_error": errors / max(1, tokens)}

    def audit_batch(self, model: AlignmentModel, batch: AlignmentBatch) -> AuditBatch:
        ids, A = model.adapter.token_ids.tolist(), len(batch.row_ids)
        text, features = backbone_text(self.backbone), encoded(model.encoder, batch.features)
        clips = clip_targets(
            features.lengths,
            features.rate_hz,
            range(A),
            [None] * A,
            batch.targets,
            batch.target_lengths,
            range(len(ids)),
            # The blank is the index behind the last token.
            lambda indices: text([ids[index] for index in indices if index < len(ids)]),
        )
        padding = [
            padding_of_clips(batch.features),
            padding_of_rows(batch.spelling, batch.spelling_lengths),
            padding_of_rows(batch.targets, batch.target_lengths),
            padding_of_rows(batch.distinct_indices, batch.target_lengths),
        ]
        return AuditBatch(ctc_targets=list(clips), padding=sum(padding, []))

    def data_fingerprints(self) -> dict[str, str]:
        return self.data.fingerprints()


def adapter_activations(adapter: SpeechAdapter, bytes_per_score: int) -> dict[str, float]:
    """Estimated bytes kept from forward to backward per encoder frame, by part of the adapter.

    Args:
        adapter: on any device.
        bytes_per_score: bytes that CTC's loss keeps for each score.
    """
    H, stack = adapter.ctc_head.in_features, adapter.config.stack
    return {
        "alignment encoder": layer_bytes(adapter.layers, H) / stack,
        "CTC scores": bytes_per_score * adapter.ctc_head.out_features / stack,
    }


def token_index(token_ids: Tensor, vocab_size: int) -> list[int]:
    """Index in the adapter's tokens by LLM token id; -1 for tokens that CTC cannot emit.

    Args:
        token_ids: [C-1] tokens that CTC may emit.
        vocab_size: tokens of the language model.
    """
    index = torch.full((vocab_size,), -1)
    index[token_ids.cpu()] = torch.arange(len(token_ids))
    return index.tolist()


def ctc_indices(index: Sequence[int], token_ids: Iterable[int]) -> list[int]:
    """CTC targets of a transcript; tokens that CTC cannot emit are left out.

    Args:
        index: of `token_index`.
        token_ids: LLM tokens of the transcript.
    """
    return [index[token] for token in token_ids if index[token] >= 0]
