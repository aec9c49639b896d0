"""The unit translator in the decode loop: segments of an answer, spoken together or as they are cut."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from echox.errors import SignalError
from echox.kernels.unit_decode import UnitHead, UnitRequest, UnitStep
from echox.kernels.unit_decode.state import Needs
from echox.models.published.causal import Generated, Prompt
from echox.models.published.translator import UnitTranslator
from echox.models.unit_loop import Ask, Impl, Rows, Spoken, Steps, UnitLoop

SLOTS = 8  # segments stepped together where the caller does not say


class TranslatorSteps(Steps):
    """Any id may be said, text too; the end token ends a segment."""

    def __init__(self, translator: UnitTranslator, end_id: int) -> None:
        super().__init__(translator.body, UnitHead.of(translator.head.weight, pad_id=end_id))
        self.translator = translator
        self.needs = Needs.of([UnitRequest(stop_ids=[end_id])])

    def inputs(self, step: UnitStep, rows: Rows) -> Tensor:
        return self.translator.embed(step.tokens[:, 0])


def translator_loop(
    translator: UnitTranslator, end_id: int, *, slots: int = SLOTS, capacity: int, keep_states: bool = False, impl: Impl = Impl.auto
) -> UnitLoop:
    """A loop that speaks with a translator's present weights; see `UnitLoop`."""
    return UnitLoop(TranslatorSteps(translator, end_id), slots=slots, capacity=capacity, keep_states=keep_states, impl=impl)


def asks_of(prompt: Prompt, end_id: int, max_words: int) -> list[Ask]:
    """A request for each row of a prompt, greedy."""
    request = UnitRequest(stop_ids=[end_id], max_length=max_words)
    return [Ask(row[:length].float(), request) for row, length in zip(prompt.embeddings, prompt.lengths.tolist())]


@torch.no_grad()
def speak_prompt(loop: UnitLoop, prompt: Prompt, end_id: int, max_words: int) -> Generated:
    """Unit words of a prompt's rows; states are [B, S, 0] where the loop does not keep them.

    Raises:
        SignalError: a row needs more positions than the loop has, or its scores are no numbers.
    """
    spoken = loop.run(asks_of(prompt, end_id, max_words))
    for row, found in enumerate(spoken):
        if found.failed:
            raise SignalError(
                f"the unit translator's scores for segment {row} are not finite, so it is not spoken; its weights or its states are damaged"
            )
    return _generated(spoken, prompt, end_id)


def _generated(spoken: Sequence[Spoken], prompt: Prompt, end_id: int) -> Generated:
    device, dtype = prompt.embeddings.device, prompt.embeddings.dtype
    ids = torch.nn.utils.rnn.pad_sequence([found.tokens[:, 0] for found in spoken], batch_first=True, padding_value=end_id).to(device)
    states = [found.tokens.new_empty(len(found.tokens), 0) if found.states is None else found.states for found in spoken]
    hidden = torch.nn.utils.rnn.pad_sequence(states, batch_first=True).to(device, dtype)
    ended = ids == end_id
    lengths = torch.where(ended.any(1), ended.long().argmax(1), ids.shape[1])
    return Generated(ids, hidden, lengths, torch.tensor([int(found.tokens[-1]) == end_id for found in spoken], device=device))
