"""Output layer of a unit decoder, with its loss."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import overload

import torch
from torch import Tensor, nn

from echox.core.errors import ConfigError
from echox.kernels.codec_head_loss.op import HeadLoss, codec_head_loss
from echox.kernels.codec_head_loss.terms import Impl, Reduction


class CodecHead(nn.Linear):
    """Linear output layer of one vocabulary or K codebooks, with a cross-entropy in chunks.

    The weight [V, D] stacks the codebooks. In all else it is a `torch.nn.Linear`: names, initial
    values, `head(hidden)`. The loss is computed inside `forward` too, so that the hooks by which
    FSDP and ZeRO gather a sharded weight fire around it; the scores are never all in memory.

    Args:
        width: channels D of the hidden states.
        sizes: entries V, or the entries of each of K codebooks.
        softcap: bound of the scores, c * tanh(z / c), in the scores and in the loss.
        loss_rows: (first, stop) rows the loss is over, for instance the units of a text and unit
            vocabulary; None is all. Targets stay row numbers of the full weight.

    Raises:
        ConfigError: `loss_rows` are given for several codebooks.
    """

    def __init__(
        self,
        width: int,
        sizes: int | Sequence[int],
        *,
        bias: bool = False,
        softcap: float | None = None,
        loss_rows: tuple[int, int] | None = None,
    ) -> None:
        sizes = [sizes] if isinstance(sizes, int) else list(sizes)
        super().__init__(width, sum(sizes), bias=bias)
        if loss_rows is not None and len(sizes) > 1:
            raise ConfigError(
                f"loss_rows {list(loss_rows)} are of one vocabulary, "
                f"but there are {len(sizes)} codebooks; leave it out"
            )
        self.segments = [0, *accumulate(sizes)] if loss_rows is None else list(loss_rows)
        self.first_id = 0 if loss_rows is None else loss_rows[0]
        self.softcap = softcap

    @overload
    def forward(self, hidden: Tensor) -> Tensor: ...
    @overload
    def forward(
        self,
        hidden: Tensor,
        targets: Tensor,
        *,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        temperature: float = 1.0,
        codebook_weight: Tensor | Sequence[float] | None = None,
        token_weight: Tensor | None = None,
        reduction: Reduction = Reduction.mean,
        count: Tensor | float | None = None,
        impl: Impl = Impl.auto,
    ) -> HeadLoss: ...
    def forward(
        self,
        hidden: Tensor,
        targets: Tensor | None = None,
        *,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        temperature: float = 1.0,
        codebook_weight: Tensor | Sequence[float] | None = None,
        token_weight: Tensor | None = None,
        reduction: Reduction = Reduction.mean,
        count: Tensor | float | None = None,
        impl: Impl = Impl.auto,
    ) -> Tensor | HeadLoss:
        """Return scores [..., V] of hidden states [..., D], or with targets their loss.

        The options are those of `codec_head_loss`.

        Raises:
            ConfigError, SignalError: as `codec_head_loss`.
        """
        if targets is None:
            scores = super().forward(hidden)
            if self.softcap is None:
                return scores
            return self.softcap * torch.tanh(scores / self.softcap)
        return codec_head_loss(
            hidden,
            self.weight,
            targets,
            bias=self.bias,
            segments=self.segments,
            first_id=self.first_id,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            softcap=self.softcap,
            temperature=temperature,
            codebook_weight=codebook_weight,
            token_weight=token_weight,
            reduction=reduction,
            count=count,
            impl=impl,
        )
