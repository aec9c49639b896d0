"""What the loop must know of a kind of unit decoder: its body, its head, and its rules from one step to the next."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaModel

from echox.kernels.unit_decode import UnitHead, UnitRequest, UnitStep


@dataclass(frozen=True, slots=True)
class Ask:
    """A request for speech."""

    inputs: Tensor  # [P, C] what the body reads first; the last of them predicts the first token
    request: UnitRequest  # how tokens are chosen, which end it, and after how many
    rules: Mapping[str, Tensor | int] = field(default_factory=dict)  # what this request puts into its row of each tensor of `Steps.seats`


class Steps(ABC):
    """One kind of decoder. Its methods see A rows of the tensors that `seats` made, and change them in place.

    None reads a value off the device: a CUDA graph captures them.
    """

    def __init__(self, body: LlamaModel, head: UnitHead) -> None:
        self.body = body
        self.head = head

    def seats(self, slots: int, capacity: int, device: torch.device) -> dict[str, Tensor]:
        """The kind's own tensors, a row for each slot; a request has `capacity` positions at most."""
        return {}

    def forced(self, seats: Mapping[str, Tensor]) -> Tensor | None:
        """What rows must say next, int64 [A, K], negative where they are free; None where no row ever must."""
        return None

    def inputs(self, step: UnitStep, seats: Mapping[str, Tensor]) -> Tensor:
        """After a step: what the body reads next [A, C]."""
        return step.embedding
