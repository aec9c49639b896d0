"""The bodies of a CPU and of a GPU (its kernels interpreted) compute what the general one computes; the first into its own memory."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaModel

from echox.models.unit_loop import matrices
from echox.models.unit_loop.body import CachedBody
from echox.models.unit_loop.cpu_body import CpuBody
from echox.models.unit_loop.gpu_body import GpuBody
from echox.models.unit_loop.matrices import Matrix, NarrowMatrix, PackedMatrix, matrix_of

SHAPE = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16}
CLOSE = {torch.float32: 1e-5, torch.bfloat16: 0.06}  # of hidden states of about 1; bfloat16's eight bits, through two layers


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    body = LlamaModel(LlamaConfig(vocab_size=4, **SHAPE)).eval()
    for layer in body.layers:  # norms that are not one, as trained ones
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    return body


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize("at", [[5, 5, 5], [5, 2, 0], [3]], ids=["level", "ragged", "one row"])
@pytest.mark.parametrize("kind", [CpuBody, GpuBody])
@torch.inference_mode()
def test_steps_after_prompts_are_those_of_the_general_body(llama, kind, at, dtype):
    bodies = [kind(llama, 4, 12, dtype, lambda projection: projection.weight) for kind in (CachedBody, kind)]
    rows, draw = len(at), torch.Generator().manual_seed(1)
    prompts = torch.randn(rows, 5, 48, generator=draw)
    for body in bodies:
        body.prefill(prompts, 0)
    for step in range(3):
        x, places = torch.randn(rows, 48, generator=draw), torch.tensor(at) + step
        filled = int(places.max()) + 1
        expected, found = (body.step(x.clone(), body.places(places, filled, len(set(at)) == 1)) for body in bodies)
        assert found.dtype is torch.float32
        torch.testing.assert_close(found, expected, atol=CLOSE[dtype], rtol=0)


@torch.inference_mode()
def test_a_step_leaves_its_inputs_and_earlier_results_alone(llama):
    body = CpuBody(llama, 2, 8, torch.float32, lambda projection: projection.weight)
    x = torch.randn(2, 48)
    kept = x.clone()
    first = body.step(x, body.places(torch.tensor([0, 0]), 1, True))
    before = first.clone()
    body.step(x + 1, body.places(torch.tensor([1, 1]), 2, True))
    assert torch.equal(x, kept) and torch.equal(first, before)


@pytest.mark.parametrize("fast", [True, False])
@torch.inference_mode()
def test_matrices_multiply_and_are_copies(monkeypatch, fast):
    monkeypatch.setattr(matrices, "has_bf16_products", lambda: fast)
    for dtype, kind, close in ((torch.float32, Matrix, 1e-5), (torch.bfloat16, PackedMatrix if fast else NarrowMatrix, 0.1)):
        weight, x = torch.randn(24, 40).to(dtype), torch.randn(3, 40).to(dtype)
        truth = x.double() @ weight.double().T
        matrix, total = matrix_of(weight), torch.ones(3, 24)
        weight.zero_()
        out = torch.full((3, 24), float("nan"))
        matrix.into(x, out)
        matrix.onto(x, total)
        assert type(matrix) is kind and matrix.times(x).dtype is dtype
        for found in (matrix.times(x), out, total - 1):
            torch.testing.assert_close(found.double(), truth, atol=close, rtol=0)
