"""Cases of the codec-head loss, and the float64 reference they are compared with."""

from dataclasses import dataclass, field

import torch

from echox.kernels.codec_head_loss import Impl, Reduction, codec_head_loss

# Relative Frobenius error against float64, of losses and of gradients. 16-bit losses are as good as
# float32 ones, since sums and softmax are float32 and the inputs are compared as they were rounded;
# gradients are rounded to 16 bits twice (scores' gradients, results).
TOLERANCE = {
    torch.float64: (1e-12, 1e-12),
    torch.float32: (1e-5, 1e-5),
    torch.bfloat16: (1e-5, 5e-3),
    torch.float16: (1e-5, 1e-3),
}


@dataclass(frozen=True)
class Case:
    """Shapes and options of one call."""

    sizes: tuple[int, ...] = (777,)
    lead: tuple[int, ...] = (63,)
    width: int = 24
    dtype: torch.dtype = torch.float32
    bias: bool = False
    ignored: float = 0.2  # share of the targets
    options: dict = field(default_factory=dict)

    def tensors(self, device="cpu"):
        """Return hidden, weight, bias and targets; the first three want gradients."""
        draw = torch.Generator().manual_seed(sum(self.sizes) + len(self.lead))
        V = sum(self.sizes)
        hidden = torch.randn(*self.lead, self.width, generator=draw)
        weight = torch.randn(V, self.width, generator=draw) * 2 * self.width**-0.5
        bias = torch.randn(V, generator=draw) if self.bias else None
        shape = (*self.lead, len(self.sizes))
        targets = (torch.rand(shape, generator=draw) * torch.tensor(self.sizes)).long()
        targets[torch.rand(shape, generator=draw) < self.ignored] = -100
        if len(self.sizes) == 1:
            targets = targets[..., 0]
        leaves = [
            None if tensor is None else tensor.to(device, self.dtype).requires_grad_()
            for tensor in (hidden, weight, bias)
        ]
        return *leaves, targets.to(device)

    def segments(self):
        cuts = [0]
        for size in self.sizes:
            cuts.append(cuts[-1] + size)
        return cuts


SEMANTICS = {
    "one head": Case(),
    "bias, 3-D": Case(lead=(3, 21), bias=True),
    "one row": Case(lead=(1,), ignored=0.0),
    "V=1000, N=130": Case(sizes=(1000,), lead=(130,)),
    "smoothing": Case(options={"label_smoothing": 0.1}),
    "z-loss": Case(options={"z_loss": 0.01}),
    "softcap": Case(options={"softcap": 3.0}),
    "temperature": Case(options={"temperature": 0.7}),
    "codebooks, equal": Case(sizes=(48,) * 4, options={"codebook_weight": [1.0, 0.5, 0.0, 2.0]}),
    "codebooks, unequal": Case(sizes=(100, 33, 64), bias=True),
    "all terms": Case(
        sizes=(70, 120),
        lead=(5, 9),
        bias=True,
        options={
            "label_smoothing": 0.1,
            "z_loss": 0.01,
            "softcap": 4.0,
            "temperature": 0.8,
            "codebook_weight": [1.0, 0.3],
        },
    ),
    "token weights": Case(options={"token_weight": torch.linspace(0, 2, 63)}),
    "token weights by codebook": Case(
        sizes=(40, 40), options={"token_weight": torch.linspace(0, 2, 126).view(63, 2)}
    ),
    "sum": Case(options={"reduction": Reduction.sum}),
    "global count": Case(options={"count": torch.tensor(500.0)}),
    "each": Case(
        sizes=(50, 60),
        bias=True,
        options={
            "reduction": Reduction.none,
            "label_smoothing": 0.1,
            "softcap": 4.0,
            "codebook_weight": [1.0, 2.0],
        },
    ),
    "other ignore_index": Case(sizes=(20,), ignored=0.0, options={"ignore_index": 5}),
    "bf16": Case(dtype=torch.bfloat16, bias=True),
    "bf16, codebooks, all terms": Case(
        sizes=(70, 120),
        dtype=torch.bfloat16,
        bias=True,
        options={"label_smoothing": 0.1, "z_loss": 0.01, "softcap": 4.0},
    ),
    "fp16": Case(dtype=torch.float16),
}


def compute(case, impl, device="cpu", **more):
    """Return the result, and the gradients of a fixed weighting of its loss by the leaves.

    The leaves are hidden, weight and bias.
    """
    hidden, weight, bias, targets = case.tensors(device)
    options = {
        name: value.to(device) if isinstance(value, torch.Tensor) else value
        for name, value in {**case.options, **more}.items()
    }
    result = codec_head_loss(
        hidden, weight, targets, bias=bias, segments=case.segments(), impl=impl, **options
    )
    return result, gradients(result.loss, hidden, weight, bias)


def gradients(loss, *leaves):
    # Neither 1 nor equal: an upstream gradient that is ignored or mixed up shows.
    if loss.dim():
        upstream = torch.linspace(-1, 1, loss.numel(), dtype=loss.dtype, device=loss.device)
        upstream = upstream.view(loss.shape)
    else:
        upstream = loss.new_tensor(3.0)
    leaves = [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]
    return torch.autograd.grad(loss, leaves, upstream)


def expected(case, **more):
    """Return the same in float64, by the reference, from the inputs as they were rounded."""
    hidden, weight, bias, targets = case.tensors()
    leaves = [
        None if tensor is None else tensor.detach().double().requires_grad_()
        for tensor in (hidden, weight, bias)
    ]
    result = codec_head_loss(
        leaves[0],
        leaves[1],
        targets,
        bias=leaves[2],
        segments=case.segments(),
        impl=Impl.reference,
        **{**case.options, **more},
    )
    return result, gradients(result.loss, *leaves)


def error(actual, truth):
    """Return the relative Frobenius error; the absolute one where the truth is 0."""
    actual, truth = actual.detach().double().cpu(), truth.detach().double()
    if truth.norm() > 0:
        return float((actual - truth).norm() / max(truth.norm().item(), 1e-30))
    return float(actual.norm())


def assert_equal(case, impl, device="cpu", tolerance=None, **more):
    """Assert that outputs and every gradient are the reference's."""
    result, actual_gradients = compute(case, impl, device, **more)
    truth, true_gradients = expected(case, **more)
    loss_tolerance, gradient_tolerance = tolerance or TOLERANCE[case.dtype]
    for name in ("loss", "losses", "lse"):
        assert getattr(result, name).shape == getattr(truth, name).shape
        assert error(getattr(result, name), getattr(truth, name)) <= loss_tolerance, name
    assert torch.equal(result.correct.cpu(), truth.correct)
    assert torch.equal(result.valid.cpu(), truth.valid)
    assert len(actual_gradients) == len(true_gradients) == 2 + case.bias
    for gradient, target in zip(actual_gradients, true_gradients):
        assert gradient.dtype is case.dtype and error(gradient, target) <= gradient_tolerance
