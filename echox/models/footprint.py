"""What a training step keeps in memory between forward and backward: estimates by rules of thumb, of the right size and no more.

Attention scores are not counted, because the fused attention kernels do not keep them.
"""

from __future__ import annotations

from itertools import dropwhile

from torch import nn

# 34 bytes a channel in a layer of 12 width^2 weights, at two bytes a number: Korthikanti et al. 2022, arXiv:2205.05198, section 4.1.
BYTES_PER_CHANNEL = 34
WEIGHTS_PER_SQUARE_WIDTH = 12
# Scores at two bytes, their float32 copy, the log-probabilities and their gradient.
SCORE_BYTES = 14
# The float32 copy of CTC's scores and their softmax, from which the adapter mixes text vectors.
MIXTURE_BYTES = 8


def layer_bytes(layers: nn.Module, width: int, *, from_first_trained: bool = False) -> float:
    """Bytes kept per position by transformer layers of `width` channels, by the number of their weights.

    Args:
        from_first_trained: count no weight that stands before the first trained one.
    """
    counted = [p for name, p in layers.named_parameters() if "embed" not in name and "lm_head" not in name]
    if from_first_trained:
        counted = list(dropwhile(lambda parameter: not parameter.requires_grad, counted))
    weights = sum(parameter.numel() for parameter in counted)
    return BYTES_PER_CHANNEL * weights / (WEIGHTS_PER_SQUARE_WIDTH * width)
