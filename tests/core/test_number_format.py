"""The number format of a CPU: measured, kept with a run, and overruled by the user."""

import json
import logging

import pytest
import torch

from echox.codecs.base import CODECS
from echox.codecs.kmeans.codec import KMeansCodecConfig
from echox.core import number_format
from echox.core.device import multiplies_bf16_fast
from echox.core.errors import ConfigError
from echox.core.number_format import (
    FILE,
    VARIABLE,
    NumberFormat,
    adopt,
    adopted,
    kept_in,
    measured,
    recorded,
)
from echox.corpora.units import UnitsConfig, unit_shards

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch):
    """A process in which nobody chose a format yet."""
    monkeypatch.delenv(VARIABLE, raising=False)
    before = adopted()
    adopt(None)
    yield
    adopt(before)


@pytest.fixture
def machine(monkeypatch):
    """Sets how many times as long bfloat16 products take as float32 ones; returns measurements."""

    def set_up(bf16_costs: float) -> list[NumberFormat]:
        def product_s(rows, inputs, outputs, dtype):
            return 0.01 * (bf16_costs if dtype is torch.bfloat16 else 1.0)

        def measure():
            measurements.append(measured())
            return measurements[-1]

        measurements = []
        monkeypatch.setattr(number_format, "_product_s", product_s)
        monkeypatch.setattr(number_format, "measured", measure)
        return measurements

    return set_up


def test_a_measurement_leaves_random_state_and_threads_alone():
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    choice = measured()
    assert choice.float32_gflops > 0 and choice.bfloat16_gflops > 0
    assert choice.bf16 == (choice.bfloat16_gflops > choice.float32_gflops)
    assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads


@pytest.mark.parametrize(("costs", "bf16"), [(0.5, True), (1.6, False)])
def test_the_faster_format_is_chosen_by_one_measurement(machine, costs, bf16):
    measurements = machine(costs)
    assert [multiplies_bf16_fast(CPU) for _ in range(3)] == [bf16] * 3
    assert len(measurements) == 1


def test_a_disturbed_round_decides_nothing(monkeypatch):
    calls = []

    def product_s(rows, inputs, outputs, dtype):
        calls.append(dtype)
        if dtype is torch.float32:
            return 0.01
        is_disturbed = len(calls) <= 2 * len(number_format.SHAPES)  # all of the first round
        return 50.0 if is_disturbed else 0.005

    monkeypatch.setattr(number_format, "_product_s", product_s)
    assert measured().bf16


def test_a_run_continues_in_the_format_it_began_in(machine, tmp_path):
    machine(0.5)
    with kept_in(tmp_path, CPU):
        assert multiplies_bf16_fast(CPU)
    kept = json.loads((tmp_path / FILE).read_text())
    assert kept["bf16"]
    assert kept["bfloat16_gflops"] == pytest.approx(2 * kept["float32_gflops"], rel=0.01)
    adopt(None)
    measurements = machine(2.0)  # another machine, or a busy day
    with kept_in(tmp_path, CPU):
        assert multiplies_bf16_fast(CPU)
    assert not measurements
    assert not multiplies_bf16_fast(CPU)  # other work measures for itself


def test_the_users_choice_goes_first_and_is_not_kept_for_a_run_that_has_begun(
    machine, tmp_path, monkeypatch, caplog
):
    machine(0.5)
    with kept_in(tmp_path, CPU):
        pass
    before = (tmp_path / FILE).read_text()
    monkeypatch.setenv(VARIABLE, "fp32")
    with caplog.at_level(logging.WARNING), kept_in(tmp_path, CPU):
        assert not multiplies_bf16_fast(CPU)
    assert "was begun in products in bfloat16" in caplog.text
    assert (tmp_path / FILE).read_text() == before


def test_the_users_choice_is_kept_by_a_new_run_and_nothing_is_measured(
    machine, tmp_path, monkeypatch
):
    measurements = machine(0.5)
    monkeypatch.setenv(VARIABLE, "fp32")
    with kept_in(tmp_path, CPU):
        assert not multiplies_bf16_fast(CPU)
    monkeypatch.delenv(VARIABLE)
    with kept_in(tmp_path, CPU):
        assert not multiplies_bf16_fast(CPU)
    assert not measurements


def test_faults_are_sentences(tmp_path, monkeypatch):
    (tmp_path / FILE).write_text('{"bf16": tr')
    with pytest.raises(ConfigError, match="is damaged .*delete it"), kept_in(tmp_path, CPU):
        pass
    monkeypatch.setenv(VARIABLE, "bfloat16")
    with pytest.raises(ConfigError, match="ECHOX_CPU_PRECISION is 'bfloat16'; use fp32 or bf16"):
        multiplies_bf16_fast(CPU)


def test_on_a_gpu_nothing_is_measured_or_kept(machine, tmp_path):
    measurements = machine(0.5)
    with kept_in(tmp_path / "run", GPU):
        pass
    assert not measurements and not (tmp_path / "run").exists()


def test_the_format_a_checkpoint_was_trained_in_is_used(machine, monkeypatch):
    machine(0.5)
    about = {
        "bf16": False,
        "chosen_by": "measurement",
        "float32_gflops": 9.0,
        "bfloat16_gflops": 3.0,
        "cpu": "another",
    }
    assert recorded(about) == NumberFormat(**about)
    assert recorded(None).bf16
    monkeypatch.setenv(VARIABLE, "bf16")
    assert recorded(about).bf16


def test_units_of_two_formats_are_not_mixed(tmp_path):
    manifest = tmp_path / "speech.jsonl"
    turns = [{"from": "user", "value": "Hi"}, {"from": "assistant", "value": "Ho"}]
    manifest.write_text(json.dumps({"id": "1", "conversations": turns}) + "\n")
    codec = CODECS.build(KMeansCodecConfig(folder="random"))
    config = UnitsConfig(manifests=[str(manifest)], cache_dir=str(tmp_path / "cache"))
    folders = {unit_shards(manifest, config, codec, bf16).folder for bf16 in (True, False)}
    assert len(folders) == 2
