"""What a training step keeps in memory between forward and backward: estimates by rules of thumb, of the right size and no more.

Attention scores are not counted, because the fused attention kernels do not keep them.
"""

from __future__ import annotations

from torch import nn

# 34 bytes a channel in a layer of 12 width^2 weights, at two bytes a number: Korthikanti et al. 2022, arXiv:2205.05198, section 4.1.
BYTES_PER_CHANNEL = 34
WEIGHTS_PER_SQUARE_WIDTH = 12
# Scores at two bytes, their float32 copy, the log-probabilities and their gradient.
SCORE_BYTES = 14
# The float32 copy of CTC's scores and their softmax, from which the adapter mixes text vectors.
MIXTURE_BYTES = 8


def layer_bytes(layers: nn.Module, width: int) -> float:
    """Bytes kept per position by transformer layers of `width` channels, by the number of their weights."""
    weights = sum(parameter.numel() for name, parameter in layers.named_parameters() if "embed" not in name and "lm_head" not in name)
    return BYTES_PER_CHANNEL * weights / (WEIGHTS_PER_SQUARE_WIDTH * width)
