"""A language model in the decode loop: text as units are spoken, each row leaving the batch as it ends."""

from __future__ import annotations

import torch
import transformers
from torch import Tensor, nn

from echox.backbones.base import Backbone
from echox.errors import SignalError
from echox.kernels.unit_decode import UnitHead, UnitRequest
from echox.models.unit_loop import Ask, Spoken, Steps, UnitLoop

SLOTS = 32  # answers stepped together
POSITIONS = 1024  # of a prompt and its answer; longer ones are left to the language model's own library
SEEDS = 2**20  # seeds of one batch: row r of seed s draws with s * SEEDS + r


class BackboneSteps(Steps):
    """Tokens of a Llama, what was trained beside its weights added to them."""

    def __init__(self, backbone: Backbone, body: transformers.LlamaModel) -> None:
        super().__init__(body, UnitHead.of(backbone.head_rows(), pad_id=backbone.end_id, embedding=body.embed_tokens.weight.detach()))
        self.backbone = backbone
        self.stop_ids = [backbone.end_id, *backbone.other_end_ids]

    def weight_of(self, projection: nn.Linear) -> Tensor:
        return self.backbone.weight_of(projection)


def text_loop(backbone: Backbone) -> UnitLoop | None:
    """A loop that answers with a backbone's present weights; None where `Backbone.llama` has none, or on a GPU, whose memory would hold it twice."""
    body = backbone.llama()
    if body is None or body.norm.weight.is_cuda:
        return None
    return UnitLoop(BackboneSteps(backbone, body), slots=SLOTS, capacity=POSITIONS, keep_states=True)


@torch.no_grad()
def said_in(loop: UnitLoop, embeddings: Tensor, lengths: list[int], max_tokens: int, temperature: float, seed: int) -> list[Spoken]:
    """Continue prompts [B, P, H], each up to its length.

    Raises:
        SignalError: scores are no numbers.
    """
    def request(row: int) -> UnitRequest:
        return UnitRequest(stop_ids=loop.steps.stop_ids, max_length=max_tokens, temperature=temperature, seed=seed * SEEDS + row)

    spoken = loop.run(Ask(prompt[:length], request(row)) for row, (prompt, length) in enumerate(zip(embeddings, lengths)))
    for row, found in enumerate(spoken):
        if found.failed:
            raise SignalError(
                f"the language model's scores for row {row} are not finite, so it does not answer; its weights or the question are damaged"
            )
    return spoken
