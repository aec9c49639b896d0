"""How much the denoising adapter's cosine term may weigh, where that is no fixed lambda."""

from __future__ import annotations

import torch
from torch import Tensor

CAPPED_SHARE = 0.2  # of the unit loss, at which the release caps the cosine term


def capped_weight(units: Tensor, cosine: Tensor, share: float = CAPPED_SHARE) -> Tensor:
    """The weight that holds the cosine term at a share of the unit loss, 1 below it; no gradient flows through it.

    Source: github.com/FreedomIntelligence/EchoX, its unit translator in training; the paper has a lambda here.
    """
    cap, cosine = share * units.detach(), cosine.detach()
    return torch.where(cosine > cap, cap / cosine, torch.ones_like(cap))
