"""What the stages share that train a whole released model: adapters, LoRA and unit translator."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from echox.core import checkpoint
from echox.core.indexable import Indexable
from echox.encoders.base import ENCODERS
from echox.models.footprint import BYTES_PER_CHANNEL, layer_bytes
from echox.models.release.model import PublishedEchoX, ReleaseSpeechLLM
from echox.models.release.trainable import starting_model
from echox.tasks.base import Outline, StageContext, TaskBatch, named_parts
from echox.tasks.release.base import (
    ADAPTER_MODULES,
    DENOISER_MODULE,
    TRANSLATOR_MODULES,
    ReleaseTask,
)
from echox.tasks.release.conversations import ReleaseExample
from echox.tasks.release.s2t import (
    ReleaseTextConfig,
    example_reader,
    longest_conversation,
    module_and_lora_groups,
    outline_model,
    prepare_training,
    speech_llm_activations,
    speech_llm_parts,
)
from echox.tasks.release.t2c import TRANSLATOR_PARTS
from echox.tasks.s2t.estimates import ANSWER_SHARE, SHARES_NOTE
from echox.tasks.t2c.task import UNIT_TOKENS_PER_TEXT_TOKEN


@dataclass(kw_only=True, slots=True)
class FullModelConfig(ReleaseTextConfig):
    """Training of a published model whose last answers are synthesized."""

    modules: list[str] = field(
        default_factory=lambda: [*ADAPTER_MODULES, *TRANSLATOR_MODULES, DENOISER_MODULE]
    )
    """Modules that learn beside LoRA, by the release's names."""


class FullModelTask(ReleaseTask[ReleaseSpeechLLM, TaskBatch]):
    """Base of the stages that train a whole released model.

    A subclass says which conversations it reads, and which of their tokens are targets.
    """

    continues = ("s2t", "t2c")
    needs = ("encoder",)

    def __init__(self, config: FullModelConfig, context: StageContext) -> None:
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
                or belongs to another model.
            ConfigError: a module or a layer of LoRA does not exist.
            ManifestError: no training conversation remains.
        """
        model, self.inherited = self._model()
        self.reader = example_reader(model, self.config, self.rows)
        self.splits = {split: self.read(split) for split in ("train", "valid")}
        return model

    def _model(self) -> tuple[ReleaseSpeechLLM, list[str]]:
        """The model, and the names of the tensors that earlier stages trained."""
        encoder = ENCODERS.build(self.context.parts.encoder)
        release = starting_model(self.config.checkpoint, self.config.form(), encoder.dim)
        # LoRA first: earlier checkpoints hold its weights too.
        model = prepare_training(ReleaseSpeechLLM(encoder, release), self.config, self.context)
        inherited: list[str] = []
        # T2C's checkpoint names tensors from the release's root, because it has no encoder.
        for stage, module, prefix in (("s2t", model, ""), ("t2c", model.release, "release.")):
            # Where the recipe has no such stage, the published weights stand in for it.
            if stage in self.context.parents:
                parent = checkpoint.load(self.context.parents[stage])
                checkpoint.fill(module, parent, set(parent.tensors))
                inherited += [f"{prefix}{name}" for name in parent.tensors]
        return model, inherited

    def outline(self, parents: Mapping[str, Outline]) -> Outline:
        model = outline_model(self.config, self.context)
        return Outline(
            model=model,
            parts={
                **speech_llm_parts(),
                **named_parts("unit translator", "release.translator", TRANSLATOR_PARTS),
            },
            cost_unit="tokens",
            longest_cost=longest_conversation(self.config.data),
            activations=_activations(model.release),
            notes=[
                SHARES_NOTE,
                f"activations: {UNIT_TOKENS_PER_TEXT_TOKEN} unit words to a text token",
            ],
        )

    def trained_state_dict(self, model: ReleaseSpeechLLM) -> dict[str, Tensor]:
        state = model.state_dict()
        trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        # With inherited tensors, so that the checkpoint can be exported by itself.
        names = dict.fromkeys([*trained, *self.inherited])
        return {name: state[name] for name in names}

    def parameter_groups(self, model: ReleaseSpeechLLM) -> list[dict[str, Any]]:
        return module_and_lora_groups(model)


def _activations(release: PublishedEchoX) -> dict[str, float]:
    """Estimated bytes kept from forward to backward per token of a conversation, by part."""
    body = release.require_translator().body
    positions = 1 + UNIT_TOKENS_PER_TEXT_TOKEN  # the text token and its units
    units = ANSWER_SHARE * positions * layer_bytes(body, body.config.hidden_size)
    # An estimate: the adapter's inner channels count as a layer of the model's width.
    denoised = ANSWER_SHARE * BYTES_PER_CHANNEL * release.adapter.sizes.width
    return {
        **speech_llm_activations(release),
        "denoising adapter": denoised,
        "unit translator": units,
    }
