"""Decoders of K codebooks in the loop: all of a frame in one step, or each codebook some steps behind the one before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import transformers
from torch import Tensor

from echox.errors import ConfigError
from echox.kernels.codec_head_loss import CodecHead
from echox.kernels.unit_decode import UnitHead, UnitRequest, UnitStep
from echox.models.unit_loop.steps import Ask, Rows, Steps

NEVER = 2**31  # a step no request reaches


def end_in_steps(rows: Rows, says_end: Tensor, longest: int) -> None:
    """Where the first codebook has just said its end (bool [A]), note the step in rule "ended" and let the row go on for `longest` steps."""
    ended, state, params = rows.rules["ended"], rows.state, rows.params
    ends = says_end & (ended == NEVER) & ~state.finished
    ended.copy_(torch.where(ends, state.length - 1, ended))
    params.max_length.copy_(torch.where(ends, torch.minimum(state.length + longest, params.max_length), params.max_length))
    state.finished.logical_or_(state.length >= params.max_length)


class CodebookSteps(Steps):
    """Codebook k says at step t its code of frame t - delays[k].

    The last entry of every codebook is no code: a codebook says it until its first frame and after its last. The first codebook alone
    chooses it, to end; the others follow with their delays.
    Source: the delay pattern is of Copet et al. 2023, arXiv:2306.05284, section 2.2; delays of 0 are its parallel pattern.
    """

    def __init__(self, body: transformers.LlamaModel, head: CodecHead, vectors: Tensor, delays: Sequence[int]) -> None:
        """
        Args:
            head: of K codebooks; vectors: [V, C] what the body reads of each entry, in the head's order; those of a step are added.
            delays: [K] steps, the first 0, the rest at least 0.
        Raises:
            ConfigError: delays do not fit the head.
        """
        unit_head = UnitHead.of(head.weight, bias=head.bias, segments=head.segments, softcap=head.softcap, embedding=vectors.detach())
        if len(delays) != unit_head.codebooks or delays[0] != 0 or min(delays) < 0:
            raise ConfigError(
                f"delays {list(delays)} must begin with 0, be at least 0, and be one for each of the head's {unit_head.codebooks} codebooks"
            )
        super().__init__(body, unit_head)
        self.delays = torch.tensor(delays, device=head.weight.device)
        self.longest = max(delays)
        self.none = torch.tensor(unit_head.sizes, device=head.weight.device) - 1  # [K]

    def seats(self, slots: int, capacity: int, device: torch.device) -> dict[str, Tensor]:
        return {"ended": torch.full((slots,), NEVER, device=device)}  # the step at which the first codebook ended

    def forced(self, rows: Rows) -> Tensor:
        frame = rows.state.length[:, None] - self.delays
        return torch.where((frame < 0) | (frame >= rows.rules["ended"][:, None]), self.none, -1)

    def inputs(self, step: UnitStep, rows: Rows) -> Tensor:
        end_in_steps(rows, step.tokens[:, 0] == self.none[0], self.longest)
        return step.embedding

    def ask(self, inputs: Tensor, request: UnitRequest) -> Ask:
        """A prompt [P, C] and how codes are drawn; `request.max_length` counts steps. Its `allowed` and `stop_ids` are set here."""
        cuts = self.head.cuts
        allowed = [(start, stop if k == 0 else stop - 1) for k, (start, stop) in enumerate(zip(cuts, cuts[1:]))]
        return Ask(inputs, replace(request, allowed=allowed, stop_ids=()), {"ended": NEVER})

    def codes(self, tokens: Tensor) -> Tensor:
        """What a request said [U, K] -> its whole frames' codes [K, F]."""
        ends = (tokens[:, 0] == self.none[0].to(tokens.device)).nonzero()
        F = int(ends[0]) if len(ends) else len(tokens) - self.longest
        return torch.stack([tokens[delay : delay + max(0, F), k] for k, delay in enumerate(self.delays.tolist())])
