"""The CPU body and the GPU body (its kernels interpreted) equal the general body."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaModel

from echox.decoding import matrices
from echox.decoding.body import PlainBody
from echox.decoding.cpu_body import CpuBody
from echox.decoding.gpu_body import GpuBody
from echox.decoding.matrices import Matrix, NarrowMatrix, PackedMatrix, matrix_of

SHAPE = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
# Tolerance of hidden states of about 1; bfloat16 has eight bits, and there are two layers.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.06}


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    body = LlamaModel(LlamaConfig(vocab_size=4, **SHAPE)).eval()
    for layer in body.layers:  # norms that are not one, as trained ones
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    return body


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    "positions", [[5, 5, 5], [5, 2, 0], [3]], ids=["uniform", "ragged", "one row"]
)
@pytest.mark.parametrize("body_class", [CpuBody, GpuBody])
@torch.inference_mode()
def test_steps_after_prompts_are_those_of_the_general_body(llama, body_class, positions, dtype):
    bodies = [
        each(llama, 4, 12, dtype, lambda projection: projection.weight)
        for each in (PlainBody, body_class)
    ]
    rows, generator = len(positions), torch.Generator().manual_seed(1)
    prompts = torch.randn(rows, 5, 48, generator=generator)
    for body in bodies:
        body.prefill(prompts, 0)
    for step in range(3):
        x = torch.randn(rows, 48, generator=generator)
        current = torch.tensor(positions) + step
        filled, uniform = int(current.max()) + 1, len(set(positions)) == 1
        expected, states = (
            body.step(x.clone(), body.places(current, filled, uniform)) for body in bodies
        )
        assert states.dtype is torch.float32
        torch.testing.assert_close(states, expected, atol=TOLERANCE[dtype], rtol=0)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("body_class", [CpuBody, PlainBody])
@torch.inference_mode()
def test_prompts_may_be_filled_part_by_part(llama, body_class, dtype):
    whole, parted = (body_class(llama, 3, 12, dtype, lambda p: p.weight) for _ in range(2))
    prompts = torch.randn(2, 9, 48, generator=torch.Generator().manual_seed(1))
    whole.prefill(prompts, 1)
    for begin, end in ((0, 2), (2, 6), (6, 9)):
        parted.prefill(prompts[:, begin:end], 1, begin)
    torch.testing.assert_close(parted.cache, whole.cache, atol=TOLERANCE[dtype], rtol=0)
    assert whole.cache[:, :, 1:, :, :9].abs().sum() > 0


@torch.inference_mode()
def test_a_step_leaves_its_inputs_and_earlier_results_alone(llama):
    body = CpuBody(llama, 2, 8, torch.float32, lambda projection: projection.weight)
    x = torch.randn(2, 48)
    original = x.clone()
    first = body.step(x, body.places(torch.tensor([0, 0]), 1, True))
    copy = first.clone()
    body.step(x + 1, body.places(torch.tensor([1, 1]), 2, True))
    assert torch.equal(x, original) and torch.equal(first, copy)


@pytest.mark.parametrize("fast", [True, False])
@torch.inference_mode()
def test_matrices_multiply_and_are_copies(monkeypatch, fast):
    monkeypatch.setattr(matrices, "has_bf16_products", lambda: fast)
    for dtype, form, tolerance in (
        (torch.float32, Matrix, 1e-5),
        (torch.bfloat16, PackedMatrix if fast else NarrowMatrix, 0.1),
    ):
        weight, x = torch.randn(24, 40).to(dtype), torch.randn(3, 40).to(dtype)
        expected = x.double() @ weight.double().T
        matrix, total = matrix_of(weight), torch.ones(3, 24)
        weight.zero_()
        out = torch.full((3, 24), float("nan"))
        matrix.matmul_into(x, out)
        matrix.add_matmul(x, total)
        assert type(matrix) is form and matrix.matmul(x).dtype is dtype
        for product in (matrix.matmul(x), out, total - 1):
            torch.testing.assert_close(product.double(), expected, atol=tolerance, rtol=0)
