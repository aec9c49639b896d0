"""S2T in the published form: the adapters and LoRA of a published EchoX learn to answer what is heard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from echox.backbones.base import LoraConfig
from echox.criteria.base import SpeechTextOutputs
from echox.encoders.base import ENCODERS
from echox.models.footprint import SCORE_BYTES, layer_bytes
from echox.models.published.hearing import WINDOW_S, check_encoder
from echox.models.published.model import PublishedEchoX
from echox.models.published.student import HearingStudent, choose_trained, learned_tensors, outline_of, round_frozen, starting_model
from echox.models.published.teaching import TaughtText, teach_text, text_outputs
from echox.tasks.at_access import lengths_file
from echox.tasks.base import TASKS, Examples, Outline, StageContext, Task, View, named_parts
from echox.tasks.published import (
    HEARD_WHOLE,
    HEARING,
    WINDOW_TOKENS,
    ConversationsConfig,
    HeardBatch,
    Lesson,
    Lessons,
    ReleaseTaskConfig,
    SpokenLessons,
    checkpoint_fingerprint,
    missing_of,
    release_lora,
    released_padding,
)
from echox.tasks.speech_text import ANSWER_SHARE, ASSUMED, HEARD_SHARE, WRITTEN_TOKENS

ADAPTER_PARTS = {"projector": ["projector"], "alignment encoder": ["layers", "out_norm"], "CTC head": ["ctc_head"], "look-back": ["look_back", "look_back_norm"]}


@dataclass(kw_only=True, slots=True)
class ReleaseTextConfig(ReleaseTaskConfig):
    """Instruction tuning of a published model on spoken conversations."""

    data: ConversationsConfig = field(default_factory=ConversationsConfig)
    """Spoken conversations with written answers, with one audio or several."""
    modules: list[str] = field(default_factory=lambda: list(HEARING))
    """Modules that learn beside LoRA, by the release's names; the CTC head (audio_feature_head) is not among them there."""
    lora: LoraConfig = field(default_factory=release_lora)
    """Adapters on the language model, merged into it when the run is exported."""


@TASKS.register("published_s2t", ReleaseTextConfig)
class ReleaseTextTask(Task):
    """Stage I from a published folder: cross-entropy of the answers, and CTC of the questions over the language model's vocabulary."""

    needs = ("encoder",)

    def __init__(self, config: ReleaseTextConfig, context: StageContext) -> None:
        super().__init__(config, context)

    def build(self) -> HearingStudent:
        student = ready(self._student(), self.config, self.context)
        self.lessons = lessons_of(student, self.config)
        self.splits = {split: self.lessons.read(split, lengths=partial(lengths_of, self, split)) for split in ("train", "valid")}
        return student

    def _student(self) -> HearingStudent:
        encoder = ENCODERS.build(self.context.parts.encoder)
        student = HearingStudent(encoder, starting_model(self.config.checkpoint, self.config.form(), encoder.dim))
        student.release.translator = None  # nothing is spoken here
        return student

    def manifests(self) -> list[str]:
        return [*self.config.data.train, *self.config.data.valid]

    def missing(self) -> list[str]:
        return missing_of(self.config.checkpoint)

    def outline(self, parents: Mapping[str, Outline]) -> Outline:
        student = student_outline(self.config, self.context, speaks=False)
        return Outline(
            model=student,
            parts=hearing_parts(),
            cost_unit="tokens",
            longest_cost=longest_lesson(self.config.data),
            activations=hearing_activations(student.release),
            notes=[ASSUMED],
        )

    def learned(self, model: HearingStudent) -> dict[str, Tensor]:
        return learned_tensors(model)

    def parameter_groups(self, model: HearingStudent) -> list[dict[str, Any]]:
        return hearing_groups(model)

    def examples(self, split: str) -> Examples:
        return Lessons(self.splits[split], self.lessons.rows)

    def collate(self, examples: Sequence[Lesson]) -> HeardBatch:
        return self.lessons.collate(examples)

    def forward(self, model: HearingStudent, batch: HeardBatch) -> SpeechTextOutputs:
        return text_outputs(model.release, taught(model, batch), batch.said)

    def view(self, model: HearingStudent, batch: HeardBatch) -> View:
        padding = released_padding(batch.ids, self.lessons.tokens.end_id)
        return View(self.lessons.tracks(batch), self.lessons.heard(batch), padding, notes=[HEARD_WHOLE])

    def data_fingerprints(self) -> dict[str, str]:
        return {**self.lessons.rows.fingerprints(), "checkpoint": checkpoint_fingerprint(self.config.checkpoint)}


def taught(model: HearingStudent, batch: HeardBatch) -> TaughtText:
    """The teacher-forced pass of a batch, from its audio."""
    return teach_text(model.release, batch.ids, batch.labels, model.encoder(batch.wave), batch.clip_rows)


def ready(student: HearingStudent, config: ReleaseTextConfig, context: StageContext) -> HearingStudent:
    """Frozen but for what the config lets learn.

    Raises:
        CheckpointError: encoder and model do not fit each other. ConfigError: a module or a layer does not exist.
    """
    check_encoder(student.encoder, student.release.adapter.shape.feature_dim)
    choose_trained(student.release, config.modules, config.lora)
    round_frozen(student.release, half=context.bf16)
    return student


def lengths_of(task: Task, split: str) -> Path:
    """Where the lengths of a split's conversations are kept."""
    return lengths_file(task.context, split, task.config, task.data_fingerprints())


def lessons_of(student: HearingStudent, config: ReleaseTextConfig) -> SpokenLessons:
    """Conversations for a student."""
    return SpokenLessons(config.data, student.release.tokens, config.form(), student.encoder.rate_hz)


def student_outline(config: ReleaseTextConfig, context: StageContext, *, speaks: bool = True) -> HearingStudent:
    """A student that is ready, on the meta device."""
    encoder = ENCODERS.entry_of(context.parts.encoder).implementation.outline(context.parts.encoder)
    with torch.device("meta"):
        student = HearingStudent(encoder, outline_of(config.checkpoint, config.form(), encoder.dim))
        if not speaks:
            student.release.translator = None
        return ready(student, config, context)


def hearing_groups(model: HearingStudent) -> list[dict[str, Any]]:
    """LoRA, and the modules that learn beside it; one rate for all, as in the authors' code."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups = {"modules": [p for name, p in named if "lora_" not in name], "lora": [p for name, p in named if "lora_" in name]}
    return [{"name": name, "params": params, "lr_scale": 1.0} for name, params in groups.items() if params]


def hearing_parts() -> dict[str, list[str]]:
    """What people call the parts of what hears and thinks."""
    return {"encoder": ["encoder"], **named_parts("adapter", "release.adapter", ADAPTER_PARTS), "language model": ["release.language"]}


def longest_lesson(config: ConversationsConfig) -> int:
    """Tokens of a conversation with one clip as long as allowed and a long text."""
    return WINDOW_TOKENS * max(1, round(config.max_audio_s / WINDOW_S)) + min(WRITTEN_TOKENS, config.max_tokens)


def hearing_activations(release: PublishedEchoX) -> dict[str, float]:
    """Estimated bytes kept from forward to backward per token of a conversation, heard speech included."""
    H = release.adapter.shape.width
    frames = HEARD_SHARE * 1500 / WINDOW_TOKENS / release.adapter.shape.stack
    return {
        "alignment encoder": frames * layer_bytes(release.adapter.layers, H),
        "language model": layer_bytes(release.language.body, H),
        "text scores": ANSWER_SHARE * SCORE_BYTES * release.adapter.shape.vocab_size,
    }
