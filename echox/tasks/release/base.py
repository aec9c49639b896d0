"""What the stages in the released form share: where training starts, and what is trained."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING
from torch import nn

from echox.assets.hub import missing_files
from echox.backbones.base import Backbone, LoraConfig
from echox.codecs.base import Codec
from echox.core.checkpoint import Checkpoint
from echox.core.errors import CheckpointError
from echox.models.compatibility import PAPER, Compatibility, form_of
from echox.models.release.folder import weights_fingerprint
from echox.models.release.tokens import UNIT_COUNT
from echox.models.release.trainable import config_of, is_untrained
from echox.tasks.base import Model, StageContext, Task, TaskBatch, TaskConfig
from echox.tasks.conversations import SpokenRows
from echox.tasks.lazy_examples import lengths_file

# Modules that are trained, by the release's names.
ADAPTER_MODULES = ["mm_projector1", "asr_transformer_encoder", "out_norm", "lbm"]
TRANSLATOR_MODULES = [
    f"unit_translator.{name}"
    for name in ("unit_embedding", "adapter", "model.layers", "model.norm", "lm_head")
]
DENOISER_MODULE = "unit_translator.aligner_MLP"


def release_lora() -> LoraConfig:
    """LoRA of the authors' speech-to-speech training; that of S2T before had v_proj too.

    Source: github.com/xiaozhang521/ACLlama, branch s2s, 2ba74c5.
    """
    return LoraConfig(rank=64, alpha=16.0, dropout=0.05, targets=["q_proj", "k_proj"])


@dataclass(kw_only=True, slots=True)
class ReleaseTaskConfig(TaskConfig):
    """Base of the configs of stages in the released form."""

    checkpoint: str = MISSING
    """Published folder that training starts from; "random" is a tiny untrained model for tests,
    "random:EchoX-3B" (or -8B) the true shapes untrained, for speed work."""
    released_form: bool = True
    """Compute in the checkpoint's own form, which its weights have learned; off, as the paper
    describes, and the exported folder says so."""

    def form(self) -> Compatibility:
        """The form that is computed.

        Raises:
            CheckpointError: the checkpoint is incomplete, or no released model.
            ConfigError: its config.json describes another model or form.
            AssetError: no shape of that name is known.
        """
        return form_of(config_of(self.checkpoint)) if self.released_form else PAPER


class ReleaseTask(Task[Model, TaskBatch]):
    """Base of the stages in the released form: checkpoints are exported before they answer.

    Attributes:
        rows: of the manifests that the config names as `data`.
    """

    def __init__(self, config: Any, context: StageContext) -> None:
        super().__init__(config, context)
        self.rows = SpokenRows(config.data)

    def manifests(self) -> list[str]:
        """List the manifests of training and of validation."""
        return [*self.config.data.train, *self.config.data.valid]

    def missing(self) -> list[str]:
        """List the files that the released folder lacks to be trained from."""
        return missing_release_files(self.config.checkpoint)

    def data_fingerprints(self) -> dict[str, str]:
        """Fingerprints of the manifests and of the weights that training starts from.

        Raises:
            ManifestError: a manifest cannot be read.
            CheckpointError: the published folder has no weights, or some are missing.
        """
        fingerprint = checkpoint_fingerprint(self.config.checkpoint)
        return {**self.rows.fingerprints(), "checkpoint": fingerprint}

    def lengths_path(self, split: str) -> Path:
        """File that keeps the lengths of a split's examples; fingerprints all manifests."""
        return lengths_file(self.context, split, self.config, self.data_fingerprints())

    @classmethod
    def restore(
        cls,
        checkpoint: Checkpoint,
        *,
        backbone: Backbone | None = None,
        codec: Codec | None = None,
    ) -> nn.Module:
        """Refuse, with the command that makes a checkpoint a released folder.

        Raises:
            CheckpointError: always.
        """
        raise CheckpointError(
            f"{checkpoint.folder} was trained in the published form; write "
            f"'echox-prepare export {checkpoint.folder} output=FOLDER', and name that folder"
        )


def missing_release_files(checkpoint: str) -> list[str]:
    """Files that a released folder lacks to be trained from."""
    if is_untrained(checkpoint):
        return []
    folder = Path(checkpoint)
    # One line instead of one for each file.
    if not folder.is_dir():
        return [f"{folder} (published folder)"]
    names = list(missing_files(folder))
    # `missing_files` counts config and weights alone.
    if not (folder / "tokenizer.json").is_file():
        names.append("tokenizer.json")
    return [str(folder / name) for name in names]


def checkpoint_fingerprint(checkpoint: str) -> str:
    """Fingerprint of the weights that training starts from.

    Raises:
        CheckpointError: the folder has no weights, or some are missing.
    """
    # Untrained weights follow from their name.
    return checkpoint if is_untrained(checkpoint) else weights_fingerprint(Path(checkpoint))


def vocoder_unit_count(checkpoint: str) -> int:
    """Number of units of a released folder's vocoder; the release's where it has no vocoder."""
    path = Path(checkpoint) / "vocoder_config.json"
    if not path.is_file():
        return UNIT_COUNT
    return json.loads(path.read_text("utf-8")).get("num_embeddings", UNIT_COUNT)
