"""Greedy decoding of the unit translator: segments in the decode engine, and texts step by step."""

from __future__ import annotations

import torch
from torch import Tensor

from echox.core.errors import SignalError
from echox.decoding import DecodeEngine, Impl, Request, Rows, Steps
from echox.decoding.greedy_text import (
    GeneratedText,
    decode_steps,
    gathered,
    text_of_completions,
)
from echox.kernels.unit_decode import UnitHead, UnitRequest, UnitStep
from echox.kernels.unit_decode.state import Needs
from echox.models.release.causal import Prompt
from echox.models.release.translator import UnitTranslator

SLOTS = 8  # segments stepped together where the caller does not say


class TranslatorSteps(Steps):
    """Adapter between `DecodeEngine` and a unit translator.

    Any id may be generated, those of text too, as in the release; the end token ends a segment.

    Args:
        translator: whose present weights are used.
        end_id: the token that ends a segment.
    """

    def __init__(self, translator: UnitTranslator, end_id: int) -> None:
        super().__init__(translator.body, UnitHead.of(translator.head.weight, pad_id=end_id))
        self.translator = translator
        # Greedy requests with one stop id alone, for which sampling has less to do.
        self.needs = Needs.of([UnitRequest(stop_ids=[end_id])])

    def inputs(self, step: UnitStep, rows: Rows) -> Tensor:
        return self.translator.embed(step.tokens[:, 0])


def release_decode_engine(
    translator: UnitTranslator,
    end_id: int,
    *,
    slots: int = SLOTS,
    capacity: int,
    keep_states: bool = False,
    impl: Impl = Impl.auto,
) -> DecodeEngine:
    """Decode engine with the present weights of a unit translator; see `DecodeEngine`.

    Args:
        translator: whose weights are copied.
        end_id: the token that ends a segment.
        slots: segments that are decoded at a time.
        capacity: positions of a segment: its prompt and all tokens but the last.
        keep_states: return hidden states too.
        impl: how steps are run.
    """
    return DecodeEngine(
        TranslatorSteps(translator, end_id),
        slots=slots,
        capacity=capacity,
        keep_states=keep_states,
        impl=impl,
    )


def greedy_requests(prompt: Prompt, end_id: int, max_tokens: int) -> list[Request]:
    """A greedy decoding request for each row of a prompt, of at most `max_tokens` tokens."""
    sampling = UnitRequest(stop_ids=[end_id], max_length=max_tokens)
    return [
        # float32, which the engine rounds to its own dtype.
        Request(embeddings[:length].float(), sampling)
        for embeddings, length in zip(prompt.embeddings, prompt.lengths.tolist())
    ]


@torch.no_grad()
def generate_units(
    engine: DecodeEngine, prompt: Prompt, end_id: int, max_tokens: int
) -> GeneratedText:
    """Decode the unit tokens of B prompts.

    Args:
        engine: of `release_decode_engine`.
        prompt: B prompts of segments.
        end_id: the token that ends a segment.
        max_tokens: unit tokens of a segment at most.

    Returns:
        ids [B, U] without the end token; hidden states [B, U, C], or [B, U, 0] where the engine
        does not keep them.

    Raises:
        SignalError: a row needs more positions than the engine has, or its scores are not finite.
    """
    completions = engine.run(greedy_requests(prompt, end_id, max_tokens))
    for number, completion in enumerate(completions):
        if completion.failed:
            raise SignalError(
                f"the unit translator's scores for segment {number} are not finite, "
                "so it has no speech; its weights or its states are damaged"
            )
    return text_of_completions(completions, [end_id], end_id, prompt.embeddings.device)


def generate_after_text(
    translator: UnitTranslator, prompt: Prompt, end_id: int, max_tokens: int
) -> GeneratedText:
    """Decode the unit tokens of B texts by T2C, whose prompts hide the end of the text.

    Args:
        translator: whose unit tokens are decoded.
        prompt: of `UnitTranslator.prefix_prompt`.
        end_id: the token that ends a row.
        max_tokens: unit tokens of a text at most.
    """
    # Not in the engine, which attends to all of a prompt.
    steps = decode_steps(translator, prompt.embeddings, prompt.visible, [end_id], max_tokens)
    return gathered(steps, end_id, end_id)
