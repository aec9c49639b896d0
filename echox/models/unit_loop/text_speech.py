"""The unit decoder of T2C and Echo in the loop: where the text is, when NEXT is due, and when the end."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from echox.errors import SignalError
from echox.kernels.unit_decode import GREEDY, UnitHead, UnitRequest, UnitStep
from echox.models.unit_loop.body import untouched
from echox.models.unit_loop.loop import Impl, UnitLoop
from echox.models.unit_loop.steps import Ask, Rows, Steps

if TYPE_CHECKING:
    from echox.models.unit_decoder import UnitDecoder

SLOTS = 64  # requests stepped together where the caller does not say


class UnitDecoderSteps(Steps):
    """Marks are counted as they are said; the last word of a token is followed by NEXT at the latest, the last NEXT by END."""

    def __init__(self, decoder: UnitDecoder) -> None:
        head = decoder.head
        super().__init__(
            decoder.body,
            UnitHead.of(head.weight, bias=head.bias, softcap=head.softcap, pad_id=decoder.end_id, embedding=decoder.words.weight),
        )
        self.decoder = decoder

    def seats(self, slots: int, capacity: int, device: torch.device) -> dict[str, Tensor]:
        if not self.decoder.config.monotonic:
            return {}
        counts = {name: torch.zeros(slots, dtype=torch.int64, device=device) for name in ("passed", "run", "text_length")}
        return counts | {"spoken": untouched(slots, capacity + 1, self.decoder.config.width, dtype=torch.float32, device=device)}

    def forced(self, rows: Rows) -> Tensor | None:
        if not self.decoder.config.monotonic:
            return None
        due = torch.where(rows.rules["run"] >= self.decoder.config.max_words_per_token, self.decoder.next_id, -1)
        return torch.where(rows.rules["passed"] >= rows.rules["text_length"], self.decoder.end_id, due)[:, None]

    def inputs(self, step: UnitStep, rows: Rows) -> Tensor:
        if not self.decoder.config.monotonic:
            return step.embedding
        is_next = step.tokens[:, 0] == self.decoder.next_id
        rows.rules["passed"].add_(is_next)
        rows.rules["run"].add_(1).masked_fill_(is_next, 0)
        return step.embedding + _row_of(rows.rules["spoken"], rows.rules["passed"])

    def ask(self, prefix: Tensor, spoken: Tensor, request: UnitRequest) -> Ask:
        """One text's prefix [S, C] and what is seen while each token is spoken [S + 1, C], as `UnitDecoder.read_text` makes them."""
        decoder = self.decoder
        begin = decoder.words.weight[decoder.begin_id].detach()
        if not decoder.config.monotonic:
            return Ask(
                torch.cat([prefix, begin[None]]), replace(request, allowed=[(0, decoder.begin_id), (decoder.end_id, decoder.end_id + 1)])
            )
        rules = {"passed": 0, "run": 0, "text_length": len(prefix), "spoken": spoken}
        said = replace(request, allowed=[(0, decoder.begin_id), (decoder.next_id, decoder.next_id + 1)])
        return Ask(torch.cat([prefix, (begin + spoken[0])[None]]), said, rules)


def _row_of(table: Tensor, at: Tensor) -> Tensor:
    """table [A, S, C], at [A] -> [A, C]."""
    return table.gather(1, at[:, None, None].expand(-1, 1, table.shape[2]))[:, 0]


def decoder_loop(decoder: UnitDecoder, *, slots: int = SLOTS, capacity: int | None = None, impl: Impl = Impl.auto) -> UnitLoop:
    """A loop that speaks with a decoder's present weights.

    Args:
        capacity: positions of a request; None is what the decoder was made for.
    """
    return UnitLoop(UnitDecoderSteps(decoder), slots=slots, capacity=capacity or decoder.config.positions, impl=impl)


@torch.no_grad()
def speak_targets(
    decoder: UnitDecoder,
    text: Tensor,
    text_lengths: Tensor,
    max_words: int,
    *,
    sampling: UnitRequest = GREEDY,
    loop: UnitLoop | None = None,
) -> list[list[int]]:
    """Target ids for text vectors [B, S, H], as `forward` takes them: words, NEXT marks, END.

    Args:
        sampling: how words are chosen; row r draws with its seed plus r.
        loop: one of `decoder_loop` to speak in; None makes one for this call.
    Raises:
        SignalError: a text is too long, or the decoder's scores are no numbers.
    """
    lengths = text_lengths.tolist()
    rows = [row for row, length in enumerate(lengths) if length]
    targets = [[decoder.end_id] for _ in lengths]
    if not rows:
        return targets
    prefix, spoken = (tensor.float() for tensor in decoder.read_text(text, text_lengths))
    if loop is None:
        loop = decoder_loop(decoder, slots=min(len(rows), SLOTS), capacity=max(lengths) + max_words)
    request = replace(sampling, stop_ids=[decoder.end_id], max_length=max_words)
    asks = [loop.steps.ask(prefix[r, : lengths[r]], spoken[r, : lengths[r] + 1], replace(request, seed=sampling.seed + r)) for r in rows]
    for row, found in zip(rows, loop.run(asks)):
        if found.failed:
            raise SignalError(
                f"the unit decoder's scores for text {row} are not finite, so it is not spoken; its weights or the text are damaged"
            )
        said = found.tokens[:, 0].tolist()
        targets[row] = said if said[-1] == decoder.end_id else [*said, decoder.end_id]
    return targets
