"""Unit decoding as one operation: a step from hidden states to tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from echox.core.errors import ConfigError
from echox.kernels.unit_decode import operators
from echox.kernels.unit_decode.head import UnitHead
from echox.kernels.unit_decode.state import Impl, UnitParams, UnitState

REGISTER_ROW = 16384  # entries of a codebook that fit into a program's registers


@dataclass(frozen=True, slots=True)
class UnitStep:
    """Tokens of one step, and the input of the next."""

    tokens: Tensor  # int64 [B, K] within their codebooks; `pad_id` where a row has ended or failed
    embedding: Tensor | None  # [B, E] what the next step reads; None where the head has no table


def sample_units(
    hidden: Tensor,
    head: UnitHead,
    params: UnitParams,
    state: UnitState,
    *,
    forced: Tensor | None = None,
    impl: Impl = Impl.auto,
) -> UnitStep:
    """Take one step of unit decoding: scores, filters, a token of each codebook.

    Scores are z = x W^T + b, bounded by the head's softcap; then, row by row, repetition and
    presence penalty, barred entries (outside `allowed`, and stop tokens before `min_length`),
    top-k, top-p on the mass that top-k left, min-p, and the token with the largest
    score / temperature + Gumbel noise. Tokens of equal score pass a filter together; of equal
    scores the first is the likeliest. Noise depends on the request's seed, its length so far and
    the row of the head alone, and no row's token depends on other rows.

    A row ends with a stop token, at `max_length`, or where its scores are NaN or infinite or no
    token is allowed: then it has `failed` and gets `pad_id`, and the others go on. No value is read
    back, so a CUDA graph can capture the step; every setting is a device tensor.

    Args:
        hidden: [B, D] states after the final norm.
        params, state: of B rows; `state` is advanced in place.
        forced: int64 [B, K], or [B] for one codebook: tokens that rows get whatever their filters
            are, a stop token included; negative is free. An id its codebook does not have fails the
            row.

    Returns:
        Tokens [B, K] of this step, also those that ended their rows.

    Raises:
        ConfigError: shapes do not fit.
    """
    _check_step(hidden, head, params, state, forced)
    if forced is not None:
        forced = forced.view(len(hidden), -1)
    kernels = _uses_kernels(impl, hidden, head)
    return UnitStep(*operators.step(hidden, head, params, state, forced, kernels))


def _uses_kernels(impl: Impl, tensor: Tensor, head: UnitHead | None = None) -> bool:
    """Return whether these inputs go to the Triton kernels.

    Raises:
        ConfigError: impl=triton cannot take them.
    """
    if impl is Impl.torch or (impl is Impl.auto and not tensor.is_cuda):
        return False
    reason = "" if head is None else _kernel_limit(head)
    if impl is Impl.auto:
        return not reason
    if not (tensor.is_cuda or operators.triton_launches().INTERPRET):
        reason = "needs a GPU (or TRITON_INTERPRET=1, to try kernels)"
    if reason:
        raise ConfigError(f"impl=triton {reason}; use impl=auto or torch")
    return True


def _kernel_limit(head: UnitHead) -> str:
    """Return why the kernels cannot take a head, as the end of a sentence; "" if they can."""
    if head.weight.dtype is torch.float64:
        return "computes in float32, and the head is float64"
    if max(head.sizes) > REGISTER_ROW:
        return (
            f"keeps a codebook in registers, {REGISTER_ROW} entries at most, "
            f"and one has {max(head.sizes)}"
        )
    return ""


def _check_step(
    hidden: Tensor, head: UnitHead, params: UnitParams, state: UnitState, forced: Tensor | None
) -> None:
    B, D = hidden.shape if hidden.dim() == 2 else (0, 0)
    if D != head.weight.shape[1]:
        raise ConfigError(
            f"hidden states {list(hidden.shape)} and the head's weight {list(head.weight.shape)} "
            "do not fit; they must be [B, D] and [V, D]"
        )
    if not len(params.top_k) == len(state.seed) == B:
        raise ConfigError(
            f"hidden states have {B} rows, but params {len(params.top_k)} and state "
            f"{len(state.seed)}; make both for the same batch"
        )
    if forced is not None and (
        forced.dtype is not torch.int64 or forced.numel() != B * head.codebooks or len(forced) != B
    ):
        raise ConfigError(
            f"forced must be int64 [{B}, {head.codebooks}], not {forced.dtype} {list(forced.shape)}"
        )
