"""The unit decoder of T2C and Echo in the loop: where the text is, when NEXT is due, and when the end."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from echox.errors import SignalError
from echox.kernels.unit_decode import GREEDY, UnitHead, UnitRequest, UnitStep
from echox.models.codebook_pattern import aligned
from echox.models.unit_loop.body import untouched
from echox.models.unit_loop.codebooks import NEVER, end_in_steps
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
            UnitHead.of(
                head.weight,
                bias=head.bias,
                segments=head.segments,
                softcap=head.softcap,
                pad_id=decoder.begin_id,
                embedding=decoder.words.weight,
            ),
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
        begin = decoder.embedded(torch.full_like(decoder.words.first_rows, decoder.begin_id)).detach()
        mark = decoder.next_id if decoder.config.monotonic else decoder.end_id
        codes = [(first, first + decoder.word_count) for first in self.head.cuts[:-1]]
        said = replace(request, allowed=[*codes, (mark, mark + 1)])
        if not decoder.config.monotonic:
            return Ask(torch.cat([prefix, begin[None]]), said)
        rules = {"passed": 0, "run": 0, "text_length": len(prefix), "spoken": spoken}
        return Ask(torch.cat([prefix, (begin + spoken[0])[None]]), said, rules)


class CodebookDecoderSteps(UnitDecoderSteps):
    """The same with K codebooks: the first one says words and marks, the others their codes behind it, and nothing beside a mark."""

    def __init__(self, decoder: UnitDecoder) -> None:
        super().__init__(decoder)
        self.delays = decoder.words.first_rows.new_tensor(decoder.delays)
        self.longest = max(decoder.delays)
        self.beside = (self.delays == 0) & (decoder.words.first_rows > 0)  # [K] codebooks that speak in the step of their row's mark

    def seats(self, slots: int, capacity: int, device: torch.device) -> dict[str, Tensor]:
        return super().seats(slots, capacity, device) | {"ended": torch.full((slots,), NEVER, device=device)}

    def forced(self, rows: Rows) -> Tensor:
        nothing, step = self.decoder.begin_id, rows.state.length[:, None]
        row = step - self.delays
        # What the first codebook says in this very step is not known yet; there `inputs` hides what stands beside a mark.
        marked = (self.delays > 0) & (rows.said[..., 0].gather(1, row.clamp(min=0)) >= self.decoder.word_count)
        silent = (row < 0) | marked | (row > rows.rules["ended"][:, None])
        due = super().forced(rows)
        free = torch.full_like(row, -1) if due is None else torch.cat([due, torch.full_like(row[:, 1:], -1)], dim=1)
        return torch.where(silent, nothing, free)

    def inputs(self, step: UnitStep, rows: Rows) -> Tensor:
        first = step.tokens[:, :1]
        end_in_steps(rows, first[:, 0] == self.decoder.end_id, self.longest)
        tokens = torch.where(self.beside & (first >= self.decoder.word_count), self.decoder.begin_id, step.tokens)
        vectors = self.head.embedding[tokens + self.head.at[:-1]].sum(1)
        return super().inputs(replace(step, embedding=vectors), rows)

    def ask(self, prefix: Tensor, spoken: Tensor, request: UnitRequest) -> Ask:
        asked = super().ask(prefix, spoken, replace(request, stop_ids=()))
        return replace(asked, rules={**asked.rules, "ended": NEVER})


def _row_of(table: Tensor, at: Tensor) -> Tensor:
    """table [A, S, C], at [A] -> [A, C]."""
    return table.gather(1, at[:, None, None].expand(-1, 1, table.shape[2]))[:, 0]


def decoder_loop(decoder: UnitDecoder, *, slots: int = SLOTS, capacity: int | None = None, impl: Impl = Impl.auto) -> UnitLoop:
    """A loop that speaks with a decoder's present weights.

    Args:
        capacity: positions of a request; None is what the decoder was made for.
    """
    steps = UnitDecoderSteps(decoder) if decoder.codebooks == 1 else CodebookDecoderSteps(decoder)
    return UnitLoop(steps, slots=slots, capacity=capacity or decoder.config.positions, impl=impl)


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
    targets = [decoder.target_of_rows([]) for _ in lengths]
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
        targets[row] = _target(decoder, found.tokens.tolist())
    return targets


def _target(decoder: UnitDecoder, said: list[list[int]]) -> list[int]:
    """What was said [T][K], with an end where the limit came before it, which leaves out frames that are not whole."""
    rows = aligned(said, decoder.delays)
    ended = next((number for number, row in enumerate(rows) if row[0] == decoder.end_id), len(rows))
    nothing = [decoder.begin_id] * (decoder.codebooks - 1)
    # Where codes of a frame are said at once, those beside a mark were said before it was known.
    return decoder.target_of_rows([row if row[0] < decoder.word_count else [row[0], *nothing] for row in rows[:ended]])
