"""Settings of the training loop, with their defaults."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass, field

from echox.core.config import neutral
from echox.core.errors import ConfigError

# Fields by their bounds; those that may be null are checked where they are set.
AT_LEAST_ONE = (
    "steps",
    "batch_size",
    "batch_cost",
    "accumulation",
    "validate_every",
    "validate_batches",
    "save_every",
    "keep_checkpoints",
    "log_every",
)
ABOVE_ZERO = ("lr", "eps", "grad_clip", "save_seconds", "time_budget_s")
NOT_NEGATIVE = ("weight_decay", "num_workers")


class LrSchedule(enum.Enum):
    """Shape of the learning rate after warmup."""

    constant = "constant"
    linear = "linear"  # to `min_lr_ratio` of the peak
    cosine = "cosine"  # to `min_lr_ratio` along half a period
    exponential = "exponential"  # by an equal factor each step


class Precision(enum.Enum):
    """Number format of forward passes; weights, gradients and optimizer state stay float32."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"


@dataclass(kw_only=True, slots=True)
class TrainConfig:
    """Settings of the training of one stage."""

    steps: int = 1000
    """Optimizer steps; one step takes `accumulation` micro-batches on every rank, or in all with
    `split_batches`."""
    batch_size: int | None = 16
    """Examples at most in a micro-batch; null leaves `batch_cost` alone to decide."""
    batch_cost: int | None = None
    """Padded cost at most of a micro-batch, longest example times examples, in the unit of the
    task's `cost` (frames, tokens); an example longer than this is a batch of its own."""
    split_batches: bool = False
    """Ranks share each micro-batch, so that a step is the same at any number of them; otherwise
    each takes a micro-batch of its own."""
    accumulation: int = 1
    """Micro-batches per optimizer step; their gradients equal those of one large batch."""
    lr: float = 1e-3
    """Peak learning rate; a task's parameter groups scale it."""
    lr_schedule: LrSchedule = LrSchedule.cosine
    """Shape of the learning rate after warmup: constant, linear, cosine or exponential."""
    warmup_fraction: float = 0.05
    """Share of `steps` in [0, 1) over which the learning rate rises linearly from zero."""
    min_lr_ratio: float = 0.1
    """Share of the peak in [0, 1] at which a falling schedule ends; above 0 for an exponential
    one."""
    # A list, because OmegaConf turns tuples into lists.
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98])
    """AdamW's two decay rates per step, of the gradient's mean and of its square."""
    eps: float = 1e-8
    """AdamW's denominator offset."""
    weight_decay: float = 0.01
    """AdamW's decoupled decay per unit of learning rate; tensors of fewer than two dimensions
    (biases, norms) have none."""
    grad_clip: float | None = 1.0
    """L2 norm at most of the whole gradient; null does not clip."""
    precision: Precision = Precision.auto
    """Number format of forward passes: fp32, bf16, or auto, which is bf16 where the device
    multiplies it fast."""
    # Neutral fields do not decide what is learned, so a resumed run may change them.
    validate_every: int | None = neutral(500)
    """Steps between validations, with one more after the last step; null never validates."""
    validate_batches: int | None = neutral(32)
    """Batches at most in a validation, the same ones each time; null takes the entire split."""
    save_every: int | None = neutral(500)
    """Steps between checkpoints; null saves by time only."""
    save_seconds: float | None = neutral(300.0)
    """Seconds at most between checkpoints; null saves by steps only."""
    keep_checkpoints: int = neutral(2)
    """Checkpoints kept, the newest; the final one is beside them."""
    log_every: int = neutral(10)
    """Steps between lines of metrics.jsonl, each a mean over the steps since the line before."""
    tensorboard: bool = neutral(False)
    """Write the metrics for TensorBoard too."""
    audit: bool = neutral(True)
    """Print the first batch as the losses see it and check its labels before the first step; the
    page is kept as audit.txt in the stage's folder."""
    num_workers: int = neutral(0)
    """Processes that read and collate ahead; 0 reads in the training process, which alone resumes
    random augmentation exactly."""
    time_budget_s: float | None = None
    """Seconds of training, over all resumptions, after which the stage ends as if `steps` were
    reached; null has no limit."""
    compile: bool = neutral(False)
    """Compile the forward pass and the criterion with torch.compile."""

    def __post_init__(self) -> None:
        """Check all values, and report every fault in one error.

        Raises:
            ConfigError: values that cannot be trained with.
        """
        if faults := [*self._bound_faults(), *self._schedule_faults()]:
            raise ConfigError("training config: " + "; ".join(faults))

    def _bound_faults(self) -> Iterator[str]:
        if self.batch_size is None and self.batch_cost is None:
            yield "batch_size and batch_cost are both null, so a batch would have no end; set one"
        for name in AT_LEAST_ONE:
            value = getattr(self, name)
            if value is not None and value < 1:
                yield f"{name} must be at least 1, not {value}"
        for name in ABOVE_ZERO:
            value = getattr(self, name)
            # Not `value <= 0`, which is false for NaN.
            if value is not None and not value > 0:
                yield f"{name} must be above 0, not {value}"
        for name in NOT_NEGATIVE:
            if not getattr(self, name) >= 0:
                yield f"{name} must not be negative, and is {getattr(self, name)}"

    def _schedule_faults(self) -> Iterator[str]:
        if not 0 <= self.warmup_fraction < 1:
            yield f"warmup_fraction must lie in [0, 1), not {self.warmup_fraction}"
        if not 0 <= self.min_lr_ratio <= 1:
            yield f"min_lr_ratio must lie in [0, 1], not {self.min_lr_ratio}"
        if self.lr_schedule is LrSchedule.exponential and self.min_lr_ratio == 0:
            yield (
                "min_lr_ratio is 0, which an exponential lr_schedule never reaches; set the share "
                "it ends at"
            )
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            yield f"betas must be two numbers in [0, 1), not {list(self.betas)}"
