"""Heads and requests of unit decoding, and steps by any path beside the float64 reference."""

from dataclasses import dataclass

import torch

from echox.kernels.unit_decode import (
    UnitHead,
    UnitParams,
    UnitRequest,
    UnitState,
    reference,
    sample_units,
)

REQUESTS = {
    "greedy": {},
    "greedy among some": {"allowed": [(3, 9), (14, 15)], "stop_ids": [14]},
    "draw": {"temperature": 1.3},
    "top-k": {"temperature": 2.0, "top_k": 5},
    "top-p": {"temperature": 2.0, "top_p": 0.6},
    "top-p, a sliver": {"temperature": 2.0, "top_p": 1e-6},
    "top-k, top-p": {"temperature": 2.0, "top_k": 7, "top_p": 0.7},
    "min-p": {"temperature": 2.0, "min_p": 0.2},
    "all filters": {
        "temperature": 3.0,
        "top_k": 9,
        "top_p": 0.9,
        "min_p": 0.1,
        "allowed": [(0, 14)],
    },
    "penalties": {"temperature": 1.0, "repetition_penalty": 1.7, "presence_penalty": 0.4},
    "greedy, penalties": {"repetition_penalty": 1.7, "presence_penalty": 0.4},
    "min_length": {"temperature": 2.0, "stop_ids": [1, 2, 5, 11], "min_length": 2, "max_length": 4},
}


@dataclass(frozen=True)
class Case:
    """Shape and options of a head."""

    sizes: tuple[int, ...] = (16,)
    width: int = 24
    dtype: torch.dtype = torch.float32
    bias: bool = False
    softcap: float | None = None
    channels: int = 0  # of the table of embeddings

    @property
    def segments(self):
        return [sum(self.sizes[:k]) for k in range(len(self.sizes) + 1)]

    def head(self, device="cpu"):
        draw = torch.Generator().manual_seed(sum(self.sizes))
        V = sum(self.sizes)
        weight = torch.randn(V, self.width, generator=draw) * 2 * self.width**-0.5
        bias = torch.randn(V, generator=draw).to(device, self.dtype) if self.bias else None
        table = torch.randn(V, self.channels, generator=draw) if self.channels else None
        return UnitHead.of(
            weight.to(device, self.dtype),
            bias=bias,
            segments=self.segments,
            softcap=self.softcap,
            pad_id=1,
            embedding=None if table is None else table.to(device, self.dtype),
        )

    def hidden(self, *lead, seed=0, device="cpu"):
        draw = torch.Generator().manual_seed(seed)
        return torch.randn(*lead, self.width, generator=draw).to(device, self.dtype)


HEADS = {
    "one codebook": Case(),
    "bias, softcap, table": Case(sizes=(33,), bias=True, softcap=3.0, channels=10),
    "equal codebooks": Case(sizes=(16, 16, 16), channels=10),
    "ragged codebooks": Case(sizes=(20, 16, 35), bias=True, channels=10),
    "bf16": Case(sizes=(40,), width=32, dtype=torch.bfloat16, bias=True, channels=10),
}


def requests(B, **settings):
    return [UnitRequest(seed=row, **settings) for row in range(B)]


def run_steps(hidden, head, batch, forced=None, **options):
    """Take S steps over hidden states [S, B, D] for a batch of B requests.

    Returns:
        Tokens [S, B, K] on the CPU, vectors of the next steps, and the state at the end.
    """
    params, state = UnitParams.of(batch, head), UnitState.of(batch, head)
    steps = []
    for index, states in enumerate(hidden):
        step_forced = None if forced is None else forced[index]
        steps.append(sample_units(states, head, params, state, forced=step_forced, **options))
    tokens = torch.stack([step.tokens for step in steps]).cpu()
    return tokens, [step.embedding for step in steps], state


def run_reference(hidden, head, batch, forced=None):
    """Take the same steps by the reference; return tokens [S, B, K] and the state."""
    params, state = UnitParams.of(batch, head), UnitState.of(batch, head)
    tokens = [
        reference.sample(states, head, params, state, None if forced is None else forced[index])
        for index, states in enumerate(hidden)
    ]
    return torch.stack(tokens), state


def assert_is_reference(case, batch, S, impl, device="cpu", forced=None):
    """Assert that tokens, state and vectors of S steps are the reference's, and return the tokens.

    The reference computes from the inputs as they were rounded.
    """
    B = len(batch)
    tokens, vectors, state = run_steps(
        case.hidden(S, B, device=device),
        case.head(device),
        batch,
        None if forced is None else forced.to(device),
        impl=impl,
    )
    head = case.head()
    true_tokens, true_state = run_reference(case.hidden(S, B), head, batch, forced)
    assert torch.equal(tokens, true_tokens)
    for name in ("length", "finished", "failed"):
        assert torch.equal(getattr(state, name).cpu(), getattr(true_state, name)), name
    # Only rows with a penalty must mark what they have generated.
    penalised = torch.tensor(
        [request.repetition_penalty != 1 or request.presence_penalty != 0 for request in batch]
    )
    assert torch.equal(state.seen.cpu()[penalised], true_state.seen[penalised])
    if case.channels:
        true_vectors = head.embedding.double()[true_tokens + head.at[:-1]].sum(2)
        rtol = 2**-8 if case.dtype is torch.bfloat16 else 1e-6  # bfloat16 has 8 bits
        vectors = torch.stack(vectors).cpu().double()
        assert torch.allclose(vectors, true_vectors, rtol=rtol, atol=1e-6)
    return true_tokens
