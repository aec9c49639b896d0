"""Cross-attention from a clip's shrunk vectors to all of its frames."""

from __future__ import annotations

from torch import Tensor, nn


def look_back(
    attention: nn.MultiheadAttention, queries: Tensor, frames: Tensor, seen: Tensor
) -> Tensor:
    """Attend from the shrunk vectors of each clip to its frames.

    Args:
        attention: time first, not `batch_first`, see the comment inside.
        queries: shrunk vectors [B, L, H].
        frames: [B, F, H].
        seen: bool [B, F], True at frames that may be attended to.

    Returns:
        attention outputs [B, L, H].
    """
    # `batch_first` transposes its input, and where weights are frozen torch 2.11 then copies them
    # for every frame: 148 ms instead of 7 for 8 clips of 40 frames and 576 channels, on one thread.
    memory = frames.transpose(0, 1).contiguous()  # [F, B, H]
    attended, _ = attention(
        queries.transpose(0, 1).contiguous(),
        memory,
        memory,
        key_padding_mask=~seen,
        need_weights=False,
    )
    return attended.transpose(0, 1)
