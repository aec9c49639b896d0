"""Estimates of the memory that a training step keeps between forward and backward.

They are rules of thumb for the order of magnitude. Attention scores are not counted: fused
attention kernels do not keep them.
"""

from __future__ import annotations

from itertools import dropwhile

from torch import nn

# 34 bytes a channel in a layer of 12 width^2 weights, at two bytes a number.
# Source: Korthikanti et al. 2022, arXiv:2205.05198, section 4.1.
BYTES_PER_CHANNEL = 34
WEIGHTS_PER_SQUARE_WIDTH = 12
# Logits at two bytes, their float32 copy, the log-probabilities and their gradient.
SCORE_BYTES = 14
# The float32 copy of CTC's logits and their softmax, from which the adapter mixes text vectors.
MIXTURE_BYTES = 8


def layer_bytes(layers: nn.Module, width: int, *, from_first_trained: bool = False) -> float:
    """Bytes kept per position by transformer layers, by the number of their weights.

    Args:
        layers: module whose weights are counted, embeddings and output head left out.
        width: channels of the residual stream.
        from_first_trained: count no weight before the first trained one: no gradient passes there.
    """
    counted = [
        parameter
        for name, parameter in layers.named_parameters()
        if "embed" not in name and "lm_head" not in name
    ]
    if from_first_trained:
        counted = list(dropwhile(lambda parameter: not parameter.requires_grad, counted))
    weights = sum(parameter.numel() for parameter in counted)
    return BYTES_PER_CHANNEL * weights / (WEIGHTS_PER_SQUARE_WIDTH * width)
