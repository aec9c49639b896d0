"""What CTC must know of a vocabulary of 128,000 tokens: the scores of the few that a clip says."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from echox.models.published.adapter import FRAMES_AT_ONCE, ShrinkingAdapter
from echox.models.speech_llm import IGNORE

LEAST = 1e-15  # a probability that float64 still tells from 0 beside 1
NEVER = -1e4  # log-probability of what is not said; that of minus infinity has no gradient in CTC


def spoken_scores(adapter: ShrinkingAdapter, frames: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities over a clip's own tokens, all others as one, and the blank: the same CTC as over the whole vocabulary.

    The scores of the whole vocabulary are never kept: backward makes them anew, a slice of frames at a time. CTC itself is taken in float32,
    as in the release: at a loss of 900 per token its gradient's norm is 0.25 % off that of float64, and so are the release's own values. At
    5,000 per token, which untrained weights reach, float32 CTC no longer defines its gradient to 0.1 %: sums near 45,000 have steps of
    0.004, and frames that differ by one part in a million, as another attention kernel makes them, move the norm by up to 0.4 %.

    Args:
        frames: [A, F, H] aligned; targets: [A, T] tokens, IGNORE-padded.
    Returns:
        scores [A, F, T + 2], the blank last; targets [A, T] as indices into them, a token said twice at its first place.
    """
    A, T = targets.shape
    wanted = targets != IGNORE
    ids = targets.masked_fill(~wanted, adapter.shape.blank_id)
    first = (ids[:, :, None] == ids[:, None, :]).long().argmax(-1)
    columns = F.pad(ids, (0, 1), value=adapter.shape.blank_id)
    size = max(1, FRAMES_AT_ONCE // A)
    slices = [checkpoint(_log_probs, adapter.ctc_head.weight, part, columns, use_reentrant=False) for part in frames.split(size, dim=1)]
    log_probs = torch.cat(slices, dim=1)
    again = (first != torch.arange(T, device=ids.device)) | ~wanted
    said = log_probs[..., :-1].masked_fill(again[:, None], NEVER)
    blank = log_probs[..., -1:]
    # In float64, for what is left beside a probability near 1 would be lost.
    known = torch.cat([said, blank], dim=-1).double().logsumexp(-1, keepdim=True).exp()
    others = (1 - known).clamp(min=LEAST).log().float()
    return torch.cat([said, others, blank], dim=-1), first


def _log_probs(weight: Tensor, frames: Tensor, columns: Tensor) -> Tensor:
    """Of some tokens: frames [A, F, H], columns [A, C] -> [A, F, C]."""
    # By log_softmax, though a difference with logsumexp would do: it rounds as the release does, and CTC makes much of the last bit.
    log_probs = F.linear(frames, weight).float().log_softmax(-1)
    return log_probs.gather(-1, columns[:, None].expand(-1, log_probs.shape[1], -1))
