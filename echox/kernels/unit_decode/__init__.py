"""From a unit decoder's hidden states to a vocoder's input, without leaving the device."""

from echox.kernels.unit_decode.codebooks import Codebooks
from echox.kernels.unit_decode.noise import gumbel_noise, mixed_seed
from echox.kernels.unit_decode.op import UnitStep, dedup_units, expand_durations, expand_words, rvq_dequantize, sample_units
from echox.kernels.unit_decode.runs import Expansion, OpenRun, Runs, Spellings
from echox.kernels.unit_decode.state import GREEDY, Impl, UnitHead, UnitParams, UnitRequest, UnitState

__all__ = [
    "GREEDY",
    "Codebooks",
    "Expansion",
    "Impl",
    "OpenRun",
    "Runs",
    "Spellings",
    "UnitHead",
    "UnitParams",
    "UnitRequest",
    "UnitState",
    "UnitStep",
    "dedup_units",
    "expand_durations",
    "expand_words",
    "gumbel_noise",
    "mixed_seed",
    "rvq_dequantize",
    "sample_units",
]
