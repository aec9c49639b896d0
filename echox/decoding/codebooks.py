"""Decoders of K codebooks in the engine, in the parallel or the delay pattern."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import transformers
from torch import Tensor

from echox.core.errors import ConfigError
from echox.decoding.steps import Request, Rows, Steps
from echox.kernels.codec_head_loss import CodecHead
from echox.kernels.unit_decode import UnitHead, UnitRequest, UnitStep

NEVER = 2**31  # a step that no request reaches


def schedule_end(rows: Rows, is_end: Tensor, max_delay: int) -> None:
    """Let rows whose first codebook has just ended run on until the last codebook has caught up.

    The step is kept in rule "ended", and `max_length` of the row is lowered.

    Args:
        rows: the active rows; rule "ended" is int64 [A], NEVER before the end.
        is_end: bool [A], the first codebook's token of this step is its end.
        max_delay: steps that the slowest codebook lags.
    """
    ended, state, params = rows.rules["ended"], rows.state, rows.params
    # Sampling has counted this step already, so the step itself is length - 1.
    ends = is_end & (ended == NEVER) & ~state.finished
    ended.copy_(torch.where(ends, state.length - 1, ended))
    last = torch.minimum(state.length + max_delay, params.max_length)
    params.max_length.copy_(torch.where(ends, last, params.max_length))
    # With no delay the row ends in this very step, after sampling has tested its length.
    state.finished.logical_or_(state.length >= params.max_length)


class CodebookSteps(Steps):
    """Steps of K codebooks: codebook k emits at step t its code of frame t - delays[k].

    The last entry of every codebook is no code: a codebook emits it before its first frame and
    after its last. Only the first codebook samples it, to end; the others follow by their delays.

    Source: the delay pattern of Copet et al. 2023, arXiv:2306.05284, section 2.2; delays of 0 are
    its parallel pattern.
    """

    def __init__(
        self, body: transformers.LlamaModel, head: CodecHead, vectors: Tensor, delays: Sequence[int]
    ) -> None:
        """Lay the head out for decoding.

        Args:
            body: the transformer of C channels.
            head: the output layer of K codebooks, V entries together.
            vectors: [V, C] input vectors in the head's order; those of a step are added.
            delays: [K] steps, the first 0, the rest at least 0.

        Raises:
            ConfigError: delays do not fit the head.
        """
        unit_head = UnitHead.of(
            head.weight,
            bias=head.bias,
            segments=head.segments,
            softcap=head.softcap,
            embedding=vectors.detach(),
        )
        if len(delays) != unit_head.codebooks or delays[0] != 0 or min(delays) < 0:
            raise ConfigError(
                f"delays {list(delays)} must begin with 0, be at least 0, and be one for each of "
                f"the head's {unit_head.codebooks} codebooks"
            )
        super().__init__(body, unit_head)
        self.delays = torch.tensor(delays, device=head.weight.device)
        self.max_delay = max(delays)
        self.no_code = torch.tensor(unit_head.sizes, device=head.weight.device) - 1  # [K]

    def slot_tensors(self, slots: int, capacity: int, device: torch.device) -> dict[str, Tensor]:
        """Rule "ended": int64 [slots], the step at which the first codebook ended, or NEVER."""
        return {"ended": torch.full((slots,), NEVER, device=device)}

    def forced(self, rows: Rows) -> Tensor:
        """The id of no code where a codebook has no frame at this step, int64 [A, K]; else -1."""
        frame = rows.state.length[:, None] - self.delays  # [A, K]
        outside = (frame < 0) | (frame >= rows.rules["ended"][:, None])
        return torch.where(outside, self.no_code, -1)

    def inputs(self, step: UnitStep, rows: Rows) -> Tensor:
        """The sum of the sampled codes' vectors [A, C]; notes the end of the first codebook."""
        schedule_end(rows, step.tokens[:, 0] == self.no_code[0], self.max_delay)
        return step.embedding

    def request_for(self, inputs: Tensor, sampling: UnitRequest) -> Request:
        """A request for codes.

        Args:
            inputs: prompt [P, C].
            sampling: how codes are drawn; `max_length` counts steps. Its `allowed` and
                `stop_ids` are replaced.
        """
        cuts = self.head.cuts
        allowed = [
            (start, stop if k == 0 else stop - 1)
            for k, (start, stop) in enumerate(zip(cuts, cuts[1:]))
        ]
        # No stop ids: the first codebook's end must not stop the others, see `schedule_end`.
        return Request(inputs, replace(sampling, allowed=allowed, stop_ids=()), {"ended": NEVER})

    def codes(self, tokens: Tensor) -> Tensor:
        """Undo the delays: a completion's tokens [U, K] -> codes of its whole frames [K, F]."""
        ends = (tokens[:, 0] == self.no_code[0].to(tokens.device)).nonzero()
        # Where the limit came first, the last frames lack the codes of the delayed codebooks.
        F = int(ends[0]) if len(ends) else len(tokens) - self.max_delay
        return torch.stack(
            [tokens[delay : delay + max(0, F), k] for k, delay in enumerate(self.delays.tolist())]
        )
