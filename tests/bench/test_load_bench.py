"""`echox-bench load` measures steps alone and beside busy processes."""

import json

import pytest

from echox.bench import load
from echox.bench.load import LoadBenchConfig, bench_load
from echox.core.errors import ConfigError, EchoxError


def test_a_step_is_measured_alone_and_beside_others(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(load, "STEPS", ["training"])
    bench_load(
        LoadBenchConfig(busy=1, spins=[2000], seconds=0.05, rounds=2, output=tmp_path / "load")
    )
    (line,) = json.loads((tmp_path / "load.json").read_text())["lines"]
    assert (line["step"], line["spins"]) == ("training", "2000")
    assert all(
        line[name] > 0
        for name in ("alone_ms", "alone_cpu_ms", "busy_ratio", "busy_cpu_ms", "together_share")
    )
    assert capsys.readouterr().out == (tmp_path / "load.md").read_text() + "\n"


def test_a_process_that_fails_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(load, "STEPS", ["no step"])
    with pytest.raises(EchoxError, match="ended with an error"):
        bench_load(LoadBenchConfig(output=tmp_path / "load"))


@pytest.mark.parametrize("wrong", [{"busy": 0}, {"rounds": 0}, {"seconds": 0.0}, {"spins": [-1]}])
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match="must be"):
        LoadBenchConfig(**wrong)
