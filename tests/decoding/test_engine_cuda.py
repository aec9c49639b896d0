"""The decode engine on a GPU: graphs equal plain steps, and nothing waits for the device.

Skipped where there is no GPU, or where Triton is interpreted.

TRITON_INTERPRET=0 python -m pytest tests/decoding/test_engine_cuda.py
"""

import os

import pytest
import torch
from plain_loop import plain_targets
from test_engine import LENGTHS, SAMPLING, decoder, texts

from echox.decoding import Impl
from echox.kernels.unit_decode import UnitRequest
from echox.models.unit_generation import generate_targets, unit_decode_engine

READY = torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET", "0") != "1"
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not READY, reason="needs a GPU and TRITON_INTERPRET=0"),
]


@pytest.fixture(autouse=True)
def exact_products():
    """float32 products in float32, not TF32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize("impl", [Impl.plain, Impl.graph], ids=lambda impl: impl.value)
@pytest.mark.parametrize("name", SAMPLING)
@pytest.mark.parametrize("monotonic", [True, False])
def test_targets_equal_the_plain_loop_on_a_cpu(monotonic, name, impl):
    model, sampling = decoder(monotonic), SAMPLING[name]
    expected = plain_targets(model, texts(), LENGTHS, 40, sampling)
    model.cuda()
    for slots in (2, 6):
        engine = unit_decode_engine(model, slots=slots, capacity=64, impl=impl)
        for _ in range(2):
            assert (
                generate_targets(
                    model, texts().cuda(), LENGTHS.cuda(), 40, sampling=sampling, engine=engine
                )
                == expected
            )


@pytest.mark.parametrize("impl", [Impl.plain, Impl.graph], ids=lambda impl: impl.value)
def test_nothing_waits_for_the_gpu(impl):
    model = decoder().cuda()
    engine = unit_decode_engine(model, slots=2, capacity=64, impl=impl)
    expected = generate_targets(model, texts().cuda(), LENGTHS.cuda(), 40, engine=engine)
    with torch.no_grad():
        prefix, conditioning = model.read_text(texts().cuda(), LENGTHS.cuda())
    sampling = UnitRequest(stop_ids=[model.end_id], max_length=40)
    requests = [
        engine.steps.request_for(prefix[row, :length], conditioning[row, : length + 1], sampling)
        for row, length in enumerate(LENGTHS.tolist())
        if length
    ]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        completions = engine.run(requests)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [each.tokens[:, 0].tolist() for each in completions] == [
        row for row in expected if len(row) > 1
    ]


def test_graphs_of_every_size_and_length_agree():
    """Requests that need each bucket of rows and both lengths of the cache."""
    model = decoder().cuda()
    text = torch.randn(5, 60, 16, generator=torch.Generator().manual_seed(4)).cuda()
    lengths = torch.tensor([60, 2, 40, 5, 1]).cuda()
    captured, plain = (
        unit_decode_engine(model, slots=5, capacity=400, impl=impl)
        for impl in (Impl.graph, Impl.plain)
    )
    assert captured._graphs.lengths == [256, 400] and captured._graphs.sizes == [1, 2, 4, 5]
    assert generate_targets(model, text, lengths, 340, engine=captured) == generate_targets(
        model, text, lengths, 340, engine=plain
    )
