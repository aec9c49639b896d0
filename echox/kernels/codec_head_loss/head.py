"""The output layer of a unit decoder, which knows its loss."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

from echox.errors import ConfigError
from echox.kernels.codec_head_loss.op import HeadLoss, codec_head_loss
from echox.kernels.codec_head_loss.terms import Impl, Reduction


class CodecHead(nn.Linear):
    """Scores of one vocabulary or of K codebooks, and their cross-entropy without the scores ever being whole in memory.

    Its weight [V, D] stacks the codebooks, and it is a `torch.nn.Linear` in all else: names, initial values, `head(hidden)`. The loss
    is computed inside `forward` too, so that the hooks by which FSDP and ZeRO gather a sharded weight fire around it.

    Args:
        width: D; sizes: V, or the entries of each of K codebooks.
        softcap: bound of the scores, c * tanh(z / c), in the scores and in the loss.
        loss_rows: (first, stop) rows the loss is over, for instance the units of a text and unit vocabulary; None is all. Targets
            stay row numbers of the whole weight.
    """

    def __init__(
        self, width: int, sizes: int | Sequence[int], *, bias: bool = False, softcap: float | None = None, loss_rows: tuple[int, int] | None = None
    ) -> None:
        sizes = [sizes] if isinstance(sizes, int) else list(sizes)
        super().__init__(width, sum(sizes), bias=bias)
        if loss_rows is not None and len(sizes) > 1:
            raise ConfigError(f"loss_rows {list(loss_rows)} are of one vocabulary, but there are {len(sizes)} codebooks; leave it out")
        self.segments = [0, *accumulate(sizes)] if loss_rows is None else list(loss_rows)
        self.first_id = 0 if loss_rows is None else loss_rows[0]
        self.softcap = softcap

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
        """Hidden [..., D] -> scores [..., V]; with targets their loss instead, see `codec_head_loss`."""
        if targets is None:
            scores = super().forward(hidden)
            return scores if self.softcap is None else self.softcap * torch.tanh(scores / self.softcap)
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
