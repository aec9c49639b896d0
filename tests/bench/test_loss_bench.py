"""`echox-bench loss` measures, checks and writes a table."""

import json

import pytest
import torch

from echox.bench import loss, loss_contenders, measure
from echox.bench.loss import NOT_MEASURED, Problem
from echox.bench.loss_contenders import Contender
from echox.bench.measure import peak_bytes
from echox_cli.bench import main


@pytest.fixture
def quick(monkeypatch, workspace):
    """Without the compiler, which takes a minute, and with a rival that computes something else."""
    real = loss_contenders.contenders

    def few(device):
        liar = Contender(
            "liar", lambda hidden, weight, targets, sizes: (hidden.sum() + weight.sum()) * 1e-3
        )
        broken = Contender("broken", lambda *_: 1 / 0)
        return [
            *(contender for contender in real(device) if "compile" not in contender.name),
            liar,
            broken,
        ]

    monkeypatch.setattr(loss, "contenders", few)
    monkeypatch.setattr(measure, "ROUNDS_S", 0.01)
    return workspace


def test_a_table_of_one_head_and_of_codebooks(quick, capsys):
    assert (
        main(["loss", "32x16x64", "32x16x2*24", "repeats=2", "device=cpu", "output=out/loss"]) == 0
    )
    results = json.loads((quick / "out/loss.json").read_text())
    lines = {(line["shape"], line["contender"]): line for line in results["lines"]}
    assert ("32x16x64", "PyTorch loop over heads") not in lines
    for shape in ("32x16x64", "32x16x2*24"):
        for name in ("echox", "PyTorch eager"):
            line = lines[shape, name]
            assert (
                line["time_ms"] > 0
                and line["peak_mib"] > 0
                and line["gradient_error"] < 1e-5
                and not line["note"]
            )
        assert lines[shape, "liar"]["note"] == "gradients beyond tolerance"
        assert (
            lines[shape, "broken"]["note"].startswith(f"{NOT_MEASURED}: ZeroDivisionError")
            and lines[shape, "broken"]["time_ms"] is None
        )
    assert lines["32x16x2*24", "PyTorch loop over heads"]["gradient_error"] < 1e-5
    assert (
        lines["32x16x64", "PyTorch eager"]["of_eager"]
        == lines["32x16x64", "PyTorch eager"]["cpu_of_eager"]
        == 1
        and lines["32x16x64", "echox"]["of_eager"] > 0
    )
    assert (
        torch.__version__.startswith(results["machine"]["torch"]) and results["machine"]["device"]
    )
    assert (quick / "out/loss.md").read_text() in capsys.readouterr().out


@pytest.mark.parametrize("compiler", [None, "g++"])
def test_torch_compile_takes_part_where_there_is_a_compiler(monkeypatch, compiler):
    monkeypatch.setattr(loss_contenders.shutil, "which", lambda name: compiler)
    by_name = {
        contender.name: contender for contender in loss_contenders.contenders(torch.device("cpu"))
    }
    assert (by_name["torch.compile"].function is None) == (compiler is None)
    assert by_name["torch.compile"].reason == ("" if compiler else "no C++ compiler here")


def test_short_calls_are_repeated(monkeypatch):
    calls = []
    measure.medians({"short": lambda: calls.append(0)}, torch.device("cpu"), 3)
    assert len(calls) == measure.MOST_ROUNDS


def test_what_was_measured_outlives_an_interruption(quick, monkeypatch):
    real = loss._measured

    def measured(shape, *rest):
        if shape == "8x8x32":
            raise KeyboardInterrupt
        return real(shape, *rest)

    monkeypatch.setattr(loss, "_measured", measured)
    main(
        [
            "loss",
            "shapes=[8x8x16,8x8x32]",
            "repeats=1",
            "device=cpu",
            "output=out/loss",
            "only=[echox]",
        ]
    )
    assert [
        line["shape"] for line in json.loads((quick / "out/loss.json").read_text())["lines"]
    ] == ["8x8x16"]


@pytest.mark.parametrize("shape", ["8x8", "8x8xV", "8x0x8", "8x8x2*"])
def test_a_wrong_shape_is_a_sentence(workspace, capsys, shape):
    assert main(["loss", shape]) == 2
    assert f"shape '{shape}'" in capsys.readouterr().err


def test_an_unknown_subject_is_a_sentence(capsys):
    assert main(["los"]) == 2
    assert "no subject 'los'; did you mean 'loss'?" in capsys.readouterr().err


def test_peak_memory_counts_what_is_freed_again():
    def call():
        first = torch.zeros(2**20)  # 4 MiB
        del first
        return torch.zeros(2**19)

    assert peak_bytes(call, torch.device("cpu")) == pytest.approx(4 * 2**20, rel=0.01)


def test_shapes():
    assert (
        Problem.parse("8x4x2*16") == Problem(8, 4, 2, 16)
        and Problem.parse("8x4x16").flops == 6 * 8 * 4 * 16
    )
