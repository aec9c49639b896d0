"""The loop's state, a row for each slot, on the device; requests sit in the first rows, without gaps."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from echox.kernels.unit_decode import GREEDY, UnitParams, UnitState, sample_units
from echox.kernels.unit_decode.state import on_device
from echox.models.unit_loop.body import CachedBody, untouched
from echox.models.unit_loop.cpu_body import CpuBody
from echox.models.unit_loop.steps import Ask, Rows, Steps


class Seats:
    """Slots and what is in them."""

    def __init__(self, steps: Steps, slots: int, capacity: int, dtype: torch.dtype, keep_states: bool) -> None:
        self.steps = steps
        self.body = _body_for(steps, dtype)(steps.body, slots, capacity, dtype, steps.weight_of)
        device = self.body.norm.device
        self.params = UnitParams.of([GREEDY] * slots, steps.head)
        self.state = UnitState.empty(slots, steps.head)
        self.rules = steps.seats(slots, capacity, device)
        self.inputs = torch.zeros(slots, self.body.width, device=device)
        self.at = torch.zeros(slots, dtype=torch.int64, device=device)
        # One column more than tokens fit: rows that have ended write there.
        self.said = torch.zeros(slots, capacity + 1, steps.head.codebooks, dtype=torch.int64, device=device)
        self.states = untouched(slots, capacity + 1, self.body.width, dtype=torch.float32, device=device) if keep_states else None

    def rows(self, count: int) -> Rows:
        """The first rows; made anew after `seat` and `leave`, since what the requests need is known from them."""
        params = {name: getattr(self.params, name)[:count] for name in _names(self.params)}
        state = {name: getattr(self.state, name)[:count] for name in _names(self.state)}
        rules = {name: tensor[:count] for name, tensor in self.rules.items()}
        plain = (tensor[:count] for tensor in (self.inputs, self.at, self.said))
        return Rows(UnitParams(**params), UnitState(**state), rules, *plain, None if self.states is None else self.states[:count])

    def seat(self, first: int, asks: Sequence[Ask]) -> None:
        """Give the rows from `first` on to requests, their prompts read together."""
        if (longest := max(len(ask.inputs) for ask in asks)) > 1:
            prompts = torch.nn.utils.rnn.pad_sequence([ask.inputs[: longest - 1] for ask in asks], batch_first=True)
            self.body.prefill(prompts[:, : longest - 1], first)
        requests = [ask.request for ask in asks]
        self.params.put(first, requests, self.steps.head)
        self.state.put(first, requests)
        rows = slice(first, first + len(asks))
        self.at[rows] = on_device([len(ask.inputs) - 1 for ask in asks], torch.int64, self.at.device)
        self.inputs[rows] = torch.stack([ask.inputs[-1] for ask in asks])
        for name, rule in self.rules.items():
            values = [ask.rules[name] for ask in asks]
            if isinstance(values[0], Tensor):
                padded = torch.nn.utils.rnn.pad_sequence(values, batch_first=True)
                rule[rows, : padded.shape[1]] = padded
            else:
                rule[rows] = on_device(values, rule.dtype, rule.device)

    def move(self, source: int, target: int, filled: int) -> None:
        """Put a row into another's place; `filled` positions of it matter. The row it leaves is one that has ended."""
        self.body.move(source, target, filled)
        self.params.requests[target] = self.params.requests[source]
        tensors = [getattr(self.params, name) for name in _names(self.params) if name != "requests"]
        tensors += [getattr(self.state, name) for name in _names(self.state)]
        for tensor in (*tensors, *self.rules.values(), self.inputs, self.at, self.said, *([] if self.states is None else [self.states])):
            tensor[target] = tensor[source]

    def step(self, rows: Rows, filled: int, level: bool) -> None:
        """One token for every row; see `CachedBody.places`. Rows that have ended stay where they are."""
        hidden = self.body.step(rows.inputs, self.body.places(rows.at, filled, level))
        column = rows.state.length[:, None, None].clone()
        step = sample_units(hidden, self.steps.head, rows.params, rows.state, forced=self.steps.forced(rows))
        rows.said.scatter_(1, column.expand(-1, 1, rows.said.shape[2]), step.tokens[:, None])
        if rows.states is not None:
            rows.states.scatter_(1, column.expand(-1, 1, hidden.shape[1]), hidden[:, None])
        rows.inputs.copy_(self.steps.inputs(step, rows))
        rows.at.add_(~rows.state.finished)


def _body_for(steps: Steps, dtype: torch.dtype) -> type[CachedBody]:
    """The body that is fastest where the head's weight lies."""
    if not steps.head.weight.is_cuda:
        return CpuBody
    if dtype is torch.float64 or steps.body.config.hidden_act != "silu":
        return CachedBody
    from echox.models.unit_loop.gpu_body import GpuBody  # Triton is needed by it alone

    return GpuBody


def _names(values: UnitParams | UnitState) -> list[str]:
    return [field.name for field in dataclasses.fields(values) if field.init]
