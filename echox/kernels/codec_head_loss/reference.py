"""Codec-head loss in plain PyTorch: full logits and autograd, any device and dtype.

The faster paths are tested against it, in float64.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from echox.kernels.codec_head_loss.terms import Terms


def scores(hidden: Tensor, weight: Tensor, bias: Tensor | None, terms: Terms) -> Tensor:
    """Return the scores [N, V] before the softmax, in float32 at least.

    Args:
        hidden: [N, D]; weight: [V, D]; bias: [V].
    """
    wide = torch.promote_types(hidden.dtype, torch.float32)
    y = F.linear(hidden.to(wide), weight.to(wide), None if bias is None else bias.to(wide))
    if terms.softcap:
        y = terms.softcap * torch.tanh(y / terms.softcap)
    return y / terms.temperature


def losses(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, terms: Terms
) -> tuple[Tensor, Tensor, Tensor]:
    """Return loss, log-sum-exp and correctness of every target.

    Args:
        hidden: [N, D]; weight: [V, D]; bias: [V].
        targets: [N, K] entries of their codebooks, in range or `ignore_index`.

    Returns:
        losses [N, K], 0 where ignored; lse [N, K]; correct [N, K] bool, whether the target has the
        highest score (the first of equals).
    """
    blocks = scores(hidden, weight, bias, terms).split(terms.sizes, dim=1)
    results = [_codebook_losses(y, targets[:, k], terms) for k, y in enumerate(blocks)]
    losses, lse, correct = (torch.stack(codebooks, dim=1) for codebooks in zip(*results))
    return losses, lse, correct


def _codebook_losses(y: Tensor, targets: Tensor, terms: Terms) -> tuple[Tensor, Tensor, Tensor]:
    """Return loss, log-sum-exp and correctness [N] of scores [N, V] of one codebook."""
    valid = targets != terms.ignore_index
    loss = F.cross_entropy(
        y,
        targets,
        ignore_index=terms.ignore_index,
        label_smoothing=terms.label_smoothing,
        reduction="none",
    )
    lse = y.logsumexp(dim=1)
    z_loss = terms.z_loss * (lse * lse).where(valid, 0)
    return loss + z_loss, lse, (y.argmax(dim=1) == targets) & valid
