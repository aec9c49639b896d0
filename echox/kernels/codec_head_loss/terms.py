"""What one codec-head loss is made of, apart from its tensors."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from echox.errors import ConfigError


class Impl(enum.Enum):
    """How a codec-head loss is computed."""

    auto = "auto"  # torch on a CPU; on a GPU chunked with gradients, fused without
    reference = "reference"  # whole logits and autograd, the number all others are held to
    torch = "torch"  # chunks of rows in plain PyTorch
    chunked = "chunked"  # library matrix products and one Triton kernel over the rows of each chunk
    fused = "fused"  # Triton kernels that never write logits


class Reduction(enum.Enum):
    """What becomes of the losses of the targets."""

    mean = "mean"
    sum = "sum"
    none = "none"


@dataclass(frozen=True, slots=True)
class Terms:
    """The scores, the softmax and the loss of a row, per codebook.

    z = x W^T + b, y = softcap * tanh(z / softcap), s = y / temperature, lse = log sum exp s over the V rows of the codebook;
    loss = lse - (1 - label_smoothing) * s_target - label_smoothing / V * sum s + z_loss * lse^2.
    """

    cuts: tuple[int, ...]  # [K + 1] rising rows of the matrix; codebook k owns rows cuts[k] .. cuts[k + 1] - 1
    ignore_index: int = -100
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    softcap: float = 0.0  # 0 is none
    temperature: float = 1.0
    whole: int = 0  # entries of the vocabulary of which these rows are one rank's part; targets elsewhere are then no error. 0: they are all

    def __post_init__(self) -> None:
        if len(self.cuts) < 2 or any(stop <= start for start, stop in zip(self.cuts, self.cuts[1:])) or self.cuts[0] < 0:
            raise ConfigError(f"segments {list(self.cuts)} are no rising row numbers from 0 on; give [0, V] for one codebook, [0, V1, V1+V2] for two")
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"label_smoothing is a probability in [0, 1), not {self.label_smoothing}")
        if self.softcap < 0:
            raise ConfigError(f"softcap bounds the scores' size and must be positive, not {self.softcap}; None is no bound")
        if self.temperature <= 0:
            raise ConfigError(f"temperature divides the scores and must be positive, not {self.temperature}")

    @property
    def codebooks(self) -> int:
        """K."""
        return len(self.cuts) - 1

    @property
    def sizes(self) -> tuple[int, ...]:
        """[K] entries of each codebook."""
        return tuple(stop - start for start, stop in zip(self.cuts, self.cuts[1:]))

    @property
    def width(self) -> int:
        """Scores in a row, all codebooks together."""
        return self.cuts[-1] - self.cuts[0]
