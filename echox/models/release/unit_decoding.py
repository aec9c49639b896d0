"""Greedy decoding of the unit translator: segments in the decode engine, and texts step by step."""

from __future__ import annotations

from torch import Tensor

from echox.decoding import Request, Rows, Steps
from echox.decoding.greedy_text import GeneratedText, decode_steps, gathered
from echox.kernels.unit_decode import UnitHead, UnitRequest, UnitStep
from echox.kernels.unit_decode.state import Needs
from echox.models.release.causal import Prompt
from echox.models.release.translator import UnitTranslator


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


def greedy_requests(prompt: Prompt, end_id: int, max_tokens: int) -> list[Request]:
    """A greedy decoding request for each row of a prompt, of at most `max_tokens` tokens."""
    sampling = UnitRequest(stop_ids=[end_id], max_length=max_tokens)
    return [
        # float32, which the engine rounds to its own dtype.
        Request(embeddings[:length].float(), sampling)
        for embeddings, length in zip(prompt.embeddings, prompt.lengths.tolist())
    ]


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
