"""The codec-head loss against its float64 reference, on every path that a CPU can take.

The tests cover output, every gradient and every option.
"""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from codec_head_cases import SEMANTICS, Case, assert_equal, compute, error, expected, gradients

from echox.core.errors import ConfigError, SignalError
from echox.kernels.codec_head_loss import (
    CodecHead,
    Impl,
    Reduction,
    codec_head_loss,
    eager,
    passes,
    paths,
)
from echox.kernels.codec_head_loss.paths import Problem
from echox.kernels.codec_head_loss.terms import Terms

PATHS = [Impl.torch, Impl.chunked, Impl.fused]


@pytest.fixture(params=[False, True], ids=["one chunk", "many chunks"])
def chunks(request, monkeypatch):
    """Once with the default budget, once with chunks far smaller than the batch."""
    if request.param:
        _use_small_chunks(monkeypatch)


def _use_small_chunks(monkeypatch):
    monkeypatch.setattr(paths, "MIN_ROWS", 8)
    monkeypatch.setattr(paths, "SCRATCH_BYTES", {"cpu": 1, "cuda": 1})


@pytest.mark.parametrize("name", SEMANTICS)
def test_the_torch_path_is_the_reference(name, chunks):
    assert_equal(SEMANTICS[name], Impl.torch)


@pytest.mark.parametrize("name", SEMANTICS)
@pytest.mark.parametrize("impl", [Impl.chunked, Impl.fused], ids=lambda impl: impl.value)
def test_the_interpreted_kernels_are_the_reference(name, impl):
    assert_equal(SEMANTICS[name], impl)


@pytest.mark.parametrize("impl", [Impl.chunked, Impl.fused], ids=lambda impl: impl.value)
def test_several_outer_and_inner_chunks(impl, monkeypatch):
    from echox.kernels.codec_head_loss import launch

    monkeypatch.setattr(launch, "GRADIENT_BYTES", 1)  # 64 rows
    monkeypatch.setattr(launch, "rows_that_fit", lambda *_: 64)
    assert_equal(Case(lead=(150,), bias=True), impl)


@pytest.mark.parametrize(
    "impl", [Impl.torch, Impl.chunked, Impl.fused], ids=lambda impl: impl.value
)
def test_a_vocabulary_too_large_for_registers(impl):
    assert_equal(
        Case(sizes=(16400,), lead=(6,), width=16, ignored=0.0, options={"label_smoothing": 0.1}),
        impl,
    )


def test_the_reference_is_pytorchs_cross_entropy():
    hidden, weight, bias, targets = Case(bias=True).tensors()
    truth = F.cross_entropy(F.linear(hidden, weight, bias), targets, label_smoothing=0.1)
    options = {"bias": bias, "label_smoothing": 0.1}
    for impl in (Impl.reference, Impl.torch):
        loss = codec_head_loss(hidden, weight, targets, impl=impl, **options).loss
        assert torch.allclose(loss, truth, rtol=1e-5)


def test_gradcheck_in_double_precision():
    case = Case(sizes=(5, 7), lead=(4,), width=3, dtype=torch.float64, bias=True)
    hidden, weight, bias, targets = case.tensors()

    def function(hidden, weight, bias, reduction):
        options = {"label_smoothing": 0.1, "z_loss": 0.1, "softcap": 2.0, "temperature": 0.7}
        return codec_head_loss(
            hidden, weight, targets, bias=bias, segments=[0, 5, 12], reduction=reduction, **options
        ).loss

    for reduction in Reduction:
        assert torch.autograd.gradcheck(
            lambda *leaves, reduction=reduction: function(*leaves, reduction),
            (hidden, weight, bias),
        )


@pytest.mark.parametrize("impl", [Impl.reference, *PATHS], ids=lambda impl: impl.value)
def test_a_unit_range_of_a_larger_vocabulary(impl):
    """The loss over rows 40 .. 99 of 130 touches no other row; targets are row numbers."""
    hidden, weight, _, _ = Case(sizes=(130,), lead=(20,)).tensors()
    targets = torch.randint(40, 100, (20,), generator=torch.Generator().manual_seed(0))
    targets[3] = -100
    result = codec_head_loss(hidden, weight, targets, segments=[40, 100], first_id=40, impl=impl)
    result.loss.backward()
    true_hidden, true_weight = (
        leaf.detach().double().requires_grad_() for leaf in (hidden, weight)
    )
    scores = true_hidden @ true_weight[40:100].T
    truth = F.cross_entropy(scores, (targets - 40).where(targets >= 0, -100))
    truth.backward()
    assert error(result.loss, truth) < 1e-6
    assert error(hidden.grad, true_hidden.grad) < 1e-5
    assert error(weight.grad, true_weight.grad) < 1e-5
    assert not weight.grad[:40].any() and not weight.grad[100:].any()


def test_the_head_has_the_loss_of_its_unit_range():
    head = CodecHead(8, 30, loss_rows=(10, 25))
    hidden, targets = torch.randn(4, 8), torch.tensor([10, 24, 12, -100])
    assert head(hidden).shape == (4, 30)
    unit_targets = (targets - 10).clamp(min=-100)  # the ignored one stays ignored
    truth = F.cross_entropy(F.linear(hidden, head.weight[10:25]), unit_targets, ignore_index=-100)
    assert torch.allclose(head(hidden, targets).loss, truth)
    with pytest.raises(SignalError, match="row 0"):
        head(hidden, torch.tensor([9, 12, 12, 12]))


@pytest.mark.parametrize("impl", [Impl.reference, *PATHS], ids=lambda impl: impl.value)
@pytest.mark.parametrize("reduction", Reduction)
def test_all_rows_ignored_is_exactly_zero(impl, reduction):
    result, leaf_gradients = compute(
        Case(lead=(10,), ignored=1.1, bias=True, options={"reduction": reduction, "z_loss": 0.1}),
        impl,
    )
    assert not result.loss.any() and all(not gradient.any() for gradient in leaf_gradients)
    assert not result.losses.any() and not result.correct.any()


@pytest.mark.parametrize("impl", PATHS, ids=lambda impl: impl.value)
@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_the_gradient_of_a_frozen_leaf_is_skipped(impl, frozen, monkeypatch):
    _use_small_chunks(monkeypatch)
    case = Case(bias=True)
    leaves = list(case.tensors())
    leaves[frozen].requires_grad_(False)
    hidden, weight, bias, targets = leaves
    requests = []
    real = passes.gradients

    def record(problem, impl, wanted, **options):
        requests.append(wanted)
        return real(problem, impl, wanted, **options)

    monkeypatch.setattr(passes, "gradients", record)
    loss = codec_head_loss(hidden, weight, targets, bias=bias, impl=impl).loss
    leaf_gradients = gradients(loss, hidden, weight, bias)
    assert requests == [tuple(index != frozen for index in range(3))]
    _assert_gradients_but_one(leaf_gradients, case, frozen)


def _assert_gradients_but_one(leaf_gradients, case, frozen):
    truths = [gradient for index, gradient in enumerate(expected(case)[1]) if index != frozen]
    for gradient, truth in zip(leaf_gradients, truths, strict=True):
        assert error(gradient, truth) < 1e-5


@pytest.mark.parametrize("frozen", [0, 1])
def test_the_product_of_a_frozen_leaf_is_skipped_in_one_chunk(frozen, monkeypatch):
    case = Case(bias=True)
    leaves = list(case.tensors())
    leaves[frozen].requires_grad_(False)
    hidden, weight, bias, targets = leaves
    shapes = []
    real = eager.scaled_product
    monkeypatch.setattr(
        eager,
        "scaled_product",
        lambda scale, a, b: shapes.append((len(a), b.shape[1])) or real(scale, a, b),
    )
    loss = codec_head_loss(hidden, weight, targets, bias=bias).loss
    leaf_gradients = gradients(loss, hidden, weight, bias)
    assert shapes == [(777, 24) if frozen == 0 else (63, 24)]
    _assert_gradients_but_one(leaf_gradients, case, frozen)


@pytest.mark.parametrize("impl", PATHS, ids=lambda impl: impl.value)
def test_without_gradients_none_are_computed(impl, monkeypatch):
    monkeypatch.setattr(passes, "gradients", None)  # a call would fail
    case = SEMANTICS["all terms"]
    hidden, weight, bias, targets = case.tensors()
    with torch.no_grad():
        result = codec_head_loss(
            hidden, weight, targets, bias=bias, segments=case.segments(), impl=impl, **case.options
        )
    assert error(result.loss, expected(case)[0].loss) < 1e-5 and not result.loss.requires_grad


@pytest.mark.parametrize("target", [777, -1, 2**40])
@pytest.mark.parametrize("impl", [Impl.reference, *PATHS], ids=lambda impl: impl.value)
def test_a_target_out_of_range_is_an_error(impl, target):
    hidden, weight, _, targets = Case().tensors()
    targets[7] = target
    with pytest.raises(
        SignalError, match=f"target {target} of row 7 is no entry of codebook 0, which has 777"
    ):
        codec_head_loss(hidden, weight, targets, impl=impl)


@pytest.mark.parametrize("impl", PATHS, ids=lambda impl: impl.value)
def test_an_unchecked_target_out_of_range_gives_nan(impl):
    """On a GPU no value is read, so the targets are not checked before the kernels run."""
    hidden, weight, _, targets = Case(lead=(9,)).tensors()
    targets[7] = 777
    problem = Problem(
        hidden.detach(),
        weight.detach(),
        None,
        targets[:, None],
        None,
        Terms((0, 777)),
        torch.float32,
    )
    results, result = passes.gradients(problem, impl, (True, True, False))
    assert results.losses.isnan().nonzero().tolist() == [[7, 0]]
    assert result.hidden.isnan().all(1).nonzero().flatten().tolist() == [7]
    assert result.weight.isnan().any()


@pytest.mark.parametrize("impl", PATHS, ids=lambda impl: impl.value)
def test_runs_are_equal_bit_for_bit(impl, chunks):
    (first, first_gradients), (second, second_gradients) = (
        compute(SEMANTICS["all terms"], impl) for _ in range(2)
    )
    assert torch.equal(first.loss, second.loss)
    assert all(torch.equal(a, b) for a, b in zip(first_gradients, second_gradients))


@pytest.mark.parametrize("impl", PATHS, ids=lambda impl: impl.value)
def test_strided_inputs(impl):
    case = Case(lead=(5, 12))
    hidden, weight, _, targets = case.tensors()
    # No axis of the hidden states is contiguous, and the weight is stored by columns.
    wide = torch.randn(12, 5, 2 * case.width).transpose(0, 1)
    wide[..., ::2] = hidden.detach()
    strided = wide[..., ::2].detach().requires_grad_()
    by_columns = weight.detach().T.contiguous().T.requires_grad_()
    loss = codec_head_loss(strided, by_columns, targets, impl=impl).loss
    leaf_gradients = gradients(loss, strided, by_columns)
    for gradient, truth in zip(leaf_gradients, expected(case)[1]):
        assert error(gradient, truth) < 1e-5


def test_rows_beyond_2_to_the_31_elements():
    """Offsets are 64 bits wide: row 1 of these scores lies 2^31 elements after row 0.

    Only the pages that are touched take memory.
    """
    from echox.kernels.codec_head_loss import kernel

    V, stride = 64, 2**31 + 64
    try:
        storage = torch.empty(stride + V)
    except RuntimeError:
        pytest.skip("this machine promises no 8 GiB of memory")
    z = storage.as_strided((2, V), (stride, 1))
    z[:] = torch.randn(2, V)
    scores, targets = z.clone(), torch.tensor([[3], [60]])  # the kernel overwrites z
    losses, lse, correct = torch.empty(2, 1), torch.empty(2, 1), torch.empty(2, 1, dtype=torch.int8)
    flags = dict.fromkeys(
        ("LSE_KNOWN", "HAS_BIAS", "HAS_WEIGHTS", "HAS_SMOOTHING", "HAS_Z", "HAS_SOFTCAP"),
        False,
    )
    tables = (targets, None, torch.tensor([0, V], dtype=torch.int32), losses, lse, correct)
    numbers = (2, -100, 0.0, 0.0, 0.0, 1.0)
    shape = {
        "K": 1,
        "ROWS": 2,
        "BLOCK": V,
        "ALIGN": 16,
        "ONE_BLOCK": True,
        "WANTS_GRADIENT": True,
        "INTERPRET": True,
    }
    kernel.row_kernel[(1, 1)](z, stride, None, *tables, z, stride, *numbers, **shape, **flags)
    assert torch.allclose(losses[:, 0], F.cross_entropy(scores, targets[:, 0], reduction="none"))
    assert torch.allclose(z, scores.softmax(1) - F.one_hot(targets[:, 0], V), atol=1e-6)


@pytest.mark.parametrize("impl", PATHS, ids=lambda impl: impl.value)
def test_fp16_with_a_loss_scale_of_65536(impl):
    """Gradients are divided by the count after the sums.

    So nothing underflows that the scaled result could hold.
    """
    case = dataclasses.replace(SEMANTICS["fp16"], lead=(300,))
    hidden, weight, _, targets = case.tensors()
    (codec_head_loss(hidden, weight, targets, impl=impl, count=70000).loss * 65536).backward()
    _, true_gradients = expected(case, count=70000)
    for gradient, truth in zip((hidden.grad, weight.grad), true_gradients):
        # The true ones have an upstream gradient of 3.
        assert error(gradient.double() / 65536 * 3, truth) < 1e-3


@pytest.mark.parametrize("impl", PATHS, ids=lambda impl: impl.value)
def test_gradients_accumulate_over_two_backward_passes_of_a_graph(impl):
    hidden, weight, _, targets = Case().tensors()
    loss = codec_head_loss(hidden, weight, targets, impl=impl).loss
    loss.backward(retain_graph=True)
    once = weight.grad.clone()
    loss.backward()
    assert torch.allclose(weight.grad, 2 * once)


def test_targets_with_the_highest_score_are_correct():
    case = SEMANTICS["codebooks, unequal"]
    result = compute(case, Impl.torch)[0]
    hidden, weight, bias, targets = case.tensors()
    best = torch.stack(
        [scores.argmax(-1) for scores in F.linear(hidden, weight, bias).split(case.sizes, -1)], -1
    )
    valid = targets != -100
    assert torch.equal(result.correct, (best == targets) & valid)
    assert not result.losses.requires_grad and not result.lse.requires_grad


def test_equal_scores_are_correct_for_the_first_entry_only():
    hidden, weight = torch.randn(4, 8), torch.zeros(16, 8)
    targets = torch.tensor([0, 1, 2, 0])
    for impl in (Impl.reference, *PATHS):
        result = codec_head_loss(hidden, weight, targets, impl=impl)
        assert result.correct.tolist() == [True, False, False, True]


@pytest.mark.parametrize("impl", [Impl.torch, Impl.chunked], ids=lambda impl: impl.value)
def test_poisoned_scratch_is_never_read(impl, monkeypatch):
    """Scratch and results come from `torch.empty`; here it hands out NaN."""
    from echox.kernels.codec_head_loss import rows

    def poisoned(real):
        return lambda *args, **kwargs: (
            tensor.fill_(float("nan"))
            if (tensor := real(*args, **kwargs)).is_floating_point()
            else tensor
        )

    monkeypatch.setattr(rows.torch, "empty", poisoned(torch.empty))
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty))
    assert_equal(SEMANTICS["all terms"], impl)


def test_autocast_multiplies_in_bf16_and_keeps_float32_gradients():
    case = Case(sizes=(1024,), lead=(256,), width=64)
    hidden, weight, _, targets = case.tensors()
    with torch.autocast("cpu", torch.bfloat16):
        result = codec_head_loss(hidden, weight, targets)
    leaf_gradients = gradients(result.loss, hidden, weight)
    assert result.loss.dtype is torch.float32
    for gradient, truth in zip(leaf_gradients, expected(case)[1]):
        assert gradient.dtype is torch.float32 and error(gradient, truth) < 5e-3
    # The process's own setting is as it was.
    x = torch.randn(64, 64)
    assert error(x @ x, x.double() @ x.double()) < 1e-6


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"segments": [0, 30, 20]}, "rising"),
        ({"segments": [0, 2000]}, "has 777 rows"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"softcap": -1.0}, "softcap"),
        ({"temperature": 0.0}, "temperature"),
        ({"codebook_weight": [1.0, 2.0]}, "codebook_weight"),
        ({"token_weight": torch.ones(5)}, "token_weight"),
        ({"token_weight": torch.ones(63, requires_grad=True)}, "gradient"),
        ({"bias": torch.ones(3)}, "bias"),
        ({"targets": torch.zeros(63, 2, dtype=torch.long)}, "targets"),
        ({"targets": torch.zeros(63)}, "integers"),
        ({"hidden": torch.zeros(63, 5)}, r"\[V, D\]"),
    ],
)
def test_arguments_that_do_not_fit_are_errors(change, sentence):
    hidden, weight, _, targets = Case().tensors()
    arguments = {"hidden": hidden, "weight": weight, "targets": targets, **change}
    with pytest.raises(ConfigError, match=sentence):
        codec_head_loss(**arguments)


def test_the_head_is_a_linear_layer():
    torch.manual_seed(0)
    linear = torch.nn.Linear(8, 20)
    torch.manual_seed(0)
    head = CodecHead(8, [12, 8], bias=True)
    hidden = torch.randn(2, 3, 8)
    assert torch.equal(linear(hidden), head(hidden))
    assert list(linear.state_dict()) == list(head.state_dict())
    capped = CodecHead(8, 20, softcap=2.0)
    assert capped(100 * hidden).abs().max() <= 2
