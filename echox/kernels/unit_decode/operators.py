"""Unit decoding as operators of PyTorch: one node each in a compiled or exported program. Outside of one they are called directly.

An operator takes tensors and numbers, so heads, requests and states are taken apart here and put together again inside.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import nullcontext
from types import ModuleType

import torch
from torch import Tensor

from echox.kernels.unit_decode import codebooks, runs, sampling
from echox.kernels.unit_decode.codebooks import Codebooks
from echox.kernels.unit_decode.runs import Expansion, OpenRun, Runs, Spellings
from echox.kernels.unit_decode.state import Needs, UnitHead, UnitParams, UnitState

HEAD_TENSORS = ("weight", "bias", "embedding", "ids", "at", "columns")
PARAM_TENSORS = tuple(field.name for field in dataclasses.fields(UnitParams) if field.name not in ("requests", "needs"))
NEEDS = tuple(field.name for field in dataclasses.fields(Needs))
STATE_TENSORS = tuple(field.name for field in dataclasses.fields(UnitState))


def kernels_here() -> ModuleType:
    """The launches; Triton is imported on the first call, and by nothing else."""
    from echox.kernels.unit_decode import launch

    return launch


def step(
    hidden: Tensor, head: UnitHead, params: UnitParams, state: UnitState, forced: Tensor | None, kernels: bool
) -> tuple[Tensor, Tensor | None]:
    """Tokens [B, K] and vectors of the next step [B, E] or None; `state` is advanced."""
    if not torch.compiler.is_compiling():
        return _step_now(hidden, head, params, state, forced, kernels)
    of_head, of_params, of_state = ([getattr(owner, name) for name in names] for owner, names in ((head, HEAD_TENSORS), (params, PARAM_TENSORS), (state, STATE_TENSORS)))
    needs = [int(getattr(params.needs, name)) for name in NEEDS]
    made = torch.ops.echox.unit_decode_step(hidden, *of_head, of_params, of_state, forced, list(head.cuts), head.softcap, head.pad_id, needs, kernels)
    return made[0], None if head.embedding is None else made[1]


def _step_now(
    hidden: Tensor, head: UnitHead, params: UnitParams, state: UnitState, forced: Tensor | None, kernels: bool
) -> tuple[Tensor, Tensor | None]:
    kind = hidden.device.type
    # Entering it costs as much as several of the step's operations.
    outside = torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()
    with torch.no_grad(), outside:
        if kernels:
            return kernels_here().sample(hidden, head, params, state, forced)
        tokens = sampling.sample(hidden, head, params, state, forced)
        return tokens, sampling.next_embedding(tokens, head)


def _step(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    embedding: Tensor | None,
    ids: Tensor,
    at: Tensor,
    columns: Tensor | None,
    params: list[Tensor],
    state: list[Tensor],
    forced: Tensor | None,
    cuts: list[int],
    softcap: float,
    pad_id: int,
    needs: list[int],
    kernels: bool,
) -> tuple[Tensor, Tensor]:
    head = UnitHead(weight, bias, tuple(cuts), softcap, pad_id, embedding, ids, at, columns)
    asked = UnitParams(**dict(zip(PARAM_TENSORS, params)), requests=[])
    asked.needs = Needs(*needs)
    tokens, vectors = _step_now(hidden, head, asked, UnitState(*state), forced, kernels)
    return tokens, hidden.new_empty(0) if vectors is None else vectors


def _step_fake(hidden, weight, bias, embedding, ids, at, columns, params, state, forced, cuts, softcap, pad_id, needs, kernels):
    B = len(hidden)
    vectors = hidden.new_empty(0) if embedding is None else embedding.new_empty(B, embedding.shape[1])
    return hidden.new_empty(B, len(cuts) - 1, dtype=torch.int64), vectors


def merged(units: Tensor, lengths: Tensor, open: OpenRun, last: Tensor, kernels: bool) -> Runs:
    """Runs in tables of T + 1 columns."""
    call = torch.ops.echox.dedup_units if torch.compiler.is_compiling() else _merged
    found, durations, counts, unit, duration = call(units, lengths, open.unit, open.duration, last, kernels)
    return Runs(found, durations, counts, OpenRun(unit, duration))


def _merged(units: Tensor, lengths: Tensor, unit: Tensor, duration: Tensor, last: Tensor, kernels: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    made = (kernels_here() if kernels else runs).merged(units, lengths, OpenRun(unit, duration), last)
    return made.units, made.durations, made.lengths, made.open.unit, made.open.duration


def _merged_fake(units, lengths, unit, duration, last, kernels):
    B, T = units.shape
    return (*(units.new_empty(B, T + 1) for _ in range(2)), *(torch.empty_like(lengths) for _ in range(3)))


def spelled(words: Tensor, lengths: Tensor, spellings: Spellings, capacity: int, kernels: bool) -> Expansion:
    """Words by their spellings."""
    call = torch.ops.echox.expand_words if torch.compiler.is_compiling() else _spelled
    return Expansion(*call(words, lengths, spellings.offsets, spellings.units, capacity, kernels))


def _spelled(words: Tensor, lengths: Tensor, offsets: Tensor, units: Tensor, capacity: int, kernels: bool) -> tuple[Tensor, Tensor, Tensor]:
    made = (kernels_here() if kernels else runs).spelled(words, lengths, Spellings(offsets, units), capacity)
    return made.values, made.lengths, made.wanted


def _spelled_fake(words, lengths, offsets, units, capacity, kernels):
    return words.new_empty(len(words), capacity), torch.empty_like(lengths), torch.empty_like(lengths)


def lasting(units: Tensor, durations: Tensor, lengths: Tensor, capacity: int, kernels: bool) -> Expansion:
    """Units by their durations."""
    call = torch.ops.echox.expand_durations if torch.compiler.is_compiling() else _lasting
    return Expansion(*call(units, durations, lengths, capacity, kernels))


def _lasting(units: Tensor, durations: Tensor, lengths: Tensor, capacity: int, kernels: bool) -> tuple[Tensor, Tensor, Tensor]:
    made = (kernels_here() if kernels else runs).lasting(units, durations, lengths, capacity)
    return made.values, made.lengths, made.wanted


def _lasting_fake(units, durations, lengths, capacity, kernels):
    return units.new_empty(len(units), capacity), torch.empty_like(lengths), torch.empty_like(lengths)


def looked_up(codes: Tensor, lengths: Tensor, books: Codebooks, channels_first: bool, kernels: bool) -> Tensor:
    """Sums of codebooks' entries, [B, T, C] or [B, C, T]."""
    call = torch.ops.echox.rvq_dequantize if torch.compiler.is_compiling() else _looked_up
    return call(codes, lengths, books.table, books.firsts, books.counts, channels_first, kernels)


def _looked_up(codes: Tensor, lengths: Tensor, table: Tensor, firsts: Tensor, counts: Tensor, channels_first: bool, kernels: bool) -> Tensor:
    return (kernels_here() if kernels else codebooks).looked_up(codes, lengths, Codebooks(table, firsts, counts), channels_first)


def _looked_up_fake(codes, lengths, table, firsts, counts, channels_first, kernels):
    B, _, T = codes.shape
    C = table.shape[1]
    return table.new_empty((B, C, T) if channels_first else (B, T, C))


def _register(name: str, function: Callable, fake: Callable, changes: tuple[str, ...] = ()) -> None:
    """Make a function an operator. (`torch.library.custom_op` does it too, at the price of importing the compiler on the first call.)"""
    torch.library.define(name, torch.library.infer_schema(function, mutates_args=changes))
    torch.library.impl(name, ("cpu", "cuda"), function)
    torch.library.register_fake(name, fake)


_register("echox::unit_decode_step", _step, _step_fake, ("state",))
_register("echox::dedup_units", _merged, _merged_fake)
_register("echox::expand_words", _spelled, _spelled_fake)
_register("echox::expand_durations", _lasting, _lasting_fake)
_register("echox::rvq_dequantize", _looked_up, _looked_up_fake)
