"""Attention of a clip's kept vectors to all of its frames."""

from __future__ import annotations

from torch import Tensor, nn


def look_back(attention: nn.MultiheadAttention, queries: Tensor, frames: Tensor, seen: Tensor) -> Tensor:
    """What each vector finds in its clip.

    Args:
        attention: time first, not `batch_first`: that turns its input round, and where weights are frozen torch 2.11 then copies them for
            every frame: 148 ms instead of 7 for 8 clips of 40 frames and 576 channels, on one thread.
        queries: [B, L, H] kept vectors; frames: [B, F, H]; seen: bool [B, F], frames that may be looked at.
    Returns:
        [B, L, H]
    """
    memory = frames.transpose(0, 1).contiguous()
    looked, _ = attention(queries.transpose(0, 1).contiguous(), memory, memory, key_padding_mask=~seen, need_weights=False)
    return looked.transpose(0, 1)
