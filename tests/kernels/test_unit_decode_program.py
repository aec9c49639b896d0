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
from unit_decode_cases import Case, requests, walk

from echox.kernels.unit_decode import (
    Codebooks,
    OpenRun,
    Spellings,
    UnitParams,
    UnitState,
    dedup_units,
    expand_durations,
    expand_words,
    rvq_dequantize,
    sample_units,
)


def operators_of(function, *inputs):
    """Names of the project's operators that a compiled program sees, and what it returns."""
    seen = []

    def keep(graph, inputs):
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function" and "echox" in str(node.target))
        return graph.forward

    torch.compiler.reset()
    return seen, torch.compile(function, fullgraph=True, backend=keep)(*inputs)


@pytest.mark.parametrize("channels", [0, 4])
def test_a_compiled_step_is_one_operation_that_changes_its_state(channels):
    case = Case(sizes=(16, 20), channels=channels)
    head, asked = case.head(), requests(3, temperature=1.0, top_k=4)
    hidden = case.hidden(2, 3)
    expected, vectors, end = walk(hidden, head, asked)
    params, state = UnitParams.of(asked, head), UnitState.of(asked, head)

    def step(states, state):
        return sample_units(states, head, params, state)

    seen, first = operators_of(step, hidden[0], state)
    assert seen == ["echox.unit_decode_step"]
    second = torch.compile(step, fullgraph=True, backend="aot_eager")(hidden[1], state)
    assert torch.equal(torch.stack([first.tokens, second.tokens]), expected)
    assert torch.equal(state.length, end.length) and state.length.tolist() == [2, 2, 2]
    assert second.embedding is vectors[1] if vectors[1] is None else torch.equal(second.embedding, vectors[1])


def test_compiled_assembly_is_one_operation_each():
    units, lengths, spellings = torch.tensor([[1, 1, 2], [0, 3, 3]]), torch.tensor([3, 2]), Spellings.of([[5], [6, 7], [], [8]])
    books, codes = Codebooks.of([torch.randn(4, 3)] * 2), torch.randint(0, 4, (2, 2, 3))
    calls = {
        "dedup_units": lambda: dedup_units(units, lengths, OpenRun.none(2)),
        "expand_words": lambda: expand_words(units, lengths, spellings, 5),
        "expand_durations": lambda: expand_durations(units, units, lengths, 5),
        "rvq_dequantize": lambda: rvq_dequantize(codes, lengths, books, channels_first=True),
    }
    for name, call in calls.items():
        seen, found = operators_of(call)
        assert seen == [f"echox.{name}"]
        torch.testing.assert_close(_tensors(found), _tensors(call()), rtol=0, atol=0)
        torch.testing.assert_close(_tensors(torch.compile(call, fullgraph=True, backend="aot_eager")()), _tensors(call()), rtol=0, atol=0)


def _tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    return [tensor for name in value.__dataclass_fields__ for tensor in _tensors(getattr(value, name))]


@pytest.mark.parametrize("capability", SHARED_BYTES)
def test_the_kernels_compile_for_gpus_that_are_not_here(capability):
    """The shipped launches, compiled: they fit, spill no more than is known, and every product is of the one kind that sums in one order."""
    script = Path(__file__).parent / "compile_unit_decode.py"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), environment.get("PYTHONPATH")]))
    done = subprocess.run([sys.executable, script, str(capability)], capture_output=True, text=True, env=environment, timeout=900)
    assert done.returncode == 0, done.stderr
    kernels = json.loads(done.stdout)
    decoding = {"head_kernel", "sample_kernel", "advance_kernel", "dedup_kernel", "expand_kernel", "codebook_kernel"}
    assert {found["kernel"] for found in kernels} == decoding | {"norm_kernel", "turn_kernel", "gate_kernel"}
    check(kernels, capability, lambda name: 255 if name in ("head_kernel", "dedup_kernel") else 128)
    for found in kernels:
        assert found["shared_bytes"] <= SHARED_BYTES[capability], found
        assert found["registers"] * found["threads"] <= 65536, found
        if found["kernel"] == "head_kernel":
            assert not found["warp_groups"] and found["tensor_cores"] == ("fp32" not in found["case"]), found
