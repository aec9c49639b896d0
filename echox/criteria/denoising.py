"""Adaptive weight of the denoising adapter's cosine term, in place of a fixed lambda."""

from __future__ import annotations

import torch
from torch import Tensor

CAPPED_SHARE = 0.2  # of the unit loss, at which the release caps the cosine term


def capped_weight(units: Tensor, cosine: Tensor, share: float = CAPPED_SHARE) -> Tensor:
    """Compute the weight that caps the cosine term at a share of the unit loss.

    Args:
        units: unit loss [].
        cosine: cosine term [] before weighting.
        share: the cap as a share of `units`.

    Returns:
        weight [], 1 where the term is below the cap; without gradient.

    Source: github.com/FreedomIntelligence/EchoX, the training code of its unit translator; the
    paper has a lambda here.
    """
    # Detached, because a gradient through the weight would cancel that of the term it caps.
    cap, cosine = share * units.detach(), cosine.detach()
    return torch.where(cosine > cap, cap / cosine, torch.ones_like(cap))
