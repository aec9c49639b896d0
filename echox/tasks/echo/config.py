"""Config of the Echo stage."""

from __future__ import annotations

from dataclasses import dataclass, field

from echox.core.config import neutral, refuse_below
from echox.core.errors import ConfigError
from echox.models.denoising import DenoisingConfig
from echox.models.segmenting import SegmentsConfig
from echox.tasks.base import TaskConfig
from echox.tasks.conversations import SpokenDataConfig
from echox.tasks.echo.pseudo_labels import OnlineLabelsConfig
from echox.tasks.echo.recorded_answers import RecordedAnswersConfig


@dataclass(kw_only=True, slots=True)
class EchoTaskConfig(TaskConfig):
    """Echo training on spoken conversations; no recorded answer is needed.

    Raises:
        ConfigError: two settings exclude each other.
    """

    data: SpokenDataConfig = field(default_factory=SpokenDataConfig)
    """Spoken conversations with written answers."""
    denoiser: DenoisingConfig = field(default_factory=DenoisingConfig)
    """Shape of the denoising adapter."""
    segments: SegmentsConfig | None = None
    """Cut answers into segments and synthesize each by itself, in training and afterwards, as
    streaming does; null leaves answers whole."""
    online: OnlineLabelsConfig | None = None
    """Compute pseudo-labels at every step from the current states; null computes them once,
    before training."""
    recorded: RecordedAnswersConfig | None = None
    """Learn some training answers as they were recorded, from their own text (their manifests
    need 'units'); null learns pseudo-labels alone."""
    labels: str | None = None
    """Folder of pseudo-labels that `echox-prepare labels` wrote, refused where they are stale;
    null keeps them in `cache_dir`."""
    label_batch: int = neutral(16)
    """Conversations labelled at once."""
    rows: int | None = None
    """Training conversations drawn from the manifests; null takes all."""
    train_speech_llm: bool = True
    """Train LoRA and the speech adapter too, as the paper does; off, the S2T model is frozen and
    only denoising adapter and unit decoder are trained."""
    train_alignment: bool = True
    """Train the adapter's alignment encoder and CTC head too, where the speech adapter is
    trained."""
    train_look_back: bool = True
    """Train the adapter's look-back, where the speech adapter is trained."""
    speech_llm_lr_scale: float = 0.1
    """Learning rate of LoRA and the speech adapter as a multiple of the stage's."""
    voice_lr_scale: float = 0.2
    """Learning rate of the unit decoder as a multiple of the stage's; it comes trained, the
    denoising adapter starts from nothing."""
    scored_rows: int = neutral(64)
    """Validation rows whose units are generated and compared with their pseudo-labels."""

    def __post_init__(self) -> None:
        refuse_below(self, 1, "rows", "label_batch")
        refuse_below(self, 0, "speech_llm_lr_scale", "voice_lr_scale", "scored_rows")
        if self.online is not None and self.labels is not None:
            raise ConfigError(
                f"online labels are made at every step, and labels={self.labels} names cached "
                "ones; set one of the two to null"
            )
        if self.online is not None and self.recorded is not None:
            raise ConfigError(
                "recorded answers stand beside cached pseudo-labels, and online makes them at "
                "every step; set one of the two to null"
            )
