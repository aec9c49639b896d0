"""Unit decoding as operations: a step from hidden states to tokens, merging of units, expansion, codebook look-up."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from echox.errors import ConfigError
from echox.kernels.unit_decode import operators
from echox.kernels.unit_decode.codebooks import Codebooks
from echox.kernels.unit_decode.runs import Expansion, OpenRun, Runs, Spellings
from echox.kernels.unit_decode.state import Impl, UnitHead, UnitParams, UnitState


REGISTER_ROW = 16384  # entries of a codebook that fit into a program's registers


@dataclass(frozen=True, slots=True)
class UnitStep:
    """What one step says."""

    tokens: Tensor  # int64 [B, K] within their codebooks; `pad_id` where a row has ended or failed
    embedding: Tensor | None  # [B, E] what the next step reads; None where the head has no table


def sample_units(hidden: Tensor, head: UnitHead, params: UnitParams, state: UnitState, *, forced: Tensor | None = None, impl: Impl = Impl.auto) -> UnitStep:
    """One step of unit decoding: scores, filters, a token of each codebook, and the state advanced in place.

    Scores are z = x W^T + b, bounded by the head's softcap; then, row by row, repetition and presence penalty, what is barred
    (`allowed`, and stop tokens before `min_length`), top-k, top-p on the mass that top-k left, min-p, and the token with the largest
    score / temperature + Gumbel noise. Tokens of equal score pass a filter together; of equal scores the first is the likeliest.
    Noise depends on the request's seed, its length so far and the row of the head alone, and no row's token depends on other rows.

    A row ends with a stop token, at `max_length`, or where its scores are NaN or infinite or nothing may be said: then it has `failed`,
    says `pad_id`, and the others go on. No value is read back, so a CUDA graph can capture the step; every setting is a device tensor.

    Args:
        hidden: [B, D] states after the final norm.
        params, state: of B rows; `state` is overwritten.
        forced: int64 [B, K], or [B] for one codebook: what a row says whatever its filters are, a stop token included; negative is
            free. An id its codebook does not have fails the row.
    Returns:
        tokens of this step, also those that ended their rows.
    Raises:
        ConfigError: shapes do not fit.
    """
    _check_step(hidden, head, params, state, forced)
    if forced is not None:
        forced = forced.view(len(hidden), -1)
    return UnitStep(*operators.step(hidden, head, params, state, forced, _uses_kernels(impl, hidden, head)))


def _uses_kernels(impl: Impl, tensor: Tensor, head: UnitHead | None = None) -> bool:
    """Whether these inputs go to the Triton kernels.

    Raises:
        ConfigError: impl=triton cannot take them.
    """
    if impl is Impl.torch or (impl is Impl.auto and not tensor.is_cuda):
        return False
    reason = "" if head is None else _beyond_kernels(head)
    if impl is Impl.auto:
        return not reason
    if not (tensor.is_cuda or operators.kernels_here().INTERPRET):
        reason = "needs a GPU (or TRITON_INTERPRET=1, to try kernels)"
    if reason:
        raise ConfigError(f"impl=triton {reason}; use impl=auto or torch")
    return True


def _beyond_kernels(head: UnitHead) -> str:
    if head.weight.dtype is torch.float64:
        return "computes in float32, and the head is float64"
    if max(head.sizes) > REGISTER_ROW:
        return f"keeps a codebook in registers, {REGISTER_ROW} entries at most, and one has {max(head.sizes)}"
    return ""


def _check_step(hidden: Tensor, head: UnitHead, params: UnitParams, state: UnitState, forced: Tensor | None) -> None:
    B, D = hidden.shape if hidden.dim() == 2 else (0, 0)
    if D != head.weight.shape[1]:
        raise ConfigError(f"hidden states {list(hidden.shape)} and the head's weight {list(head.weight.shape)} do not fit; they must be [B, D] and [V, D]")
    if not len(params.top_k) == len(state.seed) == B:
        raise ConfigError(f"hidden states have {B} rows, but params {len(params.top_k)} and state {len(state.seed)}; make both for the same batch")
    if forced is not None and (forced.dtype is not torch.int64 or forced.numel() != B * head.codebooks or len(forced) != B):
        raise ConfigError(f"forced must be int64 [{B}, {head.codebooks}], not {forced.dtype} {list(forced.shape)}")


def dedup_units(units: Tensor, lengths: Tensor, open: OpenRun | None = None, last: Tensor | None = None, *, impl: Impl = Impl.auto) -> Runs:
    """Merge adjacent repeats of each row and count them.

    A stream is merged in chunks: hand each chunk the `open` run of the one before, `OpenRun.none(B)` to the first. The run a chunk ends
    in is held back, since the next may continue it, until a chunk is its row's last; that one may be empty.

    Args:
        units: int64 [B, T], not negative up to `lengths` [B].
        open: what was held back; None is no stream: nothing comes before, and nothing is held back.
        last: bool [B] rows whose stream ends with this chunk; None is no row of a stream.
    Returns:
        runs in tables of T columns, of T + 1 in a stream.
    Raises:
        ConfigError: shapes do not fit.
    """
    _check_table("units", units, lengths)
    B, T = units.shape
    kernels = _uses_kernels(impl, units)
    if open is not None:
        return operators.merged(units, lengths, open, torch.zeros_like(lengths, dtype=torch.bool) if last is None else last, kernels)
    if last is not None:
        raise ConfigError("last names rows of a stream whose chunk is their last, but no `open` run was given; start with OpenRun.none(B)")
    whole = operators.merged(units, lengths, OpenRun.none(B, units.device), torch.ones_like(lengths, dtype=torch.bool), kernels)
    return Runs(whole.units[:, :T], whole.durations[:, :T], whole.lengths, whole.open)


def expand_words(words: Tensor, lengths: Tensor, spellings: Spellings, capacity: int, *, impl: Impl = Impl.auto) -> Expansion:
    """Spell out words of a unit language.

    Args:
        words: int64 [B, W] up to `lengths` [B]; ids without a spelling, such as marks and end tokens, spell nothing.
        capacity: columns F of the result; what does not fit is cut off, and `wanted` tells.
    Raises:
        ConfigError: shapes do not fit.
    """
    _check_table("words", words, lengths)
    _check_capacity(capacity)
    return operators.spelled(words, lengths, spellings, capacity, _uses_kernels(impl, words))


def expand_durations(units: Tensor, durations: Tensor, lengths: Tensor, capacity: int, *, impl: Impl = Impl.auto) -> Expansion:
    """Repeat each unit for its duration: the inverse of `dedup_units`.

    Args:
        units: int64 [B, U] up to `lengths` [B]; durations: int64 [B, U] frames; negative ones count as 0.
        capacity: columns F of the result; what does not fit is cut off, and `wanted` tells.
    Raises:
        ConfigError: shapes do not fit.
    """
    _check_table("units", units, lengths)
    _check_table("durations", durations, lengths)
    _check_capacity(capacity)
    if units.shape != durations.shape:
        raise ConfigError(f"units {list(units.shape)} and durations {list(durations.shape)} must have one shape")
    return operators.lasting(units, durations, lengths, capacity, _uses_kernels(impl, units))


def rvq_dequantize(codes: Tensor, lengths: Tensor, books: Codebooks, *, channels_first: bool = False, impl: Impl = Impl.auto) -> Tensor:
    """Vectors of residual codes: for each frame the sum of its codebooks' entries.

    Args:
        codes: int64 [B, K, T] up to `lengths` [B] frames; K may be less than the codebooks there are, the first ones then. A code that
            its codebook does not have adds nothing.
        channels_first: give [B, C, T], as convolutions take it, and not [B, T, C].
    Returns:
        vectors in the tables' precision, summed in float32 in the order of the codebooks; 0 past the lengths.
    Raises:
        ConfigError: shapes do not fit.
    """
    if codes.dim() != 3 or codes.dtype is not torch.int64 or list(lengths.shape) != [len(codes)]:
        raise ConfigError(f"codes must be int64 [B, K, T] and lengths [B], not {codes.dtype} {list(codes.shape)} and {list(lengths.shape)}")
    if codes.shape[1] > len(books.counts):
        raise ConfigError(f"codes of {codes.shape[1]} codebooks were given, but there are tables for {len(books.counts)}")
    return operators.looked_up(codes, lengths, books, channels_first, _uses_kernels(impl, codes))


def _check_table(name: str, table: Tensor, lengths: Tensor) -> None:
    if table.dim() != 2 or table.dtype is not torch.int64 or not table.shape[1] or list(lengths.shape) != [len(table)]:
        raise ConfigError(f"{name} must be int64 [B, U] with U of at least 1, and lengths [B], not {table.dtype} {list(table.shape)} and {list(lengths.shape)}")


def _check_capacity(capacity: int) -> None:
    if capacity < 1:
        raise ConfigError(f"capacity is the number of columns of the result and must be at least 1, not {capacity}")
