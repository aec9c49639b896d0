"""CTC over a vocabulary of 128,000 tokens, reduced to the few tokens that a clip contains."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from echox.models.speech_adapter import CTC_SLICE_FRAMES, SpeechAdapter
from echox.models.speech_llm import IGNORE

# A probability that float64 still tells from 0 beside 1.
MIN_PROBABILITY = 1e-15
# Log-probability of a column that is never emitted; minus infinity has no gradient in CTC.
NEVER_LOG_PROB = -1e4


def restricted_ctc_scores(
    adapter: SpeechAdapter, frames: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of a clip's own tokens, of all others together, and of the blank.

    CTC over them equals CTC over the whole vocabulary, whose scores are never kept: backward
    computes them anew, a slice of frames at a time.

    CTC itself is taken in float32, as in the release: at a loss of 900 per token its gradient's
    norm is 0.25 % off that of float64, and so are the release's own values. At 5,000 per token,
    which untrained weights reach, float32 CTC no longer defines its gradient to 0.1 %: sums near
    45,000 have steps of 0.004, and frames that differ by one part in a million, as another
    attention kernel makes them, move the norm by up to 0.4 %.

    Args:
        adapter: whose CTC head scores the frames.
        frames: [A, F, H] aligned frames.
        targets: [A, T] tokens, IGNORE-padded.

    Returns:
        scores [A, F, T + 2], the blank last; and the targets [A, T] as indices into them, where a
        repeated token has the index of its first occurrence.
    """
    A, T = targets.shape
    is_target = targets != IGNORE
    ids = targets.masked_fill(~is_target, adapter.blank)
    # [A, T]: a repeated token points to its first occurrence, which alone has a column.
    first = (ids[:, :, None] == ids[:, None, :]).long().argmax(-1)
    columns = F.pad(ids, (0, 1), value=adapter.blank)  # [A, T + 1], the blank last
    # Slices of all clips together have as many frames as `best_tokens` scores at a time.
    size = max(1, CTC_SLICE_FRAMES // A)
    slices = [
        checkpoint(_log_probs, adapter.ctc_head.weight, part, columns, use_reentrant=False)
        for part in frames.split(size, dim=1)
    ]
    log_probs = torch.cat(slices, dim=1)  # [A, F, T + 1]
    # A token's probability must be counted once, so its later columns are never emitted.
    is_repeated = (first != torch.arange(T, device=ids.device)) | ~is_target
    own = log_probs[..., :-1].masked_fill(is_repeated[:, None], NEVER_LOG_PROB)
    blank = log_probs[..., -1:]
    # In float64, for what is left beside a probability near 1 would be lost.
    total = torch.cat([own, blank], dim=-1).double().logsumexp(-1, keepdim=True).exp()
    others = (1 - total).clamp(min=MIN_PROBABILITY).log().float()
    return torch.cat([own, others, blank], dim=-1), first


def _log_probs(weight: Tensor, frames: Tensor, columns: Tensor) -> Tensor:
    """Log-probabilities of chosen tokens: frames [A, F, H], columns [A, C] -> [A, F, C]."""
    # By log_softmax, though a difference with logsumexp would do: it rounds as the release does,
    # and CTC makes much of the last bit.
    log_probs = F.linear(frames, weight).float().log_softmax(-1)
    return log_probs.gather(-1, columns[:, None].expand(-1, log_probs.shape[1], -1))
