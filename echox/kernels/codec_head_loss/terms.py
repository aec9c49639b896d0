"""Options of the codec-head loss: implementation, reduction, and the terms of the formula."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from echox.core.errors import ConfigError


class Impl(enum.Enum):
    """Implementation of the codec-head loss."""

    auto = "auto"  # torch on a CPU; on a GPU chunked with gradients, fused without
    reference = "reference"  # full logits and autograd; the others are tested against it
    torch = "torch"  # chunks of rows in plain PyTorch
    chunked = "chunked"  # library matrix products, one Triton kernel over the rows of a chunk
    fused = "fused"  # Triton kernels that never write the logits


class Reduction(enum.Enum):
    """Reduction of the losses of all targets to one loss."""

    mean = "mean"
    sum = "sum"
    none = "none"


@dataclass(frozen=True, slots=True)
class Terms:
    """Formula of the loss of one row x [D] in one codebook with weight W [V, D] and bias b [V].

        z = x W^T + b
        y = softcap * tanh(z / softcap)
        s = y / temperature
        lse = log sum exp s
        loss = lse - (1 - label_smoothing) * s_target - label_smoothing / V * sum s
               + z_loss * lse^2

    Raises:
        ConfigError: the cuts do not rise from 0 or more, or an option is out of its range.

    Source: label smoothing by Szegedy et al. 2015, arXiv:1512.00567, section 7; z-loss by
        Chowdhery et al. 2022, arXiv:2204.02311, section 5; softcap as in Gemma 2, arXiv:2408.00118.
    """

    # [K + 1] rising rows of the weight; codebook k owns rows cuts[k] .. cuts[k + 1] - 1.
    cuts: tuple[int, ...]
    ignore_index: int = -100
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    softcap: float = 0.0  # 0 is none
    temperature: float = 1.0

    def __post_init__(self) -> None:
        _check_cuts(self.cuts)
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(
                f"label_smoothing is a probability in [0, 1), not {self.label_smoothing}"
            )
        if self.softcap < 0:
            raise ConfigError(
                "softcap bounds the scores' size and must be positive, "
                f"not {self.softcap}; None is no bound"
            )
        if self.temperature <= 0:
            raise ConfigError(
                f"temperature divides the scores and must be positive, not {self.temperature}"
            )

    @property
    def codebooks(self) -> int:
        """Number of codebooks, K."""
        return len(self.cuts) - 1

    @property
    def sizes(self) -> tuple[int, ...]:
        """Entries of each codebook, [K] numbers."""
        return tuple(stop - start for start, stop in zip(self.cuts, self.cuts[1:]))

    @property
    def width(self) -> int:
        """Scores of a row, all codebooks together."""
        return self.cuts[-1] - self.cuts[0]


def _check_cuts(cuts: tuple[int, ...]) -> None:
    rising = all(start < stop for start, stop in zip(cuts, cuts[1:]))
    if len(cuts) < 2 or not rising or cuts[0] < 0:
        raise ConfigError(
            f"segments {list(cuts)} are no rising row numbers from 0 on; "
            "give [0, V] for one codebook, [0, V1, V1+V2] for two"
        )
