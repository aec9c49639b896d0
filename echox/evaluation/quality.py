"""Naturalness of speech, by a small model that is trained on listeners' opinions."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io

import torch
from torch import Tensor

from echox.core.packages import DISTILLMOS
from echox.data.audio import resampled

RATE_HZ = 16_000
MIN_SAMPLES = RATE_HZ // 2  # shorter clips are too short for an opinion


class Quality:
    """DistillMOS, a mean opinion score of clips [T] from 1 (bad) to 5 (excellent).

    Args:
        device: the model runs on.

    Raises:
        PackageError: the package distillmos is not installed.

    Source: Stahl and Gamper 2025, Distillation and Pruning for Scalable Self-Supervised
        Representation-Based Speech Quality Assessment.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        distillmos = DISTILLMOS.load()
        self.device = torch.device(device)
        # It prints where it was loaded from, which would stand in the middle of the summary.
        with contextlib.redirect_stdout(io.StringIO()):
            self.model = distillmos.ConvTransformerSQAModel().to(self.device).eval()
        self.name = f"distillmos@{importlib.metadata.version('distillmos')}"

    @torch.no_grad()
    def score(self, clip: Tensor, rate_hz: int) -> float | None:
        """Score a clip.

        Args:
            clip: samples [T].
            rate_hz: samples per second.

        Returns:
            the opinion score, or None where the clip is too short.
        """
        samples = resampled(clip, rate_hz, RATE_HZ)
        if len(samples) < MIN_SAMPLES:
            return None
        # [1, T]: one by one, so that no clip is padded.
        return float(self.model(samples[None].to(self.device)))
