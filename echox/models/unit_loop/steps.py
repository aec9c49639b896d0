"""What the loop must know of a kind of unit decoder: its body, its head, and its rules from one step to the next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import transformers
from torch import Tensor, nn

from echox.kernels.unit_decode import UnitHead, UnitParams, UnitRequest, UnitState, UnitStep
from echox.kernels.unit_decode.state import FOREVER, Needs


@dataclass(frozen=True, slots=True)
class Ask:
    """A request for speech."""

    inputs: Tensor  # [P, C] what the body reads first; the last of them predicts the first token
    request: UnitRequest  # how tokens are chosen, which end it, and after how many
    rules: Mapping[str, Tensor | int] = field(default_factory=dict)  # what this request puts into its row of each tensor of `Steps.seats`


@dataclass(frozen=True, slots=True)
class Rows:
    """The first A rows of the loop's state, as views: what a step works on."""

    params: UnitParams
    state: UnitState
    rules: dict[str, Tensor]  # what `Steps.seats` made
    inputs: Tensor  # [A, C] what the next step reads
    at: Tensor  # int64 [A] the position it stands at
    said: Tensor  # int64 [A, W, K]
    states: Tensor | None  # [A, W, C] hidden states that predicted the tokens, where they are kept


# Where a GPU samples without kernels (vocabularies too large for them), a captured step does all that any request may ask for.
EVERYTHING = Needs(penalties=True, bars=True, stops=True, draws=True, best=FOREVER, top_k=True, top_p=True, min_p=True)


class Steps:
    """One kind of decoder; by itself, one that reads what it said and nothing else.

    Its methods change rows in place and read no value off the device: a CUDA graph captures them.
    """

    needs: Needs = EVERYTHING
    """What requests of this kind may ask for; a kind that asks for less is sampled faster there."""

    def __init__(self, body: transformers.LlamaModel, head: UnitHead) -> None:
        self.body = body
        self.head = head

    def weight_of(self, projection: nn.Linear) -> Tensor:
        """The weight of one of the body's projections [out, in], with whatever was trained beside it."""
        return projection.weight

    def seats(self, slots: int, capacity: int, device: torch.device) -> dict[str, Tensor]:
        """The kind's own tensors, a row for each slot; a request has `capacity` positions at most."""
        return {}

    def forced(self, rows: Rows) -> Tensor | None:
        """Before a token is chosen: what rows must say, int64 [A, K], negative where they are free; None where no row ever must."""
        return None

    def inputs(self, step: UnitStep, rows: Rows) -> Tensor:
        """After it was chosen: what the body reads next [A, C]."""
        return step.embedding
