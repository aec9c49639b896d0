"""The bench of a busy machine."""

import json

import pytest

from echox.bench.load import LoadBenchConfig, bench_load
from echox.errors import ConfigError


def test_every_step_is_measured_with_every_number_of_spins(tmp_path, capsys):
    bench_load(LoadBenchConfig(busy=1, spins=[0, 2000], seconds=0.05, rounds=1, output=tmp_path / "load"))
    lines = json.loads((tmp_path / "load.json").read_text())["lines"]
    assert [(line["step"], line["spins"]) for line in lines] == [(step, spins) for step in ("training", "speaking") for spins in ("0", "2000")]
    assert all(line["alone_ms"] > 0 and line["busy_ratio"] > 0 and line["together_share"] > 0 for line in lines)
    assert capsys.readouterr().out == (tmp_path / "load.md").read_text() + "\n"


@pytest.mark.parametrize("wrong", [{"busy": 0}, {"rounds": 0}, {"seconds": 0.0}, {"spins": [-1]}])
def test_what_cannot_be_measured_is_refused(wrong):
    with pytest.raises(ConfigError, match="must be"):
        LoadBenchConfig(**wrong)
