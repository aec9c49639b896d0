"""Implementations of the codec-head loss, of echox, PyTorch and two libraries, in one signature."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from echox.core.packages import CUT_CROSS_ENTROPY, LIGER, OptionalPackage
from echox.kernels.codec_head_loss import Impl, codec_head_loss

# Hidden states [N, D], weight [V, D], targets [N, K] and entries of each codebook -> mean loss over
# all targets.
LossFunction = Callable[[Tensor, Tensor, Tensor, Sequence[int]], Tensor]
# The same of one codebook: hidden states [N, D], weight [V, D] and targets [N].
HeadLoss = Callable[[Tensor, Tensor, Tensor], Tensor]

EAGER = "PyTorch eager"


@dataclass(frozen=True, slots=True)
class Contender:
    """One implementation of the loss.

    It takes hidden states [N, D], a weight [V, D] and targets [N, K]; see `LossFunction`.
    """

    name: str
    function: LossFunction | None  # None where it cannot run
    reason: str = ""  # why it cannot run


def contenders(device: torch.device) -> list[Contender]:
    """Return all contenders, those that cannot run on the device included."""
    is_gpu = device.type == "cuda"
    impls = (Impl.chunked, Impl.fused) if is_gpu else ()
    all_contenders = [
        Contender("echox", _echox(Impl.auto)),
        *(Contender(f"echox {impl.value}", _echox(impl)) for impl in impls),
        Contender(EAGER, _eager),
        Contender("PyTorch loop over heads", _by_head(_eager_head)),
        _compiled(is_gpu),
        _torch_chunked(),
        _library("Liger-Kernel", LIGER, _liger, runs=is_gpu),
        _library("cut-cross-entropy", CUT_CROSS_ENTROPY, _cut_cross_entropy, runs=is_gpu),
    ]
    # Its kernels need a GPU, but its compiled form runs wherever there is a compiler.
    if not is_gpu and cpp_compiler():
        name = "cut-cross-entropy torch_compile"
        load = partial(_cut_cross_entropy, "torch_compile")
        all_contenders.append(_library(name, CUT_CROSS_ENTROPY, load, runs=True))
    return all_contenders


def _echox(impl: Impl) -> LossFunction:
    def loss(hidden: Tensor, weight: Tensor, targets: Tensor, sizes: Sequence[int]) -> Tensor:
        cuts = [
            sum(sizes[:k]) for k in range(len(sizes) + 1)
        ]  # [K + 1] first rows of the codebooks
        return codec_head_loss(hidden, weight, targets, segments=cuts, impl=impl).loss

    return loss


def _eager(hidden: Tensor, weight: Tensor, targets: Tensor, sizes: Sequence[int]) -> Tensor:
    logits = F.linear(hidden, weight).float().split(list(sizes), dim=1)
    losses = [F.cross_entropy(scores, targets[:, k]) for k, scores in enumerate(logits)]
    return torch.stack(losses).mean()


def _eager_head(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight).float(), targets)


def _by_head(head_loss: HeadLoss) -> LossFunction:
    """A loss of one codebook, called for each of them."""

    def loss(hidden: Tensor, weight: Tensor, targets: Tensor, sizes: Sequence[int]) -> Tensor:
        heads = weight.split(list(sizes))
        # In float32, because libraries return losses in the precision of their inputs.
        losses = [head_loss(hidden, head, targets[:, k]).float() for k, head in enumerate(heads)]
        return torch.stack(losses).mean()

    return loss


def _torch_chunked() -> Contender:
    name = "PyTorch chunked"
    if not hasattr(F, "linear_cross_entropy"):
        return Contender(name, None, f"torch {torch.__version__.partition('+')[0]} has none")
    # Not every release that has the function has the class.
    has_options = hasattr(torch.nn, "LinearCrossEntropyOptions")
    options = torch.nn.LinearCrossEntropyOptions() if has_options else None
    return Contender(name, _by_head(partial(F.linear_cross_entropy, options=options)))


def cpp_compiler() -> str | None:
    """Return the path of the C++ compiler that torch.compile would call, or None without one."""
    # As torch.compile chooses it.
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    return shutil.which(compiler)


def _compiled(is_gpu: bool) -> Contender:
    name = "torch.compile"
    # On a GPU it generates Triton kernels instead of C++.
    if not is_gpu and cpp_compiler() is None:
        return Contender(name, None, "no C++ compiler here")
    return Contender(name, torch.compile(_eager, dynamic=False))


def _library(
    name: str, package: OptionalPackage, load: Callable[[], HeadLoss], *, runs: bool
) -> Contender:
    if not package.is_installed():
        return Contender(name, None, "not installed")
    if not runs:
        return Contender(name, None, "needs a GPU")
    try:
        return Contender(name, _by_head(load()))
    # A library may support this release of PyTorch or this GPU no more, or not yet.
    except (ImportError, RuntimeError) as error:
        return Contender(name, None, f"cannot be loaded: {str(error).splitlines()[0]}")


def _liger() -> HeadLoss:
    module = LIGER.load("transformers.fused_linear_cross_entropy")
    loss = module.LigerFusedLinearCrossEntropyLoss()
    # It takes the weight first.
    return lambda hidden, weight, targets: loss(weight, hidden, targets)


def _cut_cross_entropy(impl: str = "cce") -> HeadLoss:
    function = CUT_CROSS_ENTROPY.load().linear_cross_entropy
    # By default it leaves small gradients out, and would compute less than the others.
    exact = {"filter_eps": None} if impl == "cce" else {}
    return lambda hidden, weight, targets: function(hidden, weight, targets, impl=impl, **exact)
