"""The encoder interface: waveform -> features."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from echox.packages import OptionalPackage
from echox.registry import Registry
from echox.signals import Features, Waveform


@dataclass(kw_only=True, slots=True)
class EncoderConfig:
    """Base of every encoder's config."""


class Encoder(nn.Module, ABC):
    """Turns audio into frame features. Attributes are set by the constructor."""

    rate_hz: int  # sample rate it takes, Hz
    frame_rate_hz: float  # frames per second it gives
    dim: int  # feature channels D

    @classmethod
    def outline(cls, config: Any) -> Encoder:
        """The encoder with its true shapes on the meta device: no weights are read, and it computes nothing."""
        with torch.device("meta"):
            return cls(config)

    @classmethod
    def missing(cls, config: Any) -> list[str]:
        """Files it needs that are not here and that echox does not make or fetch from a pinned package."""
        return []

    @classmethod
    def packages(cls, config: Any) -> Sequence[OptionalPackage]:
        """Packages that building it asks for beside echox; they are asked for before a run begins."""
        return ()

    @abstractmethod
    def forward(self, wave: Waveform) -> Features:
        """Encode a batch.

        Args:
            wave: samples [B, T] float32 in [-1, 1] at `self.rate_hz`.
        Returns:
            values [B, F, D] with F about T / rate_hz * frame_rate_hz; a row's values depend on its own samples only, never on
            the padding or on its neighbours.
        Raises:
            SignalError: `wave.rate_hz` is not the encoder's.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """A short hash of everything that decides the features (weights and settings); caches are keyed by it."""


ENCODERS: Registry[Encoder] = Registry("encoder", EncoderConfig)
