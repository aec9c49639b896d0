"""A language model in the decode engine: each row of a batch leaves as its text ends."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import transformers
from torch import Tensor, nn

from echox.backbones.base import Backbone
from echox.core.errors import SignalError
from echox.decoding import Completion, DecodeEngine, Request, Steps
from echox.kernels.unit_decode import UnitHead, UnitRequest

SLOTS = 32  # answers stepped together
# Positions of a prompt and its answer; longer ones are left to the language model's own library.
POSITIONS = 1024
NOT_FINITE = (
    "the language model's scores for row {} are not finite, so it does not answer; its weights or "
    "the question are damaged"
)
SEEDS = 2**20  # seeds of one batch: row r of seed s samples with s * SEEDS + r


class BackboneSteps(Steps):
    """Steps of a Llama language model, trained adapters such as LoRA merged into its weights."""

    def __init__(self, backbone: Backbone, body: transformers.LlamaModel) -> None:
        embedding = body.embed_tokens.weight.detach()
        head = UnitHead.of(backbone.head_rows(), pad_id=backbone.end_id, embedding=embedding)
        super().__init__(body, head)
        self.backbone = backbone
        self.stop_ids = [backbone.end_id, *backbone.other_end_ids]

    def weight_of(self, projection: nn.Module) -> Tensor:
        """The weight [out, in] of a projection, trained adapters merged."""
        return self.backbone.weight_of(projection)


def text_decode_engine(backbone: Backbone) -> DecodeEngine[BackboneSteps] | None:
    """A decode engine with a copy of a backbone's present weights.

    Returns:
        None where the backbone is no Llama, and on a GPU, whose memory would hold it twice.
    """
    body = backbone.llama()
    if body is None or body.norm.weight.is_cuda:
        return None
    steps = BackboneSteps(backbone, body)
    return DecodeEngine(steps, slots=SLOTS, capacity=POSITIONS, keep_states=True)


def text_request(
    steps: BackboneSteps,
    prompt: Tensor,
    max_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    parts: tuple[int, ...] = (),
) -> Request:
    """Return a request for the text that follows a prompt.

    Args:
        steps: of the engine that takes the request.
        prompt: input vectors [P, H].
        max_tokens: text tokens at most, the end token included.
        temperature: 0 is greedy.
        seed: of the samples.
        parts: of the prompt, as a `Request` has them.
    """
    sampling = UnitRequest(
        stop_ids=steps.stop_ids, max_length=max_tokens, temperature=temperature, seed=seed
    )
    return Request(prompt, sampling, parts=parts)


@torch.no_grad()
def continue_prompts(
    engine: DecodeEngine[BackboneSteps],
    prompts: Tensor,
    lengths: list[int],
    max_tokens: int,
    temperature: float,
    seed: int,
    parts: Sequence[tuple[int, ...]] | None = None,
) -> list[Completion]:
    """Decode text from prompts.

    Args:
        engine: of `text_decode_engine`.
        prompts: input vectors [B, P, H], right-padded.
        lengths: [B] positions of each prompt.
        max_tokens: text tokens at most.
        temperature: 0 is greedy.
        seed: of the samples; each row derives its own.
        parts: of each prompt, as a `Request` has them; None is without.

    Raises:
        SignalError: scores are NaN or infinite, or a prompt is too long for the engine.
    """
    steps = engine.steps
    completions = engine.run(
        text_request(steps, prompt[:length], max_tokens, temperature, seed * SEEDS + row, ends)
        for row, (prompt, length, ends) in enumerate(
            zip(prompts, lengths, parts or [()] * len(lengths))
        )
    )
    for row, completion in enumerate(completions):
        if completion.failed:
            raise SignalError(NOT_FINITE.format(row))
    return completions
