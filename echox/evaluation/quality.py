"""How natural speech sounds, judged by a small model trained on listeners' opinions."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io

import torch
from torch import Tensor

from echox.data.audio import resampled
from echox.packages import DISTILLMOS

RATE_HZ = 16_000
MIN_SAMPLES = RATE_HZ // 2  # shorter clips are no speech to judge


class Quality:
    """DistillMOS: 1 (bad) to 5 (excellent).

    Source: Stahl and Gamper 2025, Distillation and Pruning for Scalable Self-Supervised Representation-Based Speech Quality Assessment.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        """
        Raises:
            PackageError: the package distillmos is not installed.
        """
        distillmos = DISTILLMOS.load()
        self.device = torch.device(device)
        with contextlib.redirect_stdout(io.StringIO()):  # it prints where it was loaded from
            self.model = distillmos.ConvTransformerSQAModel().to(self.device).eval()
        self.name = f"distillmos@{importlib.metadata.version('distillmos')}"

    @torch.no_grad()
    def score(self, clip: Tensor, rate_hz: int) -> float | None:
        """The opinion score of a clip [T] at `rate_hz`; None where it is too short to judge."""
        samples = resampled(clip, rate_hz, RATE_HZ)
        return None if len(samples) < MIN_SAMPLES else float(self.model(samples[None].to(self.device)))
