"""Arguments of the codec-head loss: checks, and the one form in which they are computed on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from echox.core.errors import ConfigError, SignalError
from echox.kernels.codec_head_loss.terms import Impl, Terms


def check_shapes(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, terms: Terms
) -> None:
    """Check that the tensors fit one another and the codebooks.

    Args:
        hidden: [..., D].
        weight: [V, D]; bias: [V] or None.
        targets: integers [...], or [..., K] for K codebooks.

    Raises:
        ConfigError: a shape does not fit, or targets are no integers.
    """
    shape = list(hidden.shape)
    if weight.dim() != 2 or hidden.dim() < 2 or shape[-1] != weight.shape[1]:
        raise ConfigError(
            f"hidden states {shape} and weight {list(weight.shape)} do not fit; "
            "they must be [..., D] and [V, D]"
        )
    if bias is not None and list(bias.shape) != [len(weight)]:
        raise ConfigError(
            f"bias {list(bias.shape)} and weight {list(weight.shape)} do not fit; "
            "they must be [V] and [V, D]"
        )
    if terms.cuts[-1] > len(weight):
        raise ConfigError(
            f"segments end at row {terms.cuts[-1]}, but the weight has {len(weight)} rows"
        )
    _check_targets(targets, shape, terms)


def _check_targets(targets: Tensor, hidden_shape: list[int], terms: Terms) -> None:
    lead, per_codebook = hidden_shape[:-1], [*hidden_shape[:-1], terms.codebooks]
    # One codebook may leave its axis out.
    fits_one = terms.codebooks == 1 and list(targets.shape) == lead
    if list(targets.shape) != per_codebook and not fits_one:
        raise ConfigError(
            f"targets {list(targets.shape)} do not fit hidden states {hidden_shape} and "
            f"{terms.codebooks} codebooks; they must be {per_codebook}"
        )
    if targets.is_floating_point() or targets.dtype is torch.bool:
        raise ConfigError(f"targets are numbers of rows, integers, not {targets.dtype}")


def check_range(targets: Tensor, terms: Terms) -> bool:
    """Check that targets on a CPU are entries of their codebooks.

    A value on a GPU is not read, since that would wait for it; the kernels write NaN instead.

    Args:
        targets: [N, K] integers.

    Returns:
        True where every target is known to be an entry and none is ignored; False on a GPU.

    Raises:
        SignalError: a target on a CPU is out of range and is not `ignore_index`.
    """
    if targets.is_cuda or not targets.numel():
        return False
    # The usual batch is settled by two numbers; only others are compared entry by entry.
    low, high = map(int, torch.aminmax(targets))
    if low >= 0 and high < min(terms.sizes) and not low <= terms.ignore_index <= high:
        return True
    inside = (targets >= 0) & (targets < torch.tensor(terms.sizes))  # [N, K]
    wrong = ~inside & (targets != terms.ignore_index)
    if bool(wrong.any()):
        n, k = wrong.nonzero()[0].tolist()
        raise SignalError(
            f"target {int(targets[n, k])} of row {n} is no entry of codebook {k}, which has "
            f"{terms.sizes[k]}; targets count from 0, and {terms.ignore_index} is ignored"
        )
    return bool((targets != terms.ignore_index).all())


def resolve_impl(impl: Impl, hidden: Tensor) -> Impl:
    """Return the implementation that `impl` means for these hidden states [..., D]."""
    if impl is not Impl.auto:
        return impl
    if not hidden.is_cuda:
        return Impl.torch
    # Without gradients nothing has to be written but one number per row, which is what the fused
    # kernels do; not for float32 inputs, whose exact products are slow in Triton.
    is_16_bit = matmul_dtype(hidden).itemsize == 2
    return Impl.chunked if torch.is_grad_enabled() or not is_16_bit else Impl.fused


def matmul_dtype(hidden: Tensor) -> torch.dtype:
    """Return the dtype in which products of hidden states multiply, as for `torch.nn.Linear`."""
    device_type = hidden.device.type
    # Autocast leaves float64 alone, and so does this.
    if torch.is_autocast_enabled(device_type) and hidden.dtype is not torch.float64:
        return torch.get_autocast_dtype(device_type)
    return hidden.dtype


def select_rows(
    terms: Terms, weight: Tensor, bias: Tensor | None
) -> tuple[Terms, Tensor, Tensor | None]:
    """Cut weight [V, D] and bias [V] to the rows of the codebooks.

    Returns:
        Terms whose cuts count from the first of these rows, and views of weight and bias.
    """
    start, stop = terms.cuts[0], terms.cuts[-1]
    if (start, stop) == (0, len(weight)):
        return terms, weight, bias
    cuts = tuple(cut - start for cut in terms.cuts)
    terms = dataclasses.replace(terms, cuts=cuts)
    return terms, weight[start:stop], None if bias is None else bias[start:stop]


def target_weights(
    hidden: Tensor,
    flat: Tensor,
    targets: Tensor,
    codebook_weight: Tensor | Sequence[float] | None,
    token_weight: Tensor | None,
) -> Tensor | None:
    """Return the weights [N, K] of the targets, or None where all are 1.

    Args:
        hidden: sets the dtype, float32 at least.
        flat: targets as [N, K]; targets: the same as the caller gave them, for messages.
        codebook_weight: [K]; token_weight: N or N * K numbers in any shape.

    Raises:
        ConfigError: weights do not fit the targets, or want gradients.
    """
    N, K = flat.shape
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    weights = None
    if token_weight is not None:
        _check_token_weight(token_weight, N, K, targets)
        weights = token_weight.reshape(N, -1).to(dtype).expand(N, K)
    if codebook_weight is not None:
        by_codebook = torch.as_tensor(codebook_weight, dtype=dtype, device=flat.device)
        if list(by_codebook.shape) != [K]:
            raise ConfigError(
                f"codebook_weight has shape {list(by_codebook.shape)} for {K} codebooks; "
                "give one number for each"
            )
        weights = by_codebook.expand(N, K) if weights is None else weights * by_codebook
    # Kernels index weights as [N, K] without strides.
    return None if weights is None else weights.contiguous()


def _check_token_weight(token_weight: Tensor, N: int, K: int, targets: Tensor) -> None:
    if token_weight.requires_grad:
        raise ConfigError(
            "token_weight gets no gradient; detach it, or weigh losses of reduction=none yourself"
        )
    if token_weight.numel() not in (N, N * K):
        raise ConfigError(
            f"token_weight {list(token_weight.shape)} does not fit targets {list(targets.shape)}"
        )


def nonzero_divisor(count: Tensor | float) -> Tensor | float:
    """Return a count to divide by, with 1 in place of 0: then all is ignored and the sum is 0."""
    # A tensor stays on its device: reading it would wait for a GPU.
    return count.where(count != 0, 1) if isinstance(count, Tensor) else count or 1
