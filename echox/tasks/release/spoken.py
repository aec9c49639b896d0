"""What the stages share that train a released model on spoken conversations."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from echox.backbones.base import LoraConfig
from echox.core import checkpoint
from echox.core.indexable import Indexable
from echox.encoders.base import ENCODERS, Encoder
from echox.models.footprint import BYTES_PER_CHANNEL, SCORE_BYTES, layer_bytes
from echox.models.release.hearing import WINDOW_S, check_encoder
from echox.models.release.model import PublishedEchoX, ReleaseSpeechLLM
from echox.models.release.train_forward import TextPass, forward_text
from echox.models.release.trainable import (
    cast_parameters,
    select_trained,
    starting_model,
)
from echox.models.speech_adapter import SpeechAdapter
from echox.tasks.base import (
    AuditBatch,
    Outline,
    StageContext,
    TaskBatch,
    TokenTargets,
    named_parts,
)
from echox.tasks.release.audit import (
    WINDOWS_NOTE,
    clip_targets,
    conversation_targets,
    end_id_padding,
)
from echox.tasks.release.base import (
    ADAPTER_MODULES,
    DENOISER_MODULE,
    TRANSLATOR_MODULES,
    ReleaseTask,
    ReleaseTaskConfig,
    release_lora,
    vocoder_unit_count,
)
from echox.tasks.release.conversations import (
    WINDOW_TOKENS,
    ConversationBatch,
    ConversationsConfig,
    ReleaseExample,
    ReleaseExampleReader,
    ReleaseExamples,
)
from echox.tasks.release.t2c import TRANSLATOR_PARTS
from echox.tasks.s2t.estimates import ANSWER_SHARE, SHARES_NOTE, SPEECH_SHARE, WRITTEN_TOKENS
from echox.tasks.t2c.task import UNIT_TOKENS_PER_TEXT_TOKEN

ENCODER_FRAMES = 1500  # of a window
ADAPTER_PARTS = ("projector", "alignment encoder", "CTC head", "look-back")


@dataclass(kw_only=True, slots=True)
class ReleaseTextConfig(ReleaseTaskConfig):
    """Instruction tuning of a published model on spoken conversations."""

    data: ConversationsConfig = field(default_factory=ConversationsConfig)
    """Spoken conversations with written answers, with one audio or several."""
    modules: list[str] = field(default_factory=lambda: list(ADAPTER_MODULES))
    """Modules that learn beside LoRA, by the release's names; the CTC head (audio_feature_head) is
    not among them there."""
    lora: LoraConfig = field(default_factory=release_lora)
    """Adapters on the language model, merged into it when the run is exported."""


@dataclass(kw_only=True, slots=True)
class FullModelConfig(ReleaseTextConfig):
    """Training of a published model whose last answers are synthesized."""

    modules: list[str] = field(
        default_factory=lambda: [*ADAPTER_MODULES, *TRANSLATOR_MODULES, DENOISER_MODULE]
    )
    """Modules that learn beside LoRA, by the release's names."""


class SpokenTask(ReleaseTask[ReleaseSpeechLLM, TaskBatch]):
    """Base of the stages that train a released model on spoken conversations.

    A subclass says which conversations it reads, and which of their tokens are targets.
    """

    continues: tuple[str, ...] = ("s2t", "t2c")
    needs = ("encoder",)
    has_translator = True
    """Whether the unit translator is kept, and trained."""

    def __init__(self, config: ReleaseTextConfig, context: StageContext) -> None:
        super().__init__(config, context)

    @abstractmethod
    def read(self, split: str) -> Indexable[ReleaseExample]:
        """Read the conversations of a split that can be trained on.

        Raises:
            ManifestError: no training conversation remains.
        """

    def build(self) -> ReleaseSpeechLLM:
        """Load the released model with what earlier stages trained, and read the manifests.

        Raises:
            CheckpointError: the folder or an earlier stage's checkpoint is incomplete or damaged,
                or belongs to another model; or the encoder does not fit it.
            ConfigError: a module or a layer of LoRA does not exist.
            ManifestError: no training conversation remains.
        """
        config, encoder = self.config, ENCODERS.build(self.context.parts.encoder)
        # The encoder's channels matter to the tiny untrained model alone, which is built for them.
        release = starting_model(config.checkpoint, config.form(), encoder.dim)
        model = self._prepared(encoder, release)
        self.inherited = self._fill_from_parents(model)
        self.reader = ReleaseExampleReader(
            config.data, self.rows, release.tokens, config.form(), encoder.rate_hz
        )
        self.splits = {split: self.read(split) for split in ("train", "valid")}
        return model

    def _prepared(self, encoder: Encoder, release: PublishedEchoX) -> ReleaseSpeechLLM:
        """The model behind its encoder, frozen except for what is trained, with LoRA.

        Raises:
            CheckpointError: encoder and model do not fit each other.
            ConfigError: a module or a layer does not exist.
        """
        # First, because a misfit would else be an error of shapes inside the model.
        check_encoder(encoder, release.adapter.sizes.feature_dim)
        if not self.has_translator:
            release.translator = None
        select_trained(release, self.config.modules, self.config.lora)
        # After freezing, because only frozen weights are rounded.
        cast_parameters(release, half=self.context.bf16)
        return ReleaseSpeechLLM(encoder, release)

    def _fill_from_parents(self, model: ReleaseSpeechLLM) -> list[str]:
        """Load what earlier stages trained, LoRA too, and return the names of their tensors."""
        inherited: list[str] = []
        # T2C's checkpoint names tensors from the release's root, because it has no encoder.
        for stage, module, prefix in (("s2t", model, ""), ("t2c", model.release, "release.")):
            # Where the recipe has no such stage, the published weights stand in for it.
            if stage in self.context.parents:
                parent = checkpoint.load(self.context.parents[stage])
                checkpoint.fill(module, parent, set(parent.tensors))
                inherited += [f"{prefix}{name}" for name in parent.tensors]
        return inherited

    def outline(self, parents: Mapping[str, Outline]) -> Outline:
        config, encoder_config = self.config, self.context.parts.encoder
        encoder = ENCODERS.entry_of(encoder_config).implementation.outline(encoder_config)
        # On the meta device too, where LoRA's new weights must be.
        with torch.device("meta"):
            release = starting_model(config.checkpoint, config.form(), encoder.dim, meta=True)
            model = self._prepared(encoder, release)
        adapter = {name: SpeechAdapter.parts[name] for name in ADAPTER_PARTS}
        parts = {
            "encoder": ["encoder"],
            **named_parts("adapter", "release.adapter", adapter),
            "language model": ["release.language"],
        }
        notes = [SHARES_NOTE]
        if self.has_translator:
            parts |= named_parts("unit translator", "release.translator", TRANSLATOR_PARTS)
            notes.append(f"activations: {UNIT_TOKENS_PER_TEXT_TOKEN} unit words to a text token")
        return Outline(
            model=model,
            parts=parts,
            cost_unit="tokens",
            longest_cost=_longest_conversation(config.data),
            activations=_activations(release),
            notes=notes,
        )

    def trained_state_dict(self, model: ReleaseSpeechLLM) -> dict[str, Tensor]:
        state = model.state_dict()
        trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        # With inherited tensors, so that the checkpoint can be exported by itself.
        names = dict.fromkeys([*trained, *self.inherited])
        return {name: state[name] for name in names}

    def parameter_groups(self, model: ReleaseSpeechLLM) -> list[dict[str, Any]]:
        """Groups of LoRA and of the trained modules, of one rate as in the authors' code."""
        trained = [
            (name, parameter)
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        ]
        groups = {
            # As peft names LoRA's parameters.
            "modules": [p for name, p in trained if "lora_" not in name],
            "lora": [p for name, p in trained if "lora_" in name],
        }
        return [
            {"name": name, "params": params, "lr_scale": 1.0}
            for name, params in groups.items()
            if params
        ]

    def audit_conversations(
        self,
        batch: ConversationBatch,
        units: Iterable[TokenTargets] = (),
        padding: Iterable[Tensor] = (),
    ) -> AuditBatch:
        """Return B conversations as their losses see them.

        Args:
            batch: the conversations.
            units: targets of the unit translator.
            padding: of what it reads.
        """
        tokens = self.reader.tokens
        return AuditBatch(
            tracks=[*conversation_targets(tokens, batch), *units],
            ctc_targets=clip_targets(tokens, batch),
            padding=[*end_id_padding(batch.ids, tokens.end_id), *padding],
            unit_count=vocoder_unit_count(self.config.checkpoint) if self.has_translator else None,
            notes=[WINDOWS_NOTE],
        )

    def conversations(self, split: str) -> ReleaseExamples:
        """Return the conversations of a split, as they are read in an epoch."""
        return ReleaseExamples(self.splits[split], self.rows)


def teacher_forced(model: ReleaseSpeechLLM, batch: ConversationBatch) -> TextPass:
    """Run encoder and S2T model over B conversations [B, N] with their answers.

    Returns:
        hidden states [B, P, H] and the labels at their positions.
    """
    # Audio is encoded at every step: features are not cached in the released form.
    return forward_text(
        model.release, batch.ids, batch.labels, model.encoder(batch.wave), batch.clip_rows
    )


def _longest_conversation(config: ConversationsConfig) -> int:
    """Tokens of a conversation with one clip as long as allowed and a long text."""
    # At least one window: shorter clips are padded to it.
    windows = max(1, round(config.max_audio_s / WINDOW_S))
    return WINDOW_TOKENS * windows + min(WRITTEN_TOKENS, config.max_tokens)


def _activations(release: PublishedEchoX) -> dict[str, float]:
    """Estimated bytes kept from forward to backward per token, speech included, by part."""
    adapter, H = release.adapter, release.adapter.sizes.width
    frames = SPEECH_SHARE * ENCODER_FRAMES / WINDOW_TOKENS / adapter.config.stack
    activations = {
        "alignment encoder": frames * layer_bytes(adapter.layers, H),
        "language model": layer_bytes(release.language.body, H),
        "text scores": ANSWER_SHARE * SCORE_BYTES * adapter.sizes.classes,
    }
    if release.translator is None:
        return activations
    body = release.translator.body
    positions = 1 + UNIT_TOKENS_PER_TEXT_TOKEN  # the text token and its units
    return {
        **activations,
        # An estimate: the adapter's inner channels count as a layer of the model's width.
        "denoising adapter": ANSWER_SHARE * BYTES_PER_CHANNEL * H,
        "unit translator": ANSWER_SHARE * positions * layer_bytes(body, body.config.hidden_size),
    }
