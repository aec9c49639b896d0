"""Unit decoding inside compiled programs, and its kernels compiled for GPUs that are not here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from limits import check
from test_codec_head_program import SHARED_BYTES
from unit_decode_cases import Case, requests, run_steps

from echox.kernels.unit_decode import (
    UnitParams,
    UnitState,
    sample_units,
)


def operators_of(function, *inputs):
    """Return the names of the project's operators in a compiled program, and its result."""
    names = []

    def record(graph, inputs):
        names.extend(
            str(node.target)
            for node in graph.graph.nodes
            if node.op == "call_function" and "echox" in str(node.target)
        )
        return graph.forward

    torch.compiler.reset()
    return names, torch.compile(function, fullgraph=True, backend=record)(*inputs)


@pytest.mark.parametrize("channels", [0, 4])
def test_a_compiled_step_is_one_operation_that_changes_its_state(channels):
    case = Case(sizes=(16, 20), channels=channels)
    head, batch = case.head(), requests(3, temperature=1.0, top_k=4)
    hidden = case.hidden(2, 3)
    expected, vectors, end = run_steps(hidden, head, batch)
    params, state = UnitParams.of(batch, head), UnitState.of(batch, head)

    def step(states, state):
        return sample_units(states, head, params, state)

    names, first = operators_of(step, hidden[0], state)
    assert names == ["echox.unit_decode_step"]
    second = torch.compile(step, fullgraph=True, backend="aot_eager")(hidden[1], state)
    assert torch.equal(torch.stack([first.tokens, second.tokens]), expected)
    assert torch.equal(state.length, end.length) and state.length.tolist() == [2, 2, 2]
    if vectors[1] is None:
        assert second.embedding is None
    else:
        assert torch.equal(second.embedding, vectors[1])


@pytest.mark.parametrize("capability", SHARED_BYTES)
def test_the_kernels_compile_for_gpus_that_are_not_here(capability):
    """The shipped launches fit and spill no more than is known.

    Every product is of the one kind of instruction that sums in one order.
    """
    script = Path(__file__).parent / "compile_unit_decode.py"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(Path(__file__).parents[2]), environment.get("PYTHONPATH")])
    )
    process = subprocess.run(
        [sys.executable, script, str(capability)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=900,
    )
    assert process.returncode == 0, process.stderr
    kernels = json.loads(process.stdout)
    decoding = {"head_kernel", "sample_kernel", "advance_kernel"}
    assert {report["kernel"] for report in kernels} == decoding | {
        "norm_kernel",
        "turn_kernel",
        "gate_kernel",
    }
    check(kernels, capability, lambda name: 255 if name == "head_kernel" else 128)
    for report in kernels:
        assert report["shared_bytes"] <= SHARED_BYTES[capability], report
        assert report["registers"] * report["threads"] <= 65536, report
        if report["kernel"] == "head_kernel":
            # Warp groups sum in another order than the instruction that small batches take.
            assert not report["warp_groups"], report
            assert report["tensor_cores"] == ("fp32" not in report["case"]), report
