"""Latencies of a running server: every number of the table, by hand and by detection."""

import json

import pytest
import torch
from tiny_run import noise, write_run
from tiny_server import running

from echox.bench.latency import LatencyBenchConfig, _clips, _latency, _page, bench_latency
from echox.core.errors import ConfigError
from echox.data.audio import save_audio
from echox.inference.load import load_pipeline
from echox.inference.milestones import AUDIBLE

pytest.importorskip("websockets")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    run = write_run(tmp_path_factory.mktemp("latency") / "run")
    return load_pipeline(run / "echo" / "final", device="cpu", max_tokens=6, bf16=False)


def test_each_number_of_clients_is_a_line(pipeline, tmp_path, capsys):
    save_audio(tmp_path / "q.wav", noise(1, 0.5), 16_000)
    with running(pipeline, api_key="k") as (_, port):
        bench_latency(
            LatencyBenchConfig(
                url=f"ws://127.0.0.1:{port}/v1/realtime",
                api_key="k",
                questions=[str(tmp_path / "q.wav")],
                clients=[1, 3],
                rounds=2,
                device="cpu",
                output=tmp_path / "out",
            )
        )
    printed = capsys.readouterr().out
    assert printed.strip() == (tmp_path / "out.md").read_text().strip()
    lines = json.loads((tmp_path / "out.json").read_text())["lines"]
    assert {name: len(found) for name, found in lines.items()} == {"1": 2, "3": 6}
    for each in [each for found in lines.values() for each in found]:
        assert 0 < each["heard_s"] <= each["text_s"] <= each["audio_s"] <= each["done_s"]
        assert each["text_s"] <= each["unit_s"] and min(each["stages_s"].values()) >= 0
        assert each["audible_s"] >= each["audio_s"] and each["detected_s"] is None
    assert "| 1 | 2 |" in printed and "| 3 | 6 |" in printed


def test_what_is_silent_at_the_beginning_is_not_audible():
    samples = torch.cat([torch.zeros(12_000), torch.full((12_000,), 0.5)])
    content = (samples * 32767).to(torch.int16).numpy().tobytes()
    found = _latency({"text": 0.1, "audio": 0.2, "done": 0.6}, content)
    assert found.audible_s == pytest.approx(0.7) and found.speech_s == pytest.approx(1.0)
    assert found.heard_s == 0.1


def test_what_the_server_tells_is_on_the_clock_of_the_client():
    times = {"text": 0.5, "audio": 0.9, "done": 1.0}
    told = {"encoded": 0.1, "first_text": 0.2, "first_segment": 0.3, "first_unit": 0.35}
    found = _latency(times, b"\1" * 48_000, {**told, "first_audio": 0.55})
    assert found.unit_s == pytest.approx(0.65)
    stages = [0.4, 0.1, 0.1, 0.05, 0.2]
    assert list(found.stages_s.values()) == pytest.approx(stages)
    page = _page({1: [found, found]}, {})
    assert "| 1 | 2 | 0.50 / 0.50 / 0.50 | 0.50 / 0.50 / 0.50 | 0.65 / 0.65 / 0.65 |" in page
    assert "| 1 | 0.40 / 0.40 / 0.40 | 0.10 / 0.10 / 0.10 |" in page
    # Other servers of the protocol tell nothing of it.
    page = _page({1: [_latency(times, b"\1" * 48_000)]}, {})
    assert (
        "| 0.50 / 0.50 / 0.50 | - | 0.90 / 0.90 / 0.90 |" in page and "first samples |" not in page
    )


def test_a_question_ends_with_its_last_sound(tmp_path):
    wave = torch.cat([noise(1, 0.5), torch.full((16_000,), AUDIBLE / 10)])
    save_audio(tmp_path / "q.wav", wave, 16_000)
    (clip,) = _clips(LatencyBenchConfig(questions=[str(tmp_path / "q.wav")]))
    assert len(clip) == pytest.approx(12_000, abs=100)


def test_settings_have_bounds():
    with pytest.raises(ConfigError, match="no question was named"):
        LatencyBenchConfig()
    with pytest.raises(ConfigError, match="clients, rounds and limit must be 1 or more"):
        LatencyBenchConfig(questions=["a.wav"], clients=[0])
