"""Unit decoding as operators of PyTorch: one node each in a compiled or exported program.

Outside of such a program the functions are called directly. An operator takes tensors and numbers,
so heads, requests and states are taken apart here and put together again inside.
"""

from __future__ import annotations

import dataclasses
from types import ModuleType

import torch
from torch import Tensor

from echox.kernels.dispatch import register_operator, without_autocast
from echox.kernels.unit_decode import sampling
from echox.kernels.unit_decode.head import UnitHead
from echox.kernels.unit_decode.state import Needs, UnitParams, UnitState

HEAD_TENSORS = ("weight", "bias", "embedding", "ids", "at", "columns")
PARAM_TENSORS = tuple(
    field.name
    for field in dataclasses.fields(UnitParams)
    if field.name not in ("requests", "needs")
)
NEEDS = tuple(field.name for field in dataclasses.fields(Needs))
STATE_TENSORS = tuple(field.name for field in dataclasses.fields(UnitState))


def triton_launches() -> ModuleType:
    """Return the module of launches; Triton is imported on the first call, and by nothing else."""
    from echox.kernels.unit_decode import launch

    return launch


def step(
    hidden: Tensor,
    head: UnitHead,
    params: UnitParams,
    state: UnitState,
    forced: Tensor | None,
    kernels: bool,
) -> tuple[Tensor, Tensor | None]:
    """Take one step of unit decoding and advance `state`.

    Args:
        hidden: [B, D]; forced: [B, K] or None.
        kernels: whether Triton's or PyTorch's implementation runs.

    Returns:
        Tokens [B, K], and vectors of the next step [B, E] or None.
    """
    if not torch.compiler.is_compiling():
        return _run_step(hidden, head, params, state, forced, kernels)
    head_tensors, param_tensors, state_tensors = (
        [getattr(owner, name) for name in names]
        for owner, names in ((head, HEAD_TENSORS), (params, PARAM_TENSORS), (state, STATE_TENSORS))
    )
    needs = [int(getattr(params.needs, name)) for name in NEEDS]
    numbers = (list(head.cuts), head.softcap, head.pad_id, needs, kernels)
    tokens, vectors = torch.ops.echox.unit_decode_step(
        hidden, *head_tensors, param_tensors, state_tensors, forced, *numbers
    )
    return tokens, None if head.embedding is None else vectors


def _run_step(
    hidden: Tensor,
    head: UnitHead,
    params: UnitParams,
    state: UnitState,
    forced: Tensor | None,
    kernels: bool,
) -> tuple[Tensor, Tensor | None]:
    # Autocast would round scores to 16 bits.
    with torch.no_grad(), without_autocast(hidden.device.type):
        if kernels:
            return triton_launches().sample(hidden, head, params, state, forced)
        tokens = sampling.sample(hidden, head, params, state, forced)
        return tokens, sampling.next_embedding(tokens, head)


# The parameters of registered functions are the names in the operators' schemas: exported programs
# hold them.


def _unit_decode_step(
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
    settings = UnitParams(**dict(zip(PARAM_TENSORS, params)), requests=[])
    # Without requests there is nothing to derive them from.
    penalties, bars, stops, draws, best, top_k, top_p, min_p = needs
    settings.needs = Needs(
        penalties=bool(penalties),
        bars=bool(bars),
        stops=bool(stops),
        draws=bool(draws),
        best=best,
        top_k=bool(top_k),
        top_p=bool(top_p),
        min_p=bool(min_p),
    )
    tokens, vectors = _run_step(hidden, head, settings, UnitState(*state), forced, kernels)
    # Every result of an operator must be a tensor.
    return tokens, hidden.new_empty(0) if vectors is None else vectors


def _unit_decode_step_fake(
    hidden,
    weight,
    bias,
    embedding,
    ids,
    at,
    columns,
    params,
    state,
    forced,
    cuts,
    softcap,
    pad_id,
    needs,
    kernels,
):
    B = len(hidden)
    tokens = hidden.new_empty(B, len(cuts) - 1, dtype=torch.int64)
    if embedding is None:
        return tokens, hidden.new_empty(0)
    return tokens, embedding.new_empty(B, embedding.shape[1])


register_operator("echox::unit_decode_step", _unit_decode_step, _unit_decode_step_fake, ("state",))
