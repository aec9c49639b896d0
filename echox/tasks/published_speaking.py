"""What the stages share that train a published model's voice on what it hears and thinks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from echox import checkpoint
from echox.encoders.base import ENCODERS
from echox.models.footprint import BYTES_PER_CHANNEL, layer_bytes
from echox.models.published.student import HearingStudent, starting_model
from echox.tasks.base import Outline, StageContext, Task, named_parts
from echox.tasks.published import DENOISER, HEARING, SPEAKING, Lesson, checkpoint_fingerprint, missing_of
from echox.tasks.published_s2t import ReleaseTextConfig, hearing_activations, hearing_groups, hearing_parts, lessons_of, longest_lesson, ready, student_outline
from echox.tasks.published_t2c import TRANSLATOR_PARTS
from echox.tasks.speech_text import ANSWER_SHARE, ASSUMED

WORDS_PER_TOKEN = 4.57  # of EchoX's unit language (its table 5)


@dataclass(kw_only=True, slots=True)
class SpeakingConfig(ReleaseTextConfig):
    """Training of a published model whose last answers are spoken."""

    modules: list[str] = field(default_factory=lambda: [*HEARING, *SPEAKING, DENOISER])
    """Modules that learn beside LoRA, by the release's names."""


class SpeakingTask(Task):
    """A stage that trains the whole of a published model; a leaf says which conversations it reads, and what of them is a target."""

    continues = ("s2t", "t2c")
    needs = ("encoder",)

    def __init__(self, config: SpeakingConfig, context: StageContext) -> None:
        super().__init__(config, context)

    @abstractmethod
    def read(self, split: str) -> Sequence[Lesson]:
        """The conversations of a split that can be learned from."""

    def build(self) -> HearingStudent:
        student, self.inherited = speaking_student(self.config, self.context)
        self.lessons = lessons_of(student, self.config)
        self.splits = {split: self.read(split) for split in ("train", "valid")}
        return student

    def manifests(self) -> list[str]:
        return [*self.config.data.train, *self.config.data.valid]

    def missing(self) -> list[str]:
        return missing_of(self.config.checkpoint)

    def outline(self, parents: Mapping[str, Outline]) -> Outline:
        return speaking_outline(self.config, self.context)

    def learned(self, model: HearingStudent) -> dict[str, Tensor]:
        return learned_here_and_before(model, self.inherited)

    def parameter_groups(self, model: HearingStudent) -> list[dict[str, Any]]:
        return hearing_groups(model)

    def data_fingerprints(self) -> dict[str, str]:
        return {**self.lessons.rows.fingerprints(), "checkpoint": checkpoint_fingerprint(self.config.checkpoint)}


def speaking_student(config: ReleaseTextConfig, context: StageContext) -> tuple[HearingStudent, list[str]]:
    """The whole model, ready, with what the stages before have learned; and the names of that.

    Raises:
        CheckpointError: a stage before belongs to another recipe.
    """
    encoder = ENCODERS.build(context.parts.encoder)
    student = ready(HearingStudent(encoder, starting_model(config.checkpoint, config.form(), encoder.dim)), config, context)
    names: list[str] = []
    for stage, module, prefix in (("s2t", student, ""), ("t2c", student.release, "release.")):
        if stage in context.parents:
            found = checkpoint.load(context.parents[stage])
            checkpoint.fill(module, found, set(found.tensors))
            names += [f"{prefix}{name}" for name in found.tensors]
    return student, names


def learned_here_and_before(model: HearingStudent, inherited: Sequence[str]) -> dict[str, Tensor]:
    """What a checkpoint holds that is to be exported by itself."""
    state = model.state_dict()
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return {name: state[name] for name in dict.fromkeys([*trained, *inherited])}


def speaking_outline(config: ReleaseTextConfig, context: StageContext) -> Outline:
    """The whole model before anything is read."""
    student = student_outline(config, context)
    release = student.release
    body = release.translator.body
    spoken = ANSWER_SHARE * (1 + WORDS_PER_TOKEN) * layer_bytes(body, body.config.hidden_size)
    denoised = ANSWER_SHARE * BYTES_PER_CHANNEL * release.adapter.shape.width
    return Outline(
        model=student,
        parts={**hearing_parts(), **named_parts("unit translator", "release.translator", TRANSLATOR_PARTS)},
        cost_unit="tokens",
        longest_cost=longest_lesson(config.data),
        activations={**hearing_activations(release), "denoising adapter": denoised, "unit translator": spoken},
        notes=[ASSUMED, f"activations: {WORDS_PER_TOKEN} unit words to a text token"],
    )
