"""Runs of frames with equal CTC tokens: where they begin, what they hold, and their means."""

from __future__ import annotations

import torch
from torch import Tensor

from echox.core.signals import valid_mask


def runs(best: Tensor, real: Tensor, dropped: int | None) -> tuple[Tensor, Tensor]:
    """Find runs of equal tokens.

    Args:
        best: [B, F] token per frame.
        real: bool [B, F], False at padding.
        dropped: a token whose runs are left out, or None.

    Returns:
        first: bool [B, F], True where a kept run begins.
        run: [B, F] index of the kept run that a frame belongs to, -1 for none.
    """
    is_kept = real if dropped is None else real & (best != dropped)
    changed = torch.ones_like(real)  # the first frame always begins a run
    changed[:, 1:] = best[:, 1:] != best[:, :-1]
    first = is_kept & changed
    return first, torch.where(is_kept, first.long().cumsum(1) - 1, -1)


def ctc_tokens(logits: Tensor, lengths: Tensor) -> list[list[int]]:
    """Decode CTC greedily: repeats are merged, blanks dropped.

    Args:
        logits: [A, F, C], the blank last.
        lengths: [A] frames.

    Returns:
        indices of the tokens per clip.
    """
    best = logits.argmax(-1)
    first, _ = runs(best, valid_mask(lengths, best.shape[1]), logits.shape[2] - 1)
    return [row[keep].tolist() for row, keep in zip(best, first)]


def tokens_by_window(
    tokens: Tensor, kept: Tensor, window: float | None
) -> list[list[tuple[int, ...]]]:
    """Group the tokens of clips by the windows that they begin in.

    Args:
        tokens: [A, F] of each frame.
        kept: bool [A, F], True where a token begins that is taken.
        window: frames of a window; None takes a clip as one.

    Returns:
        of each clip its windows that hold a token, in order; one empty window where none does.
    """
    clips = []
    for own, keep in zip(tokens.cpu(), kept.cpu()):
        windows: dict[int, list[int]] = {}
        for frame, token in zip(keep.nonzero()[:, 0].tolist(), own[keep].tolist()):
            windows.setdefault(int(frame / window) if window else 0, []).append(token)
        clips.append([tuple(row) for row in windows.values()] or [()])
    return clips


def run_means(values: Tensor, run: Tensor, size: int) -> Tensor:
    """The mean over the frames of each run.

    Args:
        values: [B, F, H].
        run: [B, F] index of each frame's run, -1 for none.
        size: runs in the result.

    Returns:
        [B, size, H], zeros where a row has no such run.
    """
    B, N, H = values.shape
    # Frames of no run go to a last row, which is cut off.
    index = torch.where(run < 0, size, run)
    expanded = index[..., None].expand(-1, -1, H)
    sums = values.new_zeros(B, size + 1, H).scatter_add(1, expanded, values)
    ones = torch.ones_like(index, dtype=values.dtype)
    counts = values.new_zeros(B, size + 1).scatter_add(1, index, ones)
    return (sums / counts.clamp(min=1.0)[..., None])[:, :size]


def gather_kept(frames: Tensor, kept: Tensor) -> Tensor:
    """Move kept frames together: frames [A, F, H], kept bool [A, F] -> [A, L, H], zero-padded."""
    A, _, H = frames.shape
    L = max(1, int(kept.sum(1).max()))
    # Each kept frame goes to its number among the kept ones of its clip, dropped ones to a spare
    # column L that is cut off.
    place = torch.where(kept, kept.long().cumsum(1) - 1, L)
    out = frames.new_zeros(A, L + 1, H)
    return out.scatter(1, place[..., None].expand(-1, -1, H), frames)[:, :L]
