"""S2T in the released form: adapters and LoRA of a released EchoX learn to answer questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from echox.backbones.base import LoraConfig
from echox.criteria.base import SpeechTextOutputs
from echox.encoders.base import ENCODERS
from echox.models.footprint import SCORE_BYTES, layer_bytes
from echox.models.release.hearing import WINDOW_S, check_encoder
from echox.models.release.model import PublishedEchoX, ReleaseSpeechLLM
from echox.models.release.train_forward import TextPass, forward_text, text_outputs
from echox.models.release.trainable import (
    cast_parameters,
    outline_starting_model,
    select_trained,
    starting_model,
    trained_tensors,
)
from echox.models.speech_adapter import SpeechAdapter
from echox.tasks.base import TASKS, AuditBatch, Outline, StageContext, named_parts
from echox.tasks.conversations import SpokenRows
from echox.tasks.release.audit import (
    WINDOWS_NOTE,
    clip_targets,
    conversation_targets,
    end_id_padding,
)
from echox.tasks.release.base import (
    ADAPTER_MODULES,
    ReleaseTask,
    ReleaseTaskConfig,
    release_lora,
)
from echox.tasks.release.conversations import (
    WINDOW_TOKENS,
    ConversationBatch,
    ConversationsConfig,
    ReleaseExample,
    ReleaseExampleReader,
    ReleaseExamples,
)
from echox.tasks.s2t.estimates import ANSWER_SHARE, SHARES_NOTE, SPEECH_SHARE, WRITTEN_TOKENS

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


@TASKS.register("published_s2t", ReleaseTextConfig)
class ReleaseTextTask(ReleaseTask[ReleaseSpeechLLM, ConversationBatch]):
    """Stage I from a published folder: cross-entropy of the answers, and CTC of the questions.

    CTC is over the language model's vocabulary.

    Source: Soundwave (arXiv:2502.12900) and EchoX (arXiv:2509.09174).
    """

    needs = ("encoder",)

    def __init__(self, config: ReleaseTextConfig, context: StageContext) -> None:
        super().__init__(config, context)

    def build(self) -> ReleaseSpeechLLM:
        """Load the released model behind its encoder, and read the manifests.

        Raises:
            CheckpointError: the folder is incomplete or damaged, or the encoder does not fit it.
            ConfigError: a module or a layer of LoRA does not exist.
            ManifestError: no training conversation has audio and an answer.
        """
        model = prepare_training(self._model(), self.config, self.context)
        self.reader = example_reader(model, self.config, self.rows)
        self.splits = {
            # Lazily: the name of the file needs fingerprints of all manifests.
            split: self.reader.read(split, lengths=partial(self.lengths_path, split))
            for split in ("train", "valid")
        }
        return model

    def _model(self) -> ReleaseSpeechLLM:
        encoder = ENCODERS.build(self.context.parts.encoder)
        # The encoder's channels matter to the tiny untrained model alone, which is built for them.
        model = ReleaseSpeechLLM(
            encoder, starting_model(self.config.checkpoint, self.config.form(), encoder.dim)
        )
        model.release.translator = None  # no units are predicted here
        return model

    def outline(self, parents: Mapping[str, Outline]) -> Outline:
        model = outline_model(self.config, self.context, has_translator=False)
        return Outline(
            model=model,
            parts=speech_llm_parts(),
            cost_unit="tokens",
            longest_cost=longest_conversation(self.config.data),
            activations=speech_llm_activations(model.release),
            notes=[SHARES_NOTE],
        )

    def trained_state_dict(self, model: ReleaseSpeechLLM) -> dict[str, Tensor]:
        return trained_tensors(model)

    def parameter_groups(self, model: ReleaseSpeechLLM) -> list[dict[str, Any]]:
        return module_and_lora_groups(model)

    def examples(self, split: str) -> ReleaseExamples:
        return ReleaseExamples(self.splits[split], self.rows)

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
        tokens = self.reader.tokens
        return AuditBatch(
            conversation_targets(tokens, batch),
            clip_targets(tokens, batch),
            end_id_padding(batch.ids, tokens.end_id),
            notes=[WINDOWS_NOTE],
        )


def teacher_forced(model: ReleaseSpeechLLM, batch: ConversationBatch) -> TextPass:
    """Run encoder and S2T model over B conversations [B, N] with their answers.

    Returns:
        hidden states [B, P, H] and the labels at their positions.
    """
    # Audio is encoded at every step: features are not cached in the released form.
    return forward_text(
        model.release, batch.ids, batch.labels, model.encoder(batch.wave), batch.clip_rows
    )


def prepare_training(
    model: ReleaseSpeechLLM, config: ReleaseTextConfig, context: StageContext
) -> ReleaseSpeechLLM:
    """Freeze a model except for what the config trains, and add LoRA.

    Args:
        model: changed in place.
        config: names the trained modules.
        context: says in which formats weights are stored.

    Raises:
        CheckpointError: encoder and model do not fit each other.
        ConfigError: a module or a layer does not exist.
    """
    # First, because a misfit would else be an error of shapes inside the model.
    check_encoder(model.encoder, model.release.adapter.sizes.feature_dim)
    select_trained(model.release, config.modules, config.lora)
    # After freezing, because only frozen weights are rounded.
    cast_parameters(model.release, half=context.bf16)
    return model


def example_reader(
    model: ReleaseSpeechLLM, config: ReleaseTextConfig, rows: SpokenRows
) -> ReleaseExampleReader:
    """Reader of conversations in the tokens of a model."""
    return ReleaseExampleReader(
        config.data, rows, model.release.tokens, config.form(), model.encoder.rate_hz
    )


def outline_model(
    config: ReleaseTextConfig, context: StageContext, *, has_translator: bool = True
) -> ReleaseSpeechLLM:
    """Model as it is trained, on the meta device.

    Args:
        config: of the task.
        context: of the stage.
        has_translator: keep the unit translator.

    Raises:
        CheckpointError, ConfigError, AssetError: as `prepare_training` and `starting_model`.
    """
    encoder_config = context.parts.encoder
    encoder = ENCODERS.entry_of(encoder_config).implementation.outline(encoder_config)
    with torch.device("meta"):
        release = outline_starting_model(config.checkpoint, config.form(), encoder.dim)
        model = ReleaseSpeechLLM(encoder, release)
        if not has_translator:
            model.release.translator = None
        # On the meta device too, where LoRA's new weights must be.
        return prepare_training(model, config, context)


def module_and_lora_groups(model: ReleaseSpeechLLM) -> list[dict[str, Any]]:
    """Parameter groups of LoRA and of the trained modules.

    Both have one learning rate, as in the authors' code.
    """
    trained = [
        (name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad
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


def speech_llm_parts() -> dict[str, list[str]]:
    """Parts of encoder, adapter and language model for `Outline.parts`."""
    adapter = {name: SpeechAdapter.parts[name] for name in ADAPTER_PARTS}
    return {
        "encoder": ["encoder"],
        **named_parts("adapter", "release.adapter", adapter),
        "language model": ["release.language"],
    }


def longest_conversation(config: ConversationsConfig) -> int:
    """Tokens of a conversation with one clip as long as allowed and a long text."""
    # At least one window: shorter clips are padded to it.
    windows = max(1, round(config.max_audio_s / WINDOW_S))
    return WINDOW_TOKENS * windows + min(WRITTEN_TOKENS, config.max_tokens)


def speech_llm_activations(release: PublishedEchoX) -> dict[str, float]:
    """Estimated bytes kept from forward to backward per token, speech included, by part."""
    adapter, H = release.adapter, release.adapter.sizes.width
    frames = SPEECH_SHARE * ENCODER_FRAMES / WINDOW_TOKENS / adapter.config.stack
    return {
        "alignment encoder": frames * layer_bytes(adapter.layers, H),
        "language model": layer_bytes(release.language.body, H),
        "text scores": ANSWER_SHARE * SCORE_BYTES * adapter.sizes.classes,
    }
