"""The decode loop on a GPU: captured as uncaptured, and nothing waits. Skipped where there is none, or where Triton is interpreted.

TRITON_INTERPRET=0 python -m pytest tests/models/unit_loop/test_unit_loop_cuda.py
"""

import os

import pytest
import torch
from plain_loop import plain_targets
from test_unit_loop import LENGTHS, MANNERS, decoder, texts

from echox.kernels.unit_decode import UnitRequest
from echox.models.unit_loop import Impl
from echox.models.unit_loop.text_speech import decoder_loop, speak_targets

READY = torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET", "0") != "1"
pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not READY, reason="needs a GPU and TRITON_INTERPRET=0")]


@pytest.fixture(autouse=True)
def exact_products():
    """float32 products in float32, not TF32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize("impl", [Impl.plain, Impl.graph], ids=lambda impl: impl.value)
@pytest.mark.parametrize("manner", MANNERS)
@pytest.mark.parametrize("monotonic", [True, False])
def test_it_says_what_the_plain_loop_says_on_a_cpu(monotonic, manner, impl):
    model, sampling = decoder(monotonic), MANNERS[manner]
    expected = plain_targets(model, texts(), LENGTHS, 40, sampling)
    model.cuda()
    for slots in (2, 6):
        loop = decoder_loop(model, slots=slots, capacity=64, impl=impl)
        for _ in range(2):
            assert speak_targets(model, texts().cuda(), LENGTHS.cuda(), 40, sampling=sampling, loop=loop) == expected


@pytest.mark.parametrize("impl", [Impl.plain, Impl.graph], ids=lambda impl: impl.value)
def test_nothing_waits_for_the_gpu(impl):
    model = decoder().cuda()
    loop = decoder_loop(model, slots=2, capacity=64, impl=impl)
    expected = speak_targets(model, texts().cuda(), LENGTHS.cuda(), 40, loop=loop)
    with torch.no_grad():
        prefix, spoken = model.read_text(texts().cuda(), LENGTHS.cuda())
    request = UnitRequest(stop_ids=[model.end_id], max_length=40)
    asks = [
        loop.steps.ask(prefix[row, :length], spoken[row, : length + 1], request) for row, length in enumerate(LENGTHS.tolist()) if length
    ]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = loop.run(asks)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [spoken.tokens[:, 0].tolist() for spoken in found] == [row for row in expected if len(row) > 1]


def test_graphs_of_every_size_and_length_agree():
    """Requests that need each bucket of rows and both lengths of the cache."""
    model = decoder().cuda()
    text = torch.randn(5, 60, 16, generator=torch.Generator().manual_seed(4)).cuda()
    lengths = torch.tensor([60, 2, 40, 5, 1]).cuda()
    captured, plain = (decoder_loop(model, slots=5, capacity=400, impl=impl) for impl in (Impl.graph, Impl.plain))
    assert captured._graphs.lengths == [256, 400] and captured._graphs.sizes == [1, 2, 4, 5]
    assert speak_targets(model, text, lengths, 340, loop=captured) == speak_targets(model, text, lengths, 340, loop=plain)
