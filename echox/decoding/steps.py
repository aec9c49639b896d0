"""Adapters between the decode engine and a decoder type: its body, its head and its step rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import transformers
from torch import Tensor, nn

from echox.core.errors import ConfigError
from echox.kernels.unit_decode import UnitHead, UnitParams, UnitRequest, UnitState, UnitStep
from echox.kernels.unit_decode.state import FOREVER, Needs


@dataclass(frozen=True, slots=True)
class Request:
    """A sequence to decode: its prompt, its sampling settings and its values of the step rules."""

    inputs: Tensor  # [P, C] prompt vectors; the last one predicts the first token
    sampling: UnitRequest  # how tokens are chosen, which tokens stop, and the token limit
    # This request's value of each tensor that `Steps.slot_tensors` allocates.
    rules: Mapping[str, Tensor | int] = field(default_factory=dict)
    # Ends of the prompt's first parts, ascending. Each is prefilled by itself, and kept for other
    # requests that begin alike.
    parts: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Rows:
    """The first A slots of the engine's state, as views that a step reads and writes."""

    params: UnitParams
    state: UnitState
    rules: dict[str, Tensor]  # the tensors that `Steps.slot_tensors` allocated, [A, ...]
    inputs: Tensor  # [A, C] what the next step reads
    positions: Tensor  # int64 [A] the position that the next step writes
    tokens: Tensor  # int64 [A, W, K] sampled tokens
    states: Tensor | None  # [A, W, C] hidden states that predicted the tokens, where kept


# Where a GPU samples without kernels (vocabularies too large for them), a captured step must
# cover every setting that a later request may use: the graph cannot branch on it.
EVERYTHING = Needs(
    penalties=True,
    bars=True,
    stops=True,
    draws=True,
    best=FOREVER,
    top_k=True,
    top_p=True,
    min_p=True,
)


def embedding_of(step: UnitStep) -> Tensor:
    """Return the vectors [A, C] of a step's tokens.

    Raises:
        ConfigError: the head has no table of vectors.
    """
    if step.embedding is None:
        raise ConfigError(
            "the head has no table of its tokens' vectors, so nothing can be fed back; "
            "build it with an embedding"
        )
    return step.embedding


class Steps:
    """Adapter between `DecodeEngine` and one decoder type.

    The base class feeds each sampled token's embedding back, as in a plain autoregressive decoder.
    Methods change rows in place and read no value off the device: a CUDA graph captures them.
    """

    needs: Needs = EVERYTHING
    """Sampling settings that requests may use; a decoder type that uses fewer samples faster."""

    def __init__(self, body: transformers.LlamaModel, head: UnitHead) -> None:
        self.body = body
        self.head = head

    def weight_of(self, projection: nn.Module) -> Tensor:
        """The weight [out, in] of a projection of the body, with adapters such as LoRA merged."""
        return projection.get_parameter("weight")

    def slot_tensors(self, slots: int, capacity: int, device: torch.device) -> dict[str, Tensor]:
        """Allocate the decoder type's own state, by name, each [slots, ...].

        Args:
            slots: requests that are stepped together.
            capacity: positions that a request may take.
            device: where the engine runs.
        """
        return {}

    def forced(self, rows: Rows) -> Tensor | None:
        """Tokens that rows must take at this step, before sampling.

        Returns:
            int64 [A, K], negative where a row is free; None where no row is ever forced.
        """
        return None

    def inputs(self, step: UnitStep, rows: Rows) -> Tensor:
        """What the body reads at the next step [A, C], after the tokens of this one are sampled."""
        return embedding_of(step)
