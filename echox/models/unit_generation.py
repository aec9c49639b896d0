"""The unit decoder of T2C and Echo in the decode engine: current text token, NEXT marks and end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from echox.core.errors import SignalError
from echox.decoding.body import lazy_zeros
from echox.decoding.engine import DecodeEngine, Impl
from echox.decoding.steps import Request, Rows, Steps, embedding_of
from echox.kernels.unit_decode import GREEDY, UnitHead, UnitRequest, UnitStep
from echox.models.codebook_pattern import aligned
from echox.models.unit_decoder import UnitDecoder

SLOTS = 64  # requests stepped together where the caller does not say
NEVER = 2**31  # a step that no request reaches


class UnitTokens(list[int]):
    """Generated ids of one text.

    Attributes:
        is_cut: whether the limit of steps came before the end.
    """

    def __init__(self, ids: Iterable[int] = (), is_cut: bool = False) -> None:
        super().__init__(ids)
        self.is_cut = is_cut

    def append_segment(self, segment: UnitTokens) -> None:
        """Append the ids of the next segment, which may be cut."""
        self.extend(segment)
        self.is_cut |= segment.is_cut


class UnitDecoderSteps(Steps):
    """Steps of a `UnitDecoder` of one codebook.

    In the monotonic form NEXT marks are counted as they are sampled. NEXT is forced once a text
    token has its most unit tokens, and END after the last text token's NEXT.
    """

    def __init__(self, decoder: UnitDecoder) -> None:
        head = decoder.head
        unit_head = UnitHead.of(
            head.weight,
            bias=head.bias,
            segments=head.segments,
            softcap=head.softcap,
            pad_id=decoder.begin_id,
            embedding=decoder.words.weight,
        )
        super().__init__(decoder.body, unit_head)
        self.decoder = decoder

    def slot_tensors(self, slots: int, capacity: int, device: torch.device) -> dict[str, Tensor]:
        """The rules of the monotonic form; the prefix form has none.

        "passed": int64 [slots], NEXT marks so far, which is the index of the current text token.
        "run": int64 [slots], unit tokens of the current text token.
        "text_length": int64 [slots], text tokens.
        "conditioning": [slots, capacity + 1, C], what is added to the input by text token.
        """
        if not self.decoder.config.monotonic:
            return {}
        rules = {
            name: torch.zeros(slots, dtype=torch.int64, device=device)
            for name in ("passed", "run", "text_length")
        }
        C = self.decoder.config.width
        # A request fills as much as its text is long, which is far from the capacity.
        rules["conditioning"] = lazy_zeros(
            slots, capacity + 1, C, dtype=torch.float32, device=device
        )
        return rules

    def forced(self, rows: Rows) -> Tensor | None:
        """NEXT or END where it is due, int64 [A, 1]; None in the prefix form."""
        config = self.decoder.config
        if not config.monotonic:
            return None
        is_full = rows.rules["run"] >= config.max_words_per_token
        due = torch.where(is_full, self.decoder.next_id, -1)
        is_complete = rows.rules["passed"] >= rows.rules["text_length"]
        return torch.where(is_complete, self.decoder.end_id, due)[:, None]

    def inputs(self, step: UnitStep, rows: Rows) -> Tensor:
        """The sampled token's vector plus that of the current text token, [A, C]."""
        if not self.decoder.config.monotonic:
            return embedding_of(step)
        is_next = step.tokens[:, 0] == self.decoder.next_id
        rows.rules["passed"].add_(is_next)
        rows.rules["run"].add_(1).masked_fill_(is_next, 0)
        return embedding_of(step) + _select(rows.rules["conditioning"], rows.rules["passed"])

    def request_for(self, prefix: Tensor, conditioning: Tensor, sampling: UnitRequest) -> Request:
        """A request for the unit tokens of one text.

        Args:
            prefix: [S, C], and conditioning: [S + 1, C], as `UnitDecoder.read_text` returns them.
            sampling: how unit tokens are chosen; its `allowed` is replaced.
        """
        decoder = self.decoder
        begin_ids = torch.full_like(decoder.words.first_rows, decoder.begin_id)
        begin = decoder.embedded(begin_ids).detach()  # [C]
        # The monotonic form samples NEXT alone: its END is forced. The prefix form has no NEXT.
        mark = decoder.next_id if decoder.config.monotonic else decoder.end_id
        codes = [(first, first + decoder.unit_vocab_size) for first in self.head.cuts[:-1]]
        sampling = replace(sampling, allowed=[*codes, (mark, mark + 1)])
        if not decoder.config.monotonic:
            return Request(torch.cat([prefix, begin[None]]), sampling)
        rules: dict[str, Tensor | int] = {"passed": 0, "run": 0, "text_length": len(prefix)}
        rules["conditioning"] = conditioning
        return Request(torch.cat([prefix, (begin + conditioning[0])[None]]), sampling, rules)


class CodebookDecoderSteps(UnitDecoderSteps):
    """Steps of a `UnitDecoder` of K codebooks.

    The first codebook samples codes and marks; the others follow it by their delays with their
    codes, and are silent beside a mark.
    """

    def __init__(self, decoder: UnitDecoder) -> None:
        super().__init__(decoder)
        first_rows = decoder.words.first_rows
        self.delays = first_rows.new_tensor(decoder.delays)  # [K]
        self.max_delay = max(decoder.delays)
        # Codebooks [K] that are sampled in the very step of their row's mark.
        self.undelayed = (self.delays == 0) & (first_rows > 0)

    def slot_tensors(self, slots: int, capacity: int, device: torch.device) -> dict[str, Tensor]:
        """The rules of one codebook and "ended": int64 [slots], the first codebook's last step."""
        rules = super().slot_tensors(slots, capacity, device)
        return rules | {"ended": torch.full((slots,), NEVER, device=device)}

    def forced(self, rows: Rows) -> Tensor:
        """Marks that are due, and silence by the delay pattern, int64 [A, K]."""
        silence = self.decoder.begin_id
        row = rows.state.length[:, None] - self.delays  # [A, K] the row each codebook is at
        # The first codebook's token of this very step is not known yet; for codebooks without a
        # delay `inputs` hides what stands beside a mark.
        first = rows.tokens[..., 0].gather(1, row.clamp(min=0))
        beside_mark = (self.delays > 0) & (first >= self.decoder.unit_vocab_size)
        silent = (row < 0) | beside_mark | (row > rows.rules["ended"][:, None])
        free = torch.full_like(row, -1)
        due = super().forced(rows)
        if due is not None:
            free = torch.cat([due, free[:, 1:]], dim=1)
        return torch.where(silent, silence, free)

    def inputs(self, step: UnitStep, rows: Rows) -> Tensor:
        """The sum of the sampled codes' vectors plus that of the current text token, [A, C]."""
        first = step.tokens[:, :1]
        _schedule_end(rows, first[:, 0] == self.decoder.end_id, self.max_delay)
        beside_mark = self.undelayed & (first >= self.decoder.unit_vocab_size)
        tokens = torch.where(beside_mark, self.decoder.begin_id, step.tokens)
        vectors = self.head.require_embedding()[tokens + self.head.at[:-1]].sum(1)
        return super().inputs(replace(step, embedding=vectors), rows)

    def request_for(self, prefix: Tensor, conditioning: Tensor, sampling: UnitRequest) -> Request:
        """A request for the codes of one text: prefix [S, C], conditioning [S + 1, C]."""
        # No stop ids: the other codebooks go on after the first one's END, see `_schedule_end`.
        request = super().request_for(prefix, conditioning, replace(sampling, stop_ids=()))
        return replace(request, rules={**request.rules, "ended": NEVER})


def _schedule_end(rows: Rows, is_end: Tensor, max_delay: int) -> None:
    """Let rows whose first codebook has just ended run on until the last codebook has caught up.

    The step is kept in rule "ended", and `max_length` of the row is lowered.

    Args:
        rows: the active rows; rule "ended" is int64 [A], NEVER before the end.
        is_end: bool [A], the first codebook's token of this step is its end.
        max_delay: steps that the slowest codebook lags.
    """
    ended, state, params = rows.rules["ended"], rows.state, rows.params
    # Sampling has counted this step already, so the step itself is length - 1.
    ends = is_end & (ended == NEVER) & ~state.finished
    ended.copy_(torch.where(ends, state.length - 1, ended))
    last = torch.minimum(state.length + max_delay, params.max_length)
    params.max_length.copy_(torch.where(ends, last, params.max_length))
    # With no delay the row ends in this very step, after sampling has tested its length.
    state.finished.logical_or_(state.length >= params.max_length)


def _select(table: Tensor, index: Tensor) -> Tensor:
    """One vector of each row: table [A, S, C], index [A] -> [A, C]."""
    return table.gather(1, index[:, None, None].expand(-1, 1, table.shape[2]))[:, 0]


def unit_decode_engine(
    decoder: UnitDecoder, *, slots: int = SLOTS, capacity: int | None = None, impl: Impl = Impl.auto
) -> DecodeEngine[UnitDecoderSteps]:
    """Build a decode engine with a copy of a unit decoder's present weights.

    Args:
        decoder: the unit decoder.
        slots: requests that are stepped together.
        capacity: positions of a request; None is what the decoder was built for.
        impl: how steps are run.

    Raises:
        ConfigError: graphs are asked for where there is no GPU.
    """
    steps = UnitDecoderSteps(decoder) if decoder.codebooks == 1 else CodebookDecoderSteps(decoder)
    return DecodeEngine(
        steps, slots=slots, capacity=capacity or decoder.config.positions, impl=impl
    )


@torch.no_grad()
def generate_targets(
    decoder: UnitDecoder,
    text: Tensor,
    text_lengths: Tensor,
    max_steps: int = 1024,
    *,
    sampling: UnitRequest = GREEDY,
    engine: DecodeEngine[UnitDecoderSteps] | None = None,
) -> list[UnitTokens]:
    """Generate targets of the unit decoder: unit tokens, NEXT marks and END.

    Args:
        decoder: the unit decoder.
        text: text vectors [B, S, H], right-padded.
        text_lengths: [B] text tokens; a text of none has an empty target.
        max_steps: decode steps at most, each a unit token or a mark.
        sampling: how unit tokens are chosen; row r samples with its seed plus r.
        engine: of `unit_decode_engine`; None builds one for this call.

    Returns:
        target ids per row, as `UnitDecoder.forward` takes them, and whether the limit cut them.

    Raises:
        SignalError: a text is too long for the engine, or scores are NaN or infinite.
    """
    lengths = text_lengths.tolist()
    targets = [UnitTokens(decoder.target_of_rows([])) for _ in lengths]
    if not any(lengths):
        return targets
    if engine is None:
        count, capacity = sum(length > 0 for length in lengths), max(lengths) + max_steps
        engine = unit_decode_engine(decoder, slots=min(count, SLOTS), capacity=capacity)
    requests = target_requests(engine.steps, text, text_lengths, max_steps, sampling)
    for row, completion in zip(requests, engine.run(requests.values())):
        if completion.failed:
            raise SignalError(
                f"the unit decoder's scores for text {row} are not finite, so it is not spoken; "
                "its weights or the text are damaged"
            )
        targets[row] = target_of(decoder, completion.tokens.tolist())
    return targets


def target_requests(
    steps: UnitDecoderSteps,
    text: Tensor,
    text_lengths: Tensor,
    max_steps: int = 1024,
    sampling: UnitRequest = GREEDY,
) -> dict[int, Request]:
    """Return a request for the target of each text that has tokens, by its row.

    Args:
        steps: of the engine that takes the requests.
        text: text vectors [B, S, H], right-padded.
        text_lengths: [B] text tokens.
        max_steps: decode steps at most, each a unit token or a mark.
        sampling: how unit tokens are chosen; row r samples with its seed plus r.
    """
    decoder = steps.decoder
    # Inputs of the engine are float32, whatever autocast has made of them.
    prefix, conditioning = (tensor.float() for tensor in decoder.read_text(text, text_lengths))
    sampling = replace(sampling, stop_ids=[decoder.end_id], max_length=max_steps)
    return {
        # Rows of one seed would share their noise.
        row: steps.request_for(
            prefix[row, :S], conditioning[row, : S + 1], replace(sampling, seed=sampling.seed + row)
        )
        for row, S in enumerate(text_lengths.tolist())
        if S
    }


def generate_unit_tokens(
    decoder: UnitDecoder,
    text: Tensor,
    text_lengths: Tensor,
    max_steps: int = 1024,
    engine: DecodeEngine[UnitDecoderSteps] | None = None,
) -> list[UnitTokens]:
    """Generate unit tokens for texts, greedy; rows never influence each other.

    Args:
        decoder: the unit decoder.
        text: text vectors [B, S, H], right-padded.
        text_lengths: [B] text tokens.
        max_steps: decode steps at most, each a unit token or a mark.
        engine: of `unit_decode_engine`; None builds one for this call.

    Returns:
        the unit tokens of each text in order, marks removed.

    Raises:
        SignalError: as `generate_targets`.
    """
    targets = generate_targets(decoder, text, text_lengths, max_steps, engine=engine)
    return [UnitTokens(decoder.unit_tokens_in(target), target.is_cut) for target in targets]


def target_of(decoder: UnitDecoder, steps: Sequence[list[int]]) -> UnitTokens:
    """Return the target of generated steps [T, K], with an END where the limit came before it.

    Frames of several codebooks that are incomplete are dropped: those of the first steps of a
    target are a beginning of it.
    """
    rows = aligned(steps, decoder.delays)
    is_end = (index for index, row in enumerate(rows) if row[0] == decoder.end_id)
    end = next(is_end, None)
    silence = [decoder.begin_id] * (decoder.codebooks - 1)
    # Codebooks without a delay were sampled in the step of a mark, before it was known: silenced.
    target = decoder.target_of_rows(
        [row if row[0] < decoder.unit_vocab_size else [row[0], *silence] for row in rows[:end]]
    )
    return UnitTokens(target, is_cut=end is None)
