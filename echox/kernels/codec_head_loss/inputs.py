"""What a codec-head loss is given: whether it fits together, and the one form in which it is computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from echox.errors import ConfigError, SignalError
from echox.kernels.codec_head_loss.terms import Impl, Terms


def check_shapes(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, terms: Terms) -> None:
    """Hidden [..., D], weight [V, D], bias [V] and targets [...] or [..., K] must fit one another and the codebooks.

    Raises:
        ConfigError: they do not.
    """
    shape = list(hidden.shape)
    if weight.dim() != 2 or hidden.dim() < 2 or shape[-1] != weight.shape[1]:
        raise ConfigError(f"hidden states {shape} and weight {list(weight.shape)} do not fit; they must be [..., D] and [V, D]")
    if bias is not None and list(bias.shape) != [len(weight)]:
        raise ConfigError(f"bias {list(bias.shape)} and weight {list(weight.shape)} do not fit; they must be [V] and [V, D]")
    if terms.cuts[-1] > len(weight):
        raise ConfigError(f"segments end at row {terms.cuts[-1]}, but the weight has {len(weight)} rows")
    per_codebook = [*shape[:-1], terms.codebooks]
    if list(targets.shape) != per_codebook and not (terms.codebooks == 1 and list(targets.shape) == shape[:-1]):
        raise ConfigError(f"targets {list(targets.shape)} do not fit hidden states {shape} and {terms.codebooks} codebooks; they must be {per_codebook}")
    if targets.is_floating_point() or targets.dtype is torch.bool:
        raise ConfigError(f"targets are numbers of rows, integers, not {targets.dtype}")


def check_range(targets: Tensor, terms: Terms) -> bool:
    """Whether every target is known to be an entry of its codebook. A GPU is not waited for: nothing is known there, its kernels answer NaN.

    Raises:
        SignalError: a target on a CPU is out of range.
    """
    if targets.is_cuda or not targets.numel():
        return False
    low, high = map(int, torch.aminmax(targets))
    if low >= 0 and high < min(terms.sizes) and not low <= terms.ignore_index <= high:
        return True
    inside = (targets >= 0) & (targets < torch.tensor(terms.sizes))
    wrong = ~inside & (targets != terms.ignore_index)
    if bool(wrong.any()):
        row, k = wrong.nonzero()[0].tolist()
        raise SignalError(
            f"target {int(targets[row, k])} of row {row} is no entry of codebook {k}, which has {terms.sizes[k]}; "
            f"targets count from 0, and {terms.ignore_index} is ignored"
        )
    return bool((targets != terms.ignore_index).all())


def chosen(impl: Impl, hidden: Tensor) -> Impl:
    """The implementation that `auto` means for these hidden states."""
    if impl is not Impl.auto:
        return impl
    if not hidden.is_cuda:
        return Impl.torch
    # Without gradients nothing has to be written but one number per row. Exact float32 products are slow in Triton.
    sixteen = multiplying_dtype(hidden).itemsize == 2
    return Impl.chunked if torch.is_grad_enabled() or not sixteen else Impl.fused


def multiplying_dtype(hidden: Tensor) -> torch.dtype:
    """The precision matrix products of these hidden states multiply in, as for `torch.nn.Linear`."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) and hidden.dtype is not torch.float64 else hidden.dtype


def narrowed(terms: Terms, weight: Tensor, bias: Tensor | None) -> tuple[Terms, Tensor, Tensor | None]:
    """The rows that take part, and cuts that count from the first of them."""
    start, stop = terms.cuts[0], terms.cuts[-1]
    if (start, stop) == (0, len(weight)):
        return terms, weight, bias
    cuts = tuple(cut - start for cut in terms.cuts)
    return dataclasses.replace(terms, cuts=cuts), weight[start:stop], None if bias is None else bias[start:stop]


def target_weights(
    hidden: Tensor, flat: Tensor, targets: Tensor, codebook_weight: Tensor | Sequence[float] | None, token_weight: Tensor | None
) -> Tensor | None:
    """[N, K] weights of the targets, or None where all are 1.

    Raises:
        ConfigError: they do not fit the targets, or want gradients.
    """
    N, K = flat.shape
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    weights = None
    if token_weight is not None:
        if token_weight.requires_grad:
            raise ConfigError("token_weight gets no gradient; detach it, or weigh losses of reduction=none yourself")
        if token_weight.numel() not in (N, N * K):
            raise ConfigError(f"token_weight {list(token_weight.shape)} does not fit targets {list(targets.shape)}")
        weights = token_weight.reshape(N, -1).to(dtype).expand(N, K)
    if codebook_weight is not None:
        of_codebook = torch.as_tensor(codebook_weight, dtype=dtype, device=flat.device)
        if list(of_codebook.shape) != [K]:
            raise ConfigError(f"codebook_weight has shape {list(of_codebook.shape)} for {K} codebooks; give one number for each")
        weights = of_codebook.expand(N, K) if weights is None else weights * of_codebook
    return None if weights is None else weights.contiguous()


def nonzero(count: Tensor | float) -> Tensor | float:
    """What a sum is divided by: the count, and 1 where that is 0, for then all is ignored and the sum is 0."""
    return count.where(count != 0, 1) if isinstance(count, Tensor) else count or 1
