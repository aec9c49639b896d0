"""`echox-bench decode` measures loops, samplers and an answer's parts, and writes its tables."""

import json

import pytest
import torch

from echox.bench import answer, decode
from echox.bench.decode_contenders import SamplingProblem
from echox.bench.decode_loops import LoopComparison, LoopProblem
from echox_cli.bench import main


@pytest.fixture
def small(monkeypatch, workspace):
    """A language model, a vocoder and samplers of the smallest sizes."""
    monkeypatch.setattr(answer, "BACKBONE", "random")
    monkeypatch.setattr(answer, "VOCODER", {"upsample_initial_channel": 32})
    monkeypatch.setattr(answer, "ANSWER_TOKENS", 4)
    monkeypatch.setattr(decode, "CPU_SAMPLERS", [SamplingProblem(2, 64, 64)])
    return workspace


def test_loops_samplers_and_answers_are_measured(small, monkeypatch, capsys):
    before = torch.get_num_threads()
    words = [
        "1x64",
        "batches=[1,2]",
        "words=30",
        "tokens=6",
        "repeats=1",
        "device=cpu",
        "threads=[1]",
        "output=out/decode",
    ]
    monkeypatch.setattr(decode, "multiplies_bf16_fast", lambda device: True)
    assert main(["decode", *words]) == 0
    results = json.loads((small / "out/decode.json").read_text())
    assert [line["dtype"] for line in results["loops"]] == ["float32"] * 6 + ["bfloat16"] * 6
    results["loops"] = results["loops"][:6]
    lines = {(line["batch"], line["contender"]): line for line in results["loops"]}
    names = {name for _, name in lines}
    assert (
        names == {"echox", "HF generate, dynamic cache", "HF generate, static cache"}
        and len(lines) == 6
    )
    for (batch, _), line in lines.items():
        assert line["note"] == "" and line["threads"] == 1
        assert line["tokens_per_s"] == pytest.approx(1e6 * batch / line["step_us"])
        assert line["cpu_us"] > 0 and line["cpu_of_echox"] > 0
    assert lines[2, "echox"]["of_echox"] == lines[2, "echox"]["cpu_of_echox"] == 1
    assert any(line["sampler"] == "echox" and line["eager_us"] > 0 for line in results["samplers"])
    assert all(
        line[part] > 0
        for line in results["answers"]
        for part in ("text_s", "library_text_s", "units_s", "assembly_s", "vocoder_s", "speech_s")
    )
    assert (small / "out/decode.md").read_text() in capsys.readouterr().out
    assert torch.get_num_threads() == before


def test_what_was_measured_outlives_an_interruption(small, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(decode, "sampler_times", stopped)
    shape = ["shapes=[1x64]", "batches=[1]", "words=20", "tokens=2", "repeats=1"]
    main(["decode", *shape, "dtype=float32", "device=cpu", "output=out/decode"])
    results = json.loads((small / "out/decode.json").read_text())
    assert {line["batch"] for line in results["loops"]} == {1} and not results["samplers"]


def test_a_contender_with_other_words_is_noted(small, monkeypatch):
    calls = LoopComparison.calls
    monkeypatch.setattr(
        LoopComparison,
        "calls",
        lambda self: calls(self) | {"liar": lambda: torch.zeros(1, 5, dtype=torch.int64)},
    )
    assert (
        main(
            [
                "decode",
                "1x64",
                "batches=[1]",
                "words=30",
                "tokens=5",
                "repeats=1",
                "device=cpu",
                "sampler=false",
                "answer=false",
                "output=out/d",
            ]
        )
        == 0
    )
    lines = {
        line["contender"]: line["note"]
        for line in json.loads((small / "out/d.json").read_text())["loops"]
    }
    assert lines["echox"] == "" and "of its words are others" in lines["liar"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["4x100"], "shape '4x100'"),
        (["4"], "shape '4'"),
        (["tokens=0"], "tokens must be"),
        (["batches=[0]"], "batches"),
    ],
)
def test_wrong_settings_are_a_sentence(workspace, capsys, words, sentence):
    assert main(["decode", *words]) == 2
    assert sentence in capsys.readouterr().err


def test_sizes():
    assert LoopProblem.size_of("6x512") == (6, 512)
