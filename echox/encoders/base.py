"""The encoder interface: waveform -> features."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from echox.core.packages import OptionalPackage
from echox.core.registry import Registry
from echox.core.signals import Features, Waveform

AnyEncoder = TypeVar("AnyEncoder", bound="Encoder")


@dataclass(kw_only=True, slots=True)
class EncoderConfig:
    """Base class of every encoder's config."""


class Encoder(nn.Module, ABC):
    """Audio -> frame features [B, F, D]; the constructor sets the attributes below.

    Needed: `rate_hz`, `frame_rate_hz`, `dim`, `forward`, `fingerprint`.

    Optional: `outline`, `missing`, `packages`.
    """

    rate_hz: int  # input sample rate, Hz
    frame_rate_hz: float  # output frames per second
    dim: int  # feature channels D

    @classmethod
    def outline(cls: type[AnyEncoder], config: Any) -> AnyEncoder:
        """Build the encoder with its true shapes on the meta device, without reading weights.

        Args:
            config: the encoder's config.

        Returns:
            a module that has shapes and dtypes, but cannot compute.

        Raises:
            AssetError: the shape of the configured model is not known on this machine.
        """
        with torch.device("meta"):
            return cls(config)

    @classmethod
    def missing(cls, config: Any) -> list[str]:
        """List the files the encoder needs that echox can neither find, make nor fetch."""
        return []

    @classmethod
    def packages(cls, config: Any) -> Sequence[OptionalPackage]:
        """List the optional packages the constructor imports; a run checks them first."""
        return ()

    @abstractmethod
    def forward(self, wave: Waveform) -> Features:
        """Encode a batch.

        Args:
            wave: samples [B, T] float32 in [-1, 1] at `self.rate_hz`.

        Returns:
            values [B, F, D] with F about T / rate_hz * frame_rate_hz. The values of a row depend
            on its own samples only, never on the padding or on other rows.

        Raises:
            SignalError: `wave.rate_hz` is not the encoder's.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """Hash everything that decides the features (weights, settings); feature caches use it."""


ENCODERS: Registry[Encoder] = Registry("encoder", EncoderConfig)
