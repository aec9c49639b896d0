"""The criterion interface: what a forward pass returned -> a loss and its parts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import nn

from echox.registry import Registry
from echox.signals import Batch, Loss, Outputs


@dataclass(kw_only=True, slots=True)
class CriterionConfig:
    """Base of every criterion's config."""


class Criterion(nn.Module, ABC):
    """A training objective; it owns no trained weight and reads nothing but its arguments."""

    @abstractmethod
    def forward(self, outputs: Outputs, batch: Batch) -> Loss:
        """The summed loss of one batch; see `Loss` for the convention."""


CRITERIA: Registry[Criterion] = Registry("criterion", CriterionConfig)
