"""The codec-head loss as echox, PyTorch and two other libraries compute it, behind one signature."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from echox.kernels.codec_head_loss import Impl, codec_head_loss
from echox.packages import CUT_CROSS_ENTROPY, LIGER, OptionalPackage

# hidden [N, D], weight [V, D], targets [N, K], entries of each codebook -> mean loss over all targets
LossFunction = Callable[[Tensor, Tensor, Tensor, Sequence[int]], Tensor]


EAGER = "PyTorch eager"


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to compute the loss."""

    name: str
    function: LossFunction | None  # None where it cannot be had
    reason: str = ""  # why it cannot


def contenders(device: torch.device) -> list[Contender]:
    """All of them, also those that cannot run here."""
    gpu = device.type == "cuda"
    found = [Contender("echox", _echox(Impl.auto))]
    found += [Contender(f"echox {impl.value}", _echox(impl)) for impl in ((Impl.chunked, Impl.fused) if gpu else ())]
    found += [Contender(EAGER, _eager), Contender("PyTorch loop over heads", _by_head(_one_eager))]
    found.append(_compiled(gpu))
    found.append(_torch_chunked())
    found.append(_library("Liger-Kernel", LIGER, _liger, gpu))
    found.append(_library("cut-cross-entropy", CUT_CROSS_ENTROPY, _cut_cross_entropy, gpu))
    if not gpu and cpp_compiler():
        found.append(_library("cut-cross-entropy torch_compile", CUT_CROSS_ENTROPY, lambda: _cut_cross_entropy("torch_compile"), True))
    return found


def _echox(impl: Impl) -> LossFunction:
    def loss(hidden: Tensor, weight: Tensor, targets: Tensor, sizes: Sequence[int]) -> Tensor:
        cuts = [sum(sizes[:k]) for k in range(len(sizes) + 1)]
        return codec_head_loss(hidden, weight, targets, segments=cuts, impl=impl).loss

    return loss


def _eager(hidden: Tensor, weight: Tensor, targets: Tensor, sizes: Sequence[int]) -> Tensor:
    logits = F.linear(hidden, weight).float().split(list(sizes), dim=1)
    return torch.stack([F.cross_entropy(scores, targets[:, k]) for k, scores in enumerate(logits)]).mean()


def _one_eager(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight).float(), targets)


def _by_head(one: Callable[[Tensor, Tensor, Tensor], Tensor]) -> LossFunction:
    """A loss of one head, called for each codebook."""

    def loss(hidden: Tensor, weight: Tensor, targets: Tensor, sizes: Sequence[int]) -> Tensor:
        return torch.stack([one(hidden, part, targets[:, k]).float() for k, part in enumerate(weight.split(list(sizes)))]).mean()

    return loss


def _torch_chunked() -> Contender:
    name = "PyTorch chunked"
    if not hasattr(F, "linear_cross_entropy"):
        return Contender(name, None, f"torch {torch.__version__.partition('+')[0]} has none")
    options = torch.nn.LinearCrossEntropyOptions() if hasattr(torch.nn, "LinearCrossEntropyOptions") else None
    return Contender(name, _by_head(lambda hidden, weight, targets: F.linear_cross_entropy(hidden, weight, targets, options=options)))


def cpp_compiler() -> str | None:
    """The C++ compiler that torch.compile would call for a CPU, if there is one."""
    wanted = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    return shutil.which(wanted)


def _compiled(gpu: bool) -> Contender:
    name = "torch.compile"
    if not gpu and cpp_compiler() is None:
        return Contender(name, None, "no C++ compiler here")
    return Contender(name, torch.compile(_eager, dynamic=False))


def _library(
    name: str, package: OptionalPackage, load: Callable[[], Callable[[Tensor, Tensor, Tensor], Tensor]], gpu: bool
) -> Contender:
    if not package.is_installed():
        return Contender(name, None, "not installed")
    if not gpu:
        return Contender(name, None, "needs a GPU")
    try:
        return Contender(name, _by_head(load()))
    except (ImportError, RuntimeError) as error:
        return Contender(name, None, f"cannot be loaded: {str(error).splitlines()[0]}")


def _liger() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    module = LIGER.load("transformers.fused_linear_cross_entropy").LigerFusedLinearCrossEntropyLoss()
    return lambda hidden, weight, targets: module(weight, hidden, targets)


def _cut_cross_entropy(impl: str = "cce") -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    function = CUT_CROSS_ENTROPY.load().linear_cross_entropy
    exact = {"filter_eps": None} if impl == "cce" else {}  # by default it leaves small gradients out
    return lambda hidden, weight, targets: function(hidden, weight, targets, impl=impl, **exact)
