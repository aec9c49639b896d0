"""The codec-head loss on a GPU: errors, graph capture, no waiting.

Skipped where there is none, or where Triton is interpreted.

TRITON_INTERPRET=0 python -m pytest tests/kernels/test_codec_head_cuda.py
"""

import os

import pytest
import torch
import torch.nn.functional as F
from codec_head_cases import SEMANTICS, Case, assert_equal, compute, error, expected

from echox.kernels.codec_head_loss import Impl, Reduction, codec_head_loss

# The interpreter is chosen as Triton is imported, which other tests of the same run have done.
READY = torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET", "0") != "1"
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not READY, reason="needs a GPU and TRITON_INTERPRET=0"),
]

PATHS = [Impl.torch, Impl.chunked, Impl.fused]
TOLERANCE = {
    torch.float64: (1e-12, 1e-12),
    torch.float32: (1e-5, 1e-5),
    torch.bfloat16: (1e-5, 3e-3),
    torch.float16: (1e-5, 1e-3),
}
SHAPES = [(N, V) for N in (1, 63, 1000) for V in (500, 777, 1024, 4097, 16384, 65536)]


@pytest.fixture(autouse=True)
def exact_products():
    """float32 products in float32, not TF32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize("impl", PATHS, ids=lambda impl: impl.value)
@pytest.mark.parametrize("name", SEMANTICS)
def test_every_option(name, impl):
    assert_equal(SEMANTICS[name], impl, "cuda", TOLERANCE[SEMANTICS[name].dtype])


@pytest.mark.parametrize("impl", PATHS, ids=lambda impl: impl.value)
@pytest.mark.parametrize(("N", "V"), SHAPES)
def test_bf16_at_many_shapes(N, V, impl):
    assert_equal(
        Case(sizes=(V,), lead=(N,), width=256, dtype=torch.bfloat16, ignored=0.0),
        impl,
        "cuda",
        TOLERANCE[torch.bfloat16],
    )


@pytest.mark.parametrize("impl", PATHS, ids=lambda impl: impl.value)
def test_several_outer_chunks(impl, monkeypatch):
    """The weight's gradient is then a sum of products, in float32."""
    from echox.kernels.codec_head_loss import launch, paths

    # 256 rows of 16-bit gradients, and as many of float32 scores.
    monkeypatch.setattr(launch, "GRADIENT_BYTES", 256 * 4096 * 2)
    monkeypatch.setattr(paths, "SCRATCH_BYTES", {"cuda": 256 * 4096 * 4, "cpu": 1})
    assert_equal(
        Case(sizes=(4096,), lead=(1000,), width=256, dtype=torch.bfloat16),
        impl,
        "cuda",
        TOLERANCE[torch.bfloat16],
    )


@pytest.mark.parametrize("impl", [Impl.chunked, Impl.fused], ids=lambda impl: impl.value)
def test_runs_are_equal_bit_for_bit(impl):
    case = Case(sizes=(4096,), lead=(2000,), width=512, dtype=torch.bfloat16)
    (first, first_gradients), (second, second_gradients) = (
        compute(case, impl, "cuda") for _ in range(2)
    )
    assert torch.equal(first.loss, second.loss)
    assert all(torch.equal(a, b) for a, b in zip(first_gradients, second_gradients))


@pytest.mark.parametrize("impl", [Impl.chunked, Impl.fused], ids=lambda impl: impl.value)
def test_a_step_is_captured_and_reads_no_value(impl):
    """A CUDA graph replays forward and backward on new inputs; no call in it waits for the GPU."""
    case = Case(sizes=(1024, 512), lead=(300,), width=128, dtype=torch.bfloat16)
    hidden, weight, _, targets = case.tensors("cuda")
    segments = case.segments()

    def step():
        loss = codec_head_loss(
            hidden, weight, targets, segments=segments, label_smoothing=0.1, impl=impl
        ).loss
        return loss, *torch.autograd.grad(loss, (hidden, weight))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        hidden.copy_(torch.randn_like(hidden))
        targets.copy_(targets.roll(1, 0))
    graph.replay()
    torch.cuda.synchronize()
    for tensor, truth in zip(captured, step()):
        assert torch.equal(tensor, truth)


@pytest.mark.parametrize("impl", PATHS, ids=lambda impl: impl.value)
def test_a_target_out_of_range_gives_nan(impl):
    hidden, weight, _, targets = Case(dtype=torch.bfloat16).tensors("cuda")
    targets[5] = 777
    loss = codec_head_loss(hidden, weight, targets, impl=impl).loss
    loss.backward()
    assert loss.isnan() and hidden.grad[5].isnan().all() and weight.grad.isnan().any()


@pytest.mark.parametrize("impl", [Impl.chunked, Impl.fused], ids=lambda impl: impl.value)
def test_more_than_2_to_the_31_scores(impl):
    """70,000 rows of 32,768 entries. They repeat 100 rows, so that the truth is cheap."""
    N, V, D = 70_000, 32_768, 64
    distinct = torch.randn(100, D, device="cuda")
    weight = torch.randn(V, D, device="cuda").mul_(D**-0.5).bfloat16()
    rows = torch.arange(N, device="cuda") % 100
    hidden = distinct.bfloat16()[rows]
    targets = rows * 17
    result = codec_head_loss(hidden, weight, targets, reduction=Reduction.none, impl=impl)
    truth = F.cross_entropy(
        distinct.bfloat16().double() @ weight.double().T, targets[:100], reduction="none"
    )[rows]
    assert error(result.loss, truth.cpu()) < 1e-5


def test_memory_at_65_thousand_entries():
    """At most three tenths of what full logits take."""
    N, D, V = 8192, 2048, 65_536
    hidden = torch.randn(N, D, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(V, D, device="cuda").mul_(D**-0.5).bfloat16().requires_grad_()
    targets = torch.randint(V, (N,), device="cuda")

    def peak(function):
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        torch.autograd.grad(function(), (hidden, weight))
        return torch.cuda.max_memory_allocated() - before

    chunked = peak(lambda: codec_head_loss(hidden, weight, targets).loss)
    assert chunked <= 0.3 * peak(lambda: F.cross_entropy(F.linear(hidden, weight).float(), targets))


def test_without_gradients_the_fused_path_is_taken():
    case = Case(sizes=(4096,), lead=(500,), width=256, dtype=torch.bfloat16)
    hidden, weight, _, targets = case.tensors("cuda")
    with torch.no_grad():
        result = codec_head_loss(hidden, weight, targets)
    assert error(result.loss, expected(case)[0].loss) < 1e-5
