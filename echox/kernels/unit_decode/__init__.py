"""From a unit decoder's hidden states to its next tokens, without leaving the device.

Letters of shapes in this package: B rows of the batch, D channels of the hidden states, K
codebooks, V rows of the head, E channels of its table, C entries of the largest codebook.
"""

from echox.kernels.unit_decode.head import UnitHead
from echox.kernels.unit_decode.noise import gumbel_noise, mixed_seed
from echox.kernels.unit_decode.op import (
    UnitStep,
    sample_units,
)
from echox.kernels.unit_decode.state import (
    GREEDY,
    Impl,
    UnitParams,
    UnitRequest,
    UnitState,
)

__all__ = [
    "GREEDY",
    "Impl",
    "UnitHead",
    "UnitParams",
    "UnitRequest",
    "UnitState",
    "UnitStep",
    "gumbel_noise",
    "mixed_seed",
    "sample_units",
]
