"""The codec-head loss inside compiled and exported programs, and its kernels compiled.

They are compiled for GPUs that are not here.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from codec_head_cases import SEMANTICS, error, expected, gradients
from limits import check

from echox.kernels.codec_head_loss import CodecHead, Reduction, codec_head_loss

# What one multiprocessor has for one program: sm_80 (A100) 163 KiB of shared memory, sm_90 (H100,
# H200) 227 KiB; 65,536 registers.
SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}


@pytest.mark.parametrize(
    "reduction", [Reduction.mean, Reduction.none], ids=lambda reduction: reduction.value
)
def test_a_compiled_program_sees_one_operation(reduction):
    case = SEMANTICS["codebooks, unequal"]
    hidden, weight, bias, targets = case.tensors()
    operators = []

    def record(graph, inputs):
        operators.extend(
            str(node.target)
            for node in graph.graph.nodes
            if node.op == "call_function" and "echox" in str(node.target)
        )
        return graph.forward

    def function(hidden, weight, bias, targets):
        return codec_head_loss(
            hidden, weight, targets, bias=bias, segments=[0, 100, 133, 197], reduction=reduction
        ).loss

    loss = torch.compile(function, fullgraph=True, backend=record)(hidden, weight, bias, targets)
    assert operators == [
        "echox.codec_head_loss" if reduction is Reduction.mean else "echox.codec_head_losses"
    ]
    truth, true_gradients = expected(case, reduction=reduction)
    assert error(loss, truth.loss) < 1e-5
    # The second backend differentiates the program too.
    loss = torch.compile(function, fullgraph=True, backend="aot_eager")(
        hidden, weight, bias, targets
    )
    assert all(
        error(gradient, target) < 1e-5
        for gradient, target in zip(gradients(loss, hidden, weight, bias), true_gradients)
    )


def test_a_head_can_be_exported():
    class Scorer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.head = CodecHead(8, [12, 8])

        def forward(self, hidden, targets):
            return self.head(hidden, targets, reduction=Reduction.none).loss

    scorer, hidden, targets = Scorer(), torch.randn(3, 8), torch.randint(0, 8, (3, 2))
    program = torch.export.export(
        scorer,
        (hidden, targets),
        dynamic_shapes=({0: torch.export.Dim("N")}, {0: torch.export.Dim("N")}),
    )
    assert sum("echox" in str(node.target) for node in program.graph.nodes) == 1
    more, others = torch.randn(7, 8), torch.randint(0, 8, (7, 2))
    assert torch.allclose(program.module()(more, others), scorer(more, others))


@pytest.mark.parametrize("capability", SHARED_BYTES)
def test_the_kernels_compile_for_gpus_that_are_not_here(capability):
    """The shipped launches fit and spill no more than is known; 16-bit tiles use tensor cores."""
    script = Path(__file__).parent / "compile_codec_head_loss.py"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(Path(__file__).parents[2]), environment.get("PYTHONPATH")])
    )
    process = subprocess.run(
        [sys.executable, script, str(capability)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=600,
    )
    assert process.returncode == 0, process.stderr
    kernels = json.loads(process.stdout)
    assert {report["kernel"] for report in kernels} == {
        "row_kernel",
        "tile_statistics_kernel",
        "combine_kernel",
        "tile_gradient_kernel",
        "scale_kernel",
    }
    check(kernels, capability, lambda name: 255)
    for report in kernels:
        assert report["shared_bytes"] <= SHARED_BYTES[capability], report
        assert report["registers"] * report["threads"] <= 65536, report
        if report["kernel"].startswith("tile") and "fp32" not in report["case"]:
            assert report["tensor_cores"], report
