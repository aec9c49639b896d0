"""The engine's state, one row a slot, on the device; active requests fill the first rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from echox.decoding.body import CachedBody, PlainBody, lazy_zeros
from echox.decoding.cpu_body import CpuBody
from echox.decoding.prompt_cache import PromptCache
from echox.decoding.steps import Request, Rows, Steps
from echox.kernels.unit_decode import GREEDY, UnitParams, UnitState, sample_units
from echox.kernels.unit_decode.state import on_device

KEPT_SHARE = 8  # of the slots' positions, one in so many more is kept of prompts


class Slots:
    """Tensors of all slots: sampling settings, progress, inputs, tokens and the key/value cache."""

    def __init__(
        self, steps: Steps, slots: int, capacity: int, dtype: torch.dtype, keep_states: bool
    ) -> None:
        self.steps = steps
        self.body = _body_class(steps, dtype)(steps.body, slots, capacity, dtype, steps.weight_of)
        self.prompts = PromptCache(slots * capacity // KEPT_SHARE)
        device = self.body.norm.device
        self.params = UnitParams.of([GREEDY] * slots, steps.head)
        self.state = UnitState.empty(slots, steps.head)
        self.rules = steps.slot_tensors(slots, capacity, device)
        self.inputs = torch.zeros(slots, self.body.width, device=device)
        self.positions = torch.zeros(slots, dtype=torch.int64, device=device)
        # One column more than tokens fit: rows that have finished write their padding there.
        W, K = capacity + 1, steps.head.codebooks
        self.tokens = torch.zeros(slots, W, K, dtype=torch.int64, device=device)
        self.states: Tensor | None = None
        if keep_states:
            self.states = lazy_zeros(slots, W, self.body.width, dtype=torch.float32, device=device)

    def rows(self, count: int) -> Rows:
        """Views of the first `count` slots.

        Views are valid until `admit` or `move`: which sampling steps the requests need is decided
        when the views are taken.
        """
        params = {name: getattr(self.params, name)[:count] for name in _field_names(self.params)}
        state = {name: getattr(self.state, name)[:count] for name in _field_names(self.state)}
        return Rows(
            UnitParams(**params),
            UnitState(**state),
            {name: tensor[:count] for name, tensor in self.rules.items()},
            self.inputs[:count],
            self.positions[:count],
            self.tokens[:count],
            None if self.states is None else self.states[:count],
        )

    def admit(self, first: int, requests: Sequence[Request]) -> None:
        """Put requests into the slots from `first` on and prefill their prompts.

        Prompts of parts are prefilled one by one, others in one batch.

        Raises:
            ConfigError: a request allows or stops at rows that the head does not have.
        """
        if any(request.parts for request in requests):
            for slot, request in enumerate(requests, first):
                self.prompts.prefill(self.body, request, slot)
        else:
            self._prefill(first, requests)
        sampling = [request.sampling for request in requests]
        self.params.put(first, sampling, self.steps.head)
        self.state.put(first, sampling)
        rows = slice(first, first + len(requests))
        self.positions[rows] = on_device(
            [len(request.inputs) - 1 for request in requests], torch.int64, self.positions.device
        )
        self.inputs[rows] = torch.stack([request.inputs[-1] for request in requests])
        for name, tensor in self.rules.items():
            _write_rule(tensor, rows, [request.rules[name] for request in requests])

    def _prefill(self, first: int, requests: Sequence[Request]) -> None:
        P = max(len(request.inputs) for request in requests) - 1
        if P > 0:
            # Cut to P: the last vector of the longest prompt belongs to the first step.
            prompts = pad_sequence([request.inputs[:P] for request in requests], batch_first=True)
            self.body.prefill(prompts[:, :P], first)

    def move(self, source: int, target: int, filled: int) -> None:
        """Copy slot `source`, of which `filled` positions matter, over the finished `target`."""
        self.body.move(source, target, filled)
        self.params.requests[target] = self.params.requests[source]
        for tensor in self._row_tensors():
            tensor[target] = tensor[source]

    def _row_tensors(self) -> list[Tensor]:
        """All tensors with a row for each slot, but the body's cache."""
        params = [name for name in _field_names(self.params) if name != "requests"]
        return [
            *(getattr(self.params, name) for name in params),
            *(getattr(self.state, name) for name in _field_names(self.state)),
            *self.rules.values(),
            self.inputs,
            self.positions,
            self.tokens,
            *([] if self.states is None else [self.states]),
        ]

    def step(self, rows: Rows, filled: int, uniform: bool) -> None:
        """Decode one token for every row; rows that have finished stay where they are.

        Args:
            rows: views of the active slots.
            filled, uniform: as in `CachedBody.places`.
        """
        places = self.body.places(rows.positions, filled, uniform)
        hidden = self.body.step(rows.inputs, places)
        # Cloned, for sampling advances the length that is the column to write.
        column = rows.state.length[:, None, None].clone()  # [A, 1, 1]
        forced = self.steps.forced(rows)
        step = sample_units(hidden, self.steps.head, rows.params, rows.state, forced=forced)
        rows.tokens.scatter_(1, column.expand(-1, 1, rows.tokens.shape[2]), step.tokens[:, None])
        if rows.states is not None:
            rows.states.scatter_(1, column.expand(-1, 1, hidden.shape[1]), hidden[:, None])
        rows.inputs.copy_(self.steps.inputs(step, rows))
        rows.positions.add_(~rows.state.finished)


def _write_rule(tensor: Tensor, rows: slice, values: Sequence[Tensor | int]) -> None:
    """Write requests' values of one step rule into its slots [slots, ...]."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    if tensors:
        padded = pad_sequence(tensors, batch_first=True)
        # Values of an earlier request may remain behind a row's own; no rule reads that far.
        tensor[rows, : padded.shape[1]] = padded
    else:
        tensor[rows] = on_device(values, tensor.dtype, tensor.device)


def _body_class(steps: Steps, dtype: torch.dtype) -> type[CachedBody]:
    """The fastest body for the device of the head's weight."""
    if not steps.head.weight.is_cuda:
        return CpuBody
    # The GPU body's kernels compute in float32, which float64 would lose to, and gate by SiLU.
    if dtype is torch.float64 or steps.body.config.hidden_act != "silu":
        return PlainBody
    from echox.decoding.gpu_body import GpuBody  # only this body needs Triton

    return GpuBody


def _field_names(values: UnitParams | UnitState) -> list[str]:
    return [field.name for field in dataclasses.fields(values) if field.init]
