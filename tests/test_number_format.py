"""The number format of a CPU: measured, kept with a run, and the same for all that ask."""

import json
import logging

import pytest
import torch

from echox import number_format
from echox.corpora.units import UnitsConfig, unit_shards
from echox.device import multiplies_bf16_fast
from echox.errors import ConfigError
from echox.number_format import FILE, VARIABLE, NumberFormat, adopt, adopted, kept_in, measured, recorded

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch):
    """As in a new process of a user who says nothing."""
    monkeypatch.delenv(VARIABLE, raising=False)
    before = adopted()
    adopt(None)
    yield
    adopt(before)


@pytest.fixture
def machine(monkeypatch):
    """A machine whose bfloat16 products take so many times as long as its float32 ones; says how often it was measured."""

    def set_up(bf16_costs: float) -> list[str]:
        monkeypatch.setattr(number_format, "_product_s", lambda *shape: 0.01 * (bf16_costs if shape[-1] is torch.bfloat16 else 1.0))
        asked, measure = [], measured
        monkeypatch.setattr(number_format, "measured", lambda: asked.append("asked") or measure())
        return asked

    return set_up


def test_measuring_finds_rates_and_leaves_no_trace():
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    found = measured()
    assert found.float32_gflops > 0 and found.bfloat16_gflops > 0
    assert found.bf16 == (found.bfloat16_gflops > found.float32_gflops)
    assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads


@pytest.mark.parametrize(("costs", "bf16"), [(0.5, True), (1.6, False)])
def test_the_faster_format_is_taken_once_whatever_flags_say(machine, costs, bf16):
    asked = machine(costs)
    assert [multiplies_bf16_fast(CPU) for _ in range(3)] == [bf16] * 3
    assert len(asked) == 1


def test_a_disturbed_round_decides_nothing(monkeypatch):
    calls = []

    def product_s(rows, inputs, outputs, dtype):
        calls.append(dtype)
        disturbed = len(calls) <= 2 * len(number_format.SHAPES)  # all of the first round
        return 50.0 if disturbed and dtype is torch.bfloat16 else 0.01 if dtype is torch.float32 else 0.005

    monkeypatch.setattr(number_format, "_product_s", product_s)
    assert measured().bf16


def test_a_run_goes_on_in_the_format_it_began_in(machine, tmp_path):
    machine(0.5)
    with kept_in(tmp_path, CPU):
        assert multiplies_bf16_fast(CPU)
    kept = json.loads((tmp_path / FILE).read_text())
    assert kept["bf16"] and kept["bfloat16_gflops"] == pytest.approx(2 * kept["float32_gflops"], rel=0.01)
    adopt(None)
    asked = machine(2.0)  # another machine, or a busy day
    with kept_in(tmp_path, CPU):
        assert multiplies_bf16_fast(CPU)
    assert not asked
    assert not multiplies_bf16_fast(CPU)  # other work measures for itself


def test_a_users_word_goes_first_and_is_not_kept_for_a_run_that_has_begun(machine, tmp_path, monkeypatch, caplog):
    machine(0.5)
    with kept_in(tmp_path, CPU):
        pass
    before = (tmp_path / FILE).read_text()
    monkeypatch.setenv(VARIABLE, "fp32")
    with caplog.at_level(logging.WARNING), kept_in(tmp_path, CPU):
        assert not multiplies_bf16_fast(CPU)
    assert "was begun in products in bfloat16" in caplog.text
    assert (tmp_path / FILE).read_text() == before


def test_a_users_word_is_kept_by_a_new_run_and_nothing_is_measured(machine, tmp_path, monkeypatch):
    asked = machine(0.5)
    monkeypatch.setenv(VARIABLE, "fp32")
    with kept_in(tmp_path, CPU):
        assert not multiplies_bf16_fast(CPU)
    monkeypatch.delenv(VARIABLE)
    with kept_in(tmp_path, CPU):
        assert not multiplies_bf16_fast(CPU)
    assert not asked


def test_faults_are_sentences(tmp_path, monkeypatch):
    (tmp_path / FILE).write_text('{"bf16": tr')
    with pytest.raises(ConfigError, match="is damaged .*delete it"), kept_in(tmp_path, CPU):
        pass
    monkeypatch.setenv(VARIABLE, "bfloat16")
    with pytest.raises(ConfigError, match="ECHOX_CPU_PRECISION is 'bfloat16'; use fp32 or bf16"):
        multiplies_bf16_fast(CPU)


def test_on_a_gpu_nothing_is_measured_or_kept(machine, tmp_path):
    asked = machine(0.5)
    with kept_in(tmp_path / "run", GPU):
        pass
    assert not asked and not (tmp_path / "run").exists()


def test_a_checkpoint_says_what_it_was_trained_in(machine, monkeypatch):
    machine(0.5)
    about = {"bf16": False, "chosen_by": "measurement", "float32_gflops": 9.0, "bfloat16_gflops": 3.0, "cpu": "another"}
    assert recorded(about) == NumberFormat(**about)
    assert recorded(None).bf16
    monkeypatch.setenv(VARIABLE, "bf16")
    assert recorded(about).bf16


def test_units_of_two_formats_are_not_mixed(tmp_path):
    manifest = tmp_path / "speech.jsonl"
    manifest.write_text('{"id": "1", "conversations": [{"from": "user", "value": "Hi"}, {"from": "assistant", "value": "Ho"}]}\n')
    config = UnitsConfig(manifests=[str(manifest)], cache_dir=str(tmp_path / "cache"))
    folders = {unit_shards(manifest, config, "codec", bf16).folder for bf16 in (True, False)}
    assert len(folders) == 2
