"""The codec-head loss inside compiled and exported programs, and its kernels compiled for GPUs that are not here."""

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

# What one multiprocessor has for one program: sm_80 (A100) 163 KiB of shared memory, sm_90 (H100, H200) 227 KiB; 65,536 registers.
SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}


@pytest.mark.parametrize("reduction", [Reduction.mean, Reduction.none], ids=lambda reduction: reduction.value)
def test_a_compiled_program_sees_one_operation(reduction):
    case = SEMANTICS["codebooks, unequal"]
    hidden, weight, bias, targets = case.made()
    seen = []

    def keep(graph, inputs):
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function" and "echox" in str(node.target))
        return graph.forward

    def function(hidden, weight, bias, targets):
        return codec_head_loss(hidden, weight, targets, bias=bias, segments=[0, 100, 133, 197], reduction=reduction).loss

    loss = torch.compile(function, fullgraph=True, backend=keep)(hidden, weight, bias, targets)
    assert seen == ["echox.codec_head_loss" if reduction is Reduction.mean else "echox.codec_head_losses"]
    truth, true = expected(case, reduction=reduction)
    assert error(loss, truth.loss) < 1e-5
    loss = torch.compile(function, fullgraph=True, backend="aot_eager")(hidden, weight, bias, targets)
    assert all(error(gradient, target) < 1e-5 for gradient, target in zip(gradients(loss, hidden, weight, bias), true))


def test_a_head_can_be_exported():
    class Scorer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.head = CodecHead(8, [12, 8])

        def forward(self, hidden, targets):
            return self.head(hidden, targets, reduction=Reduction.none).loss

    scorer, hidden, targets = Scorer(), torch.randn(3, 8), torch.randint(0, 8, (3, 2))
    program = torch.export.export(scorer, (hidden, targets), dynamic_shapes=({0: torch.export.Dim("N")}, {0: torch.export.Dim("N")}))
    assert sum("echox" in str(node.target) for node in program.graph.nodes) == 1
    more, others = torch.randn(7, 8), torch.randint(0, 8, (7, 2))
    assert torch.allclose(program.module()(more, others), scorer(more, others))


@pytest.mark.parametrize("capability", SHARED_BYTES)
def test_the_kernels_compile_for_gpus_that_are_not_here(capability):
    """The shipped launches, compiled: they fit, they spill no more than is known, and 16-bit tiles use the tensor cores."""
    script = Path(__file__).parent / "compile_codec_head_loss.py"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), environment.get("PYTHONPATH")]))
    done = subprocess.run([sys.executable, script, str(capability)], capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr
    kernels = json.loads(done.stdout)
    assert {found["kernel"] for found in kernels} == {"row_kernel", "tile_statistics_kernel", "combine_kernel", "tile_gradient_kernel", "scale_kernel"}
    check(kernels, capability, lambda name: 255)
    for found in kernels:
        assert found["shared_bytes"] <= SHARED_BYTES[capability], found
        assert found["registers"] * found["threads"] <= 65536, found
        if found["kernel"].startswith("tile") and "fp32" not in found["case"]:
            assert found["tensor_cores"], found
