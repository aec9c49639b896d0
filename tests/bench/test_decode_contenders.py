"""Samplers: each draws tokens of the reference's support, and is timed or has a reason why not."""

import torch

from echox.bench import decode_contenders
from echox.bench.decode_contenders import (
    GREEDY_NAME,
    Sampler,
    SamplingProblem,
    sampler_table,
    sampler_times,
)


def test_samplers_are_timed_and_checked(monkeypatch):
    samplers = decode_contenders.samplers

    def with_a_liar(device):
        return [
            *samplers(device),
            Sampler("liar", lambda problem, hidden, weight: lambda: torch.arange(problem.rows)),
            Sampler("absent", None, "not here"),
        ]

    monkeypatch.setattr(decode_contenders, "samplers", with_a_liar)
    lines = sampler_times(
        SamplingProblem(3, 16, 200, top_k=20),
        torch.device("cpu"),
        torch.float32,
        repeats=1,
        steps=2,
    )
    by_name = {line.sampler: line for line in lines}
    for name in ("echox", "eager top-k, top-p, multinomial", GREEDY_NAME):
        assert (
            by_name[name].eager_us > 0 and by_name[name].graph_us is None and not by_name[name].note
        )
    assert "outside the reference's support" in by_name["liar"].note
    assert by_name["absent"].eager_us is None and by_name["absent"].note == "not here"
    page = sampler_table(lines)
    assert page.count("3x16x200") == len(lines) and "not here" in page
