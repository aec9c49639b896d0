"""A step of unit decoding against its float64 reference, on every path that a CPU can take.

The tests cover tokens, state, filters and draws.
"""

import math

import pytest
import torch
from unit_decode_cases import (
    HEADS,
    REQUESTS,
    Case,
    assert_is_reference,
    requests,
    run_reference,
    run_steps,
)

from echox.core.errors import ConfigError
from echox.kernels.unit_decode import (
    GREEDY,
    Impl,
    UnitHead,
    UnitParams,
    UnitRequest,
    UnitState,
    gumbel_noise,
    mixed_seed,
    reference,
    sample_units,
    sampling,
)

PATHS = [Impl.torch, Impl.triton]
by_value = {"ids": lambda impl: impl.value}


@pytest.mark.parametrize("name", REQUESTS)
def test_every_setting_is_the_reference(name):
    assert_is_reference(Case(), requests(40, **REQUESTS[name]), 5, Impl.torch)


@pytest.mark.parametrize("name", HEADS)
def test_every_head_is_the_reference(name):
    batch = [
        UnitRequest(seed=row, **settings)
        for row, settings in enumerate(REQUESTS.values())
        if "allowed" not in settings
    ]
    assert_is_reference(HEADS[name], batch * 2, 3, Impl.torch)


@pytest.mark.parametrize(
    ("name", "every", "steps"),
    [
        ("one codebook", 1, 3),
        ("bias, softcap, table", 2, 2),
        ("ragged codebooks", 3, 2),
        ("bf16", 3, 2),
    ],
)
def test_the_interpreted_kernels_are_the_reference(name, every, steps):
    """One batch of many settings: rows decide for themselves what they need."""
    codebooks = len(HEADS[name].sizes)
    batch = [
        UnitRequest(seed=row, **settings)
        for row, settings in enumerate(REQUESTS.values())
        if codebooks == 1 or "allowed" not in settings
    ]
    assert_is_reference(HEADS[name], batch[::every], steps, Impl.triton)


@pytest.mark.parametrize("name", ["top-k", "top-p", "top-k, top-p", "min-p", "all filters"])
def test_draws_cover_the_support_of_the_reference(name):
    """Enough draws over few entries meet every one that passes, and none that does not."""
    case, batch = Case(), requests(1, **REQUESTS[name])
    head = case.head()
    params, state = UnitParams.of(batch, head), UnitState.of(batch, head)
    scores = reference.head_scores(case.hidden(1), head)[0]
    allowed = reference.allowed_scores(0, scores, params, state)
    support = reference.support(allowed, 0, params)
    hidden = case.hidden(1, 1).expand(1, 2500, -1)
    tokens, *_ = run_steps(hidden, head, requests(2500, **REQUESTS[name]))
    assert tokens.unique().tolist() == support.nonzero().flatten().tolist()
    assert 2 <= support.sum() < 16


def chi_square_p(counts, probabilities):
    """Return the tail of the chi-square distribution.

    It is approximated by a normal distribution of the cube root (Wilson and Hilferty 1931).
    """
    expected = probabilities * counts.sum()
    live = expected > 0
    freedom = int(live.sum()) - 1
    x = float(((counts - expected)[live] ** 2 / expected[live]).sum())
    z = ((x / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))
    return 0.5 * math.erfc(z / math.sqrt(2))


@pytest.mark.parametrize("by", ["seed", "position"])
@pytest.mark.parametrize(
    "settings",
    [{"temperature": 1.0}, {"temperature": 1.5, "top_k": 8, "top_p": 0.8}],
    ids=["all", "filtered"],
)
def test_draws_follow_the_probabilities(by, settings):
    case, N = Case(), 2500
    head, hidden = case.head(), case.hidden(1)
    batch = requests(N, **settings) if by == "seed" else [UnitRequest(seed=11, **settings)] * N
    params, state = UnitParams.of(batch, head), UnitState.of(batch, head)
    if by == "position":
        state.length.copy_(torch.arange(N))
    tokens = sample_units(hidden.expand(N, -1), head, params, state).tokens[:, 0]
    scores = reference.head_scores(hidden, head)[0]
    masked = (scores / settings["temperature"]).masked_fill(
        ~reference.support(scores, 0, params), float("-inf")
    )
    assert chi_square_p(torch.bincount(tokens, minlength=16).double(), masked.softmax(0)) > 1e-3


def test_noise_is_gumbels_and_independent():
    seeds = torch.tensor([mixed_seed(seed) for seed in range(500)])
    first, second = torch.zeros(500, dtype=torch.int64), torch.ones(500, dtype=torch.int64)
    ids = torch.arange(1000, dtype=torch.int32)
    g = gumbel_noise(seeds, first, ids).double()
    # The distribution function of a variate is uniform.
    counts = torch.histc(torch.exp(-torch.exp(-g)), 100, 0, 1)
    assert chi_square_p(counts.double(), torch.full((100,), 0.01).double()) > 1e-3
    next_g = gumbel_noise(seeds, second, ids).double()
    # Neighbours in position, seed and id: correlations within four standard errors of 0.
    for one, other in ((g, next_g), (g[:-1], g[1:]), (g[:, :-1], g[:, 1:])):
        correlation = torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1]
        assert abs(correlation) < 4 / math.sqrt(one.numel())
    exact = reference.gumbel_noise(seeds, first, ids)
    assert float((g - exact)[exact > 0].abs().max()) < 2e-6  # the tail that loses is coarser


@pytest.mark.parametrize("impl", PATHS, **by_value)
def test_a_request_gets_the_same_tokens_in_any_batch(impl):
    """Bit for bit: alone, or at any place among others that ask for something else."""
    case = Case(sizes=(501,), width=96, bias=True)
    head = case.head()
    settings = [
        {"temperature": 1.5, "top_k": 40, "top_p": 0.9},
        {"temperature": 1.5},
        {},
        {"temperature": 1.5, "repetition_penalty": 1.4, "min_p": 0.01},
    ]
    # The interpreter is slow, so the kernels get fewer rows.
    B, alone_rows = (8, 8) if impl is Impl.torch else (4, 2)
    batch = [UnitRequest(seed=row, **settings[row % 4]) for row in range(B)]
    hidden = case.hidden(3, len(batch))
    together, *_ = run_steps(hidden, head, batch, impl=impl)
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(3))
    shuffled, *_ = run_steps(hidden[:, order], head, [batch[row] for row in order], impl=impl)
    assert torch.equal(shuffled, together[:, order])
    for row in range(alone_rows):
        alone, *_ = run_steps(hidden[:, row : row + 1], head, [batch[row]], impl=impl)
        assert torch.equal(alone, together[:, row : row + 1])


@pytest.mark.parametrize(("D", "V"), [(64, 131), (256, 515), (512, 1027)])
def test_scores_have_the_same_bits_in_any_batch(D, V):
    case = Case(sizes=(V,), width=D)
    head, hidden = case.head(), case.hidden(16)
    together = sampling.head_scores(hidden, head)
    for start, stop in ((0, 1), (15, 16), (3, 5), (2, 5), (4, 12), (1, 16)):
        assert torch.equal(sampling.head_scores(hidden[start:stop], head), together[start:stop])


@pytest.mark.parametrize("impl", PATHS, **by_value)
@pytest.mark.parametrize("sizes", [(16,), (16, 20)], ids=["one codebook", "two"])
def test_a_row_of_nan_ends_alone(sizes, impl):
    case = Case(sizes=sizes, channels=4)
    head, batch = case.head(), requests(4, temperature=1.0, top_p=0.9)
    hidden = case.hidden(2, 4)
    intact_tokens, *_ = run_steps(hidden, head, batch, impl=impl)
    broken = hidden.clone()
    broken[1, 1, 3], broken[1, 2] = float("nan"), 1e38  # the scores of row 2 overflow
    tokens, vectors, state = run_steps(broken, head, batch, impl=impl)
    assert state.failed.tolist() == state.finished.tolist() == [False, True, True, False]
    assert torch.equal(tokens[:, [0, 3]], intact_tokens[:, [0, 3]])
    assert (tokens[1, 1:3] == head.pad_id).all()
    assert torch.isfinite(vectors[1]).all()


@pytest.mark.parametrize("impl", PATHS, **by_value)
def test_forced_tokens(impl):
    """They go before scores and filters, count, and end a row where they are stop tokens.

    An id that does not exist fails the row.
    """
    case = Case(channels=4)
    forced = torch.full((2, 5), -1)
    forced[0], forced[1, 3] = torch.tensor([15, 9, 16, -1, -7]), 2
    batch = requests(5, allowed=[(0, 4)], stop_ids=[9])
    tokens = assert_is_reference(case, batch, 2, impl, forced=forced[..., None])
    assert tokens[0, :3, 0].tolist() == [15, 9, case.head().pad_id]
    assert (tokens[0, 3:] < 4).all() and tokens[1, 3] == 2
    # One codebook may leave its axis out of the forced tokens.
    flat, _, state = run_steps(case.hidden(2, 5), case.head(), batch, forced, impl=impl)
    assert torch.equal(flat, tokens)
    assert state.finished.tolist() == [False, True, True, False, False]
    assert state.failed.tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("impl", PATHS, **by_value)
def test_nothing_allowed_fails_the_row(impl):
    case, batch = Case(), requests(2, allowed=[(2, 3)], stop_ids=[2])
    batch[1] = UnitRequest(allowed=[(2, 3)], stop_ids=[2], min_length=1)
    tokens, _, state = run_steps(case.hidden(1, 2), case.head(), batch, impl=impl)
    assert tokens.flatten().tolist() == [2, case.head().pad_id]
    assert state.failed.tolist() == [False, True]


@pytest.mark.parametrize("impl", PATHS, **by_value)
def test_equal_scores(impl):
    """The first of equals is the likeliest, and filters take equals together."""
    head = UnitHead.of(torch.zeros(16, 8))
    tokens, *_ = run_steps(torch.ones(1, 1, 8), head, [GREEDY], impl=impl)
    assert tokens.item() == 0
    # 0 and -0 are equal scores too.
    weight = torch.tensor([1.0, 2, 2, 2, 0, -0.0])[:, None]
    for settings, support in (
        ({"top_k": 2}, {1, 2, 3}),
        ({"top_p": 0.1}, {1, 2, 3}),
        ({"top_k": 5, "top_p": 0.999}, {0, 1, 2, 3, 4, 5}),
        ({"min_p": 1.0}, {1, 2, 3}),
    ):
        batch = requests(12 if impl is Impl.triton else 400, temperature=1.0, **settings)
        hidden, head = torch.ones(1, len(batch), 1), UnitHead.of(weight)
        tokens, *_ = run_steps(hidden, head, batch, impl=impl)
        assert {1, 2, 3} <= set(tokens.flatten().tolist()) <= support
        true_tokens, _ = run_reference(hidden, head, batch)
        assert torch.equal(tokens, true_tokens)


def test_a_row_is_given_to_a_new_request():
    """A request put into a running batch gets the tokens it would have got alone from the start."""
    case = Case(sizes=(40,))
    head, hidden = case.head(), case.hidden(6, 2)
    new = UnitRequest(seed=9, temperature=1.2, repetition_penalty=1.5, stop_ids=[3])
    params = UnitParams.of(requests(2, temperature=1.0), head)
    state = UnitState.of(requests(2), head)
    tokens = []
    for step, states in enumerate(hidden):
        if step == 2:
            params.put(1, [new], head)
            state.put(1, [new])
        tokens.append(sample_units(states, head, params, state).tokens)
    alone, *_ = run_steps(hidden[2:, 1:], head, [new])
    assert torch.equal(torch.stack(tokens)[2:, 1:], alone)
    free = UnitState.empty(2, head)
    assert free.finished.all()
    assert (sample_units(hidden[0], head, params, free).tokens == head.pad_id).all()
    assert not free.length.any()


def test_a_cpu_skips_steps_that_no_request_needs(monkeypatch):
    case = Case()
    head = case.head()
    for name in ("_barred_entries", "_apply_penalties", "_draw_tokens", "_filter_threshold"):
        monkeypatch.setattr(sampling, name, None)  # a call would fail
    run_steps(case.hidden(2, 3), head, requests(3))
    params = UnitParams.of(requests(2), head)
    params.put(0, [UnitRequest(temperature=1.0)], head)
    assert params.needs.draws
    params.put(0, [GREEDY], head)
    assert not params.needs.draws


def test_autocast_leaves_scores_alone():
    case = Case(sizes=(200,), width=64)
    hidden, head = case.hidden(1, 4), case.head()
    with torch.autocast("cpu", torch.bfloat16):
        tokens, *_ = run_steps(hidden, head, requests(4, temperature=1.0))
    assert torch.equal(tokens, run_steps(hidden, head, requests(4, temperature=1.0))[0])


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: UnitRequest(temperature=-1.0), "temperature"),
        (lambda: UnitRequest(temperature=math.nan), "temperature"),
        (lambda: UnitRequest(top_k=-1), "top_k"),
        (lambda: UnitRequest(top_p=0.0), "top_p"),
        (lambda: UnitRequest(min_p=1.5), "min_p"),
        (lambda: UnitRequest(repetition_penalty=0.0), "repetition_penalty"),
        (lambda: UnitRequest(presence_penalty=math.inf), "presence_penalty"),
        (lambda: UnitRequest(min_length=-1), "min_length"),
        (lambda: UnitRequest(max_length=0), "max_length"),
        (lambda: UnitParams.of([UnitRequest(stop_ids=[16])], Case().head()), "stop_ids"),
        (lambda: UnitParams.of([UnitRequest(allowed=[(3, 17)])], Case().head()), "ranges"),
        (
            lambda: UnitParams.of([UnitRequest(allowed=[(3, 9)])], Case(sizes=(10, 6)).head()),
            "codebook 1, rows 10 .. 15",
        ),
        (lambda: UnitHead.of(torch.zeros(4)), r"\[V, D\]"),
        (lambda: UnitHead.of(torch.zeros(4, 2), bias=torch.zeros(3)), "bias"),
        (lambda: UnitHead.of(torch.zeros(4, 2), segments=[0, 3]), "4 rows"),
        (lambda: UnitHead.of(torch.zeros(4, 2), segments=[0, 1, 4], pad_id=1), "smallest has 1"),
        (lambda: UnitHead.of(torch.zeros(4, 2), embedding=torch.zeros(3, 2)), "embedding"),
        (lambda: run_steps(torch.zeros(1, 2, 5), Case().head(), requests(2)), r"\[B, D\]"),
        (lambda: run_steps(torch.zeros(1, 3, 24), Case().head(), requests(2)), "3 rows"),
        (
            lambda: run_steps(
                torch.zeros(1, 2, 24),
                Case().head(),
                requests(2),
                torch.zeros(1, 2, 2, dtype=torch.int64),
            ),
            "forced",
        ),
        (
            lambda: run_steps(
                torch.zeros(1, 2, 24),
                UnitHead.of(torch.zeros(4, 24, dtype=torch.float64)),
                requests(2),
                impl=Impl.triton,
            ),
            "float64",
        ),
        (
            lambda: run_steps(
                torch.zeros(1, 1, 1),
                UnitHead.of(torch.zeros(16385, 1)),
                requests(1),
                impl=Impl.triton,
            ),
            "16384",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_errors(make, sentence):
    with pytest.raises(ConfigError, match=sentence):
        make()
