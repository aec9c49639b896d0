"""Unit decoding on a GPU: the reference, graph capture, no waiting, latency.

Skipped where there is none, or where Triton is interpreted.

TRITON_INTERPRET=0 python -m pytest tests/kernels/test_unit_decode_cuda.py
"""

import os

import pytest
import torch
from test_unit_decode import chi_square_p
from unit_decode_cases import HEADS, REQUESTS, Case, assert_is_reference, requests, run_steps

from echox.bench.decode_contenders import SamplingProblem, captured, sampler_times
from echox.kernels.unit_decode import (
    Impl,
    UnitParams,
    UnitRequest,
    UnitState,
    reference,
    sample_units,
)
from echox.kernels.unit_decode.launch import head_scores

# The interpreter is chosen as Triton is imported, which other tests of the same run have done.
READY = torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET", "0") != "1"
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not READY, reason="needs a GPU and TRITON_INTERPRET=0"),
]

PATHS = [Impl.torch, Impl.triton]
by_value = {"ids": lambda impl: impl.value}
FILTERED = {"temperature": 1.5, "top_k": 50, "top_p": 0.9}
# Microseconds of head and sampling in a graph at D = 2048, V = 4096 on an H200; other GPUs are
# slower by their memory.
BARS_US = {1: 12.0, 8: 12.0, 64: 16.0}


@pytest.fixture(autouse=True)
def exact_products():
    """float32 products in float32, not TF32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize("impl", PATHS, **by_value)
@pytest.mark.parametrize("name", REQUESTS)
def test_every_setting_is_the_reference(name, impl):
    assert_is_reference(Case(), requests(40, **REQUESTS[name]), 5, impl, "cuda")


@pytest.mark.parametrize("impl", PATHS, **by_value)
@pytest.mark.parametrize("name", HEADS)
def test_every_head_is_the_reference(name, impl):
    batch = [
        UnitRequest(seed=row, **settings)
        for row, settings in enumerate(REQUESTS.values())
        if "allowed" not in settings
    ]
    assert_is_reference(HEADS[name], batch, 3, impl, "cuda")


@pytest.mark.parametrize("V", [500, 1024, 4097, 16384])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_many_sizes(V, dtype):
    """No score may differ.

    A token may, where two sums of score and noise lie closer than the scores' rounding.
    """
    case = Case(sizes=(V,), width=300, dtype=dtype)
    head, hidden = case.head("cuda"), case.hidden(20, device="cuda")
    scores, exact = head_scores(hidden, head), reference.head_scores(hidden, head)
    assert float((scores.double() - exact).abs().max()) < 1e-4
    batch = requests(20, **FILTERED)
    tokens, *_ = run_steps(hidden[None], head, batch, impl=Impl.triton)
    params, state = UnitParams.of(batch, head), UnitState.of(batch, head)
    truth = reference.sample(hidden, head, params, state).cpu()
    assert (tokens[0] == truth).float().mean() >= 0.95


@pytest.mark.parametrize(
    "settings",
    [{"temperature": 1.0}, {"temperature": 1.5, "top_k": 8, "top_p": 0.8}],
    ids=["all", "filtered"],
)
def test_draws_follow_the_probabilities(settings):
    case, N = Case(), 4000
    head, hidden = case.head("cuda"), case.hidden(1, device="cuda")
    batch = requests(N, **settings)
    params, state = UnitParams.of(batch, head), UnitState.of(batch, head)
    rows = hidden.expand(N, -1).contiguous()
    tokens = sample_units(rows, head, params, state, impl=Impl.triton).tokens[:, 0].cpu()
    scores = reference.head_scores(hidden, head)[0]
    masked = (scores / settings["temperature"]).masked_fill(
        ~reference.support(scores, 0, params), float("-inf")
    )
    counts = torch.bincount(tokens, minlength=16).double()
    assert chi_square_p(counts, masked.softmax(0).cpu()) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_request_gets_the_same_tokens_in_any_batch(dtype):
    """Bit for bit, scores included.

    Tiles of 16 hidden states serve small batches, tiles of 64 large ones.
    """
    case = Case(sizes=(4096,), width=2048, dtype=dtype, bias=True)
    head, batch = case.head("cuda"), requests(64, **FILTERED)
    hidden = case.hidden(2, 64, device="cuda")
    together, *_ = run_steps(hidden, head, batch, impl=Impl.triton)
    scores = head_scores(hidden[0], head)
    for start, stop in ((0, 1), (63, 64), (5, 13), (10, 50)):
        assert torch.equal(head_scores(hidden[0, start:stop], head), scores[start:stop])
        some, *_ = run_steps(hidden[:, start:stop], head, batch[start:stop], impl=Impl.triton)
        assert torch.equal(some, together[:, start:stop])


@pytest.mark.parametrize("sizes", [(64,), (64, 50)], ids=["one codebook", "two"])
def test_a_row_of_nan_ends_alone(sizes):
    case = Case(sizes=sizes, channels=8)
    head, batch = case.head("cuda"), requests(4, **FILTERED)
    hidden = case.hidden(2, 4, device="cuda")
    intact_tokens, *_ = run_steps(hidden, head, batch, impl=Impl.triton)
    hidden[1, 1, 3], hidden[1, 2] = float("nan"), 1e38  # the scores of row 2 overflow
    tokens, vectors, state = run_steps(hidden, head, batch, impl=Impl.triton)
    assert state.failed.tolist() == state.finished.tolist() == [False, True, True, False]
    assert torch.equal(tokens[:, [0, 3]], intact_tokens[:, [0, 3]])
    assert (tokens[1, 1:3] == head.pad_id).all()
    assert torch.isfinite(vectors[1]).all()


@pytest.mark.parametrize("impl", PATHS, **by_value)
def test_one_graph_serves_mixed_requests_and_reads_no_value(impl):
    """Captured with some requests, it is replayed with others in the same rows.

    It gives the tokens of uncaptured steps, and draws new noise at every replay.
    """
    case = Case(sizes=(501,), width=64, channels=16)
    head = case.head("cuda")
    settings = [
        FILTERED,
        {"temperature": 1.0},
        {"temperature": 1.0, "top_p": 0.5, "min_p": 0.01},
        {"temperature": 1.2, "repetition_penalty": 1.5, "stop_ids": [3]},
    ]
    before = [UnitRequest(seed=row, **settings[row % 4]) for row in range(8)]
    after = [UnitRequest(seed=100 + row, **settings[(row + 1) % 4]) for row in range(8)]
    params, state = UnitParams.of(before, head), UnitState.of(before, head)
    hidden = case.hidden(8, device="cuda")
    outputs = []

    def step():
        outputs[:] = [sample_units(hidden, head, params, state, forced=None, impl=impl)]

    # The first call compiles the kernels, which may wait.
    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    replay, reason = captured(step)
    assert replay is not None, reason
    captured_step = outputs[0]  # tensors that every replay overwrites
    for row, request in enumerate(after):
        params.put(row, [request], head)
        state.put(row, [request])
    states = case.hidden(5, 8, seed=1, device="cuda")
    tokens = []
    for next_states in states:
        hidden.copy_(next_states)
        replay()
        tokens.append(captured_step.tokens.clone())
    expected, vectors, end = run_steps(states, head, after, impl=impl)
    assert torch.equal(torch.stack(tokens).cpu(), expected)
    assert torch.equal(captured_step.embedding, vectors[-1])
    assert torch.equal(state.finished, end.finished)


@pytest.fixture(scope="module", params=BARS_US)
def latencies(request):
    """Return the rows, and the times of every sampler with top-k and top-p."""
    problem = SamplingProblem(request.param, 2048, 4096)
    return request.param, {
        line.sampler: line
        for line in sampler_times(problem, torch.device("cuda"), torch.bfloat16, repeats=3)
    }


def test_the_eager_chain_takes_five_times_as_long(latencies):
    _, times = latencies
    assert not times["echox"].note
    assert times["eager top-k, top-p, multinomial"].eager_us >= 5 * times["echox"].graph_us


@pytest.mark.xfail(
    reason="an H200 took 15.3 us at 1 row and 16.1 at 8; take this mark away once the bars are met",
    strict=True,
)
def test_the_latency_bars(latencies):
    """Head and sampling in a graph."""
    B, times = latencies
    name = torch.cuda.get_device_name()
    if not any(model in name for model in ("H200", "H100")):
        pytest.skip(f"the bars are an H200's, and this is {name}")
    assert times["echox"].graph_us <= BARS_US[B] * (1.0 if "H200" in name else 1.3)
