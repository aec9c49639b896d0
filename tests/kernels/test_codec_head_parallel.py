"""The codec-head loss over two processes is the loss of one."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from codec_head_cases import Case, error, expected, gradients

from echox.kernels.codec_head_loss import Impl, Reduction
from echox.kernels.codec_head_loss.parallel import codebook_parallel_loss, vocabulary_parallel_loss

VOCABULARY = {
    "mean": Case(sizes=(101,), lead=(3, 7), bias=True, options={"label_smoothing": 0.1, "z_loss": 0.01, "softcap": 4.0, "temperature": 0.8}),
    "count, weights": Case(sizes=(101,), options={"count": 70.0, "token_weight": torch.linspace(0, 2, 63)}),
    "each": Case(sizes=(101,), options={"reduction": Reduction.none}),
    "all ignored": Case(sizes=(101,), ignored=1.1),
}
CODEBOOKS = {
    "mean": Case(sizes=(40, 30, 20), lead=(3, 7), bias=True, options={"codebook_weight": [1.0, 0.5, 2.0], "label_smoothing": 0.1}),
    "sum": Case(sizes=(40, 30, 20), options={"reduction": Reduction.sum}),
    "count": Case(sizes=(40, 30, 20), options={"count": 70.0}),
}
RANKS = 2


@pytest.mark.parametrize("function", ["vocabulary", "codebooks"])
def test_two_processes_are_one(function, tmp_path):
    mp.spawn(_rank, (function, str(tmp_path / "meeting")), nprocs=RANKS)


def _rank(rank, function, meeting):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=RANKS)
    try:
        {"vocabulary": _vocabulary, "codebooks": _codebooks}[function](rank)
    finally:
        dist.destroy_process_group()


def _vocabulary(rank):
    for name, case in VOCABULARY.items():
        for impl in (Impl.torch, Impl.chunked, Impl.fused) if name == "mean" else (Impl.auto,):
            hidden, weight, bias, targets = case.made()
            here = [slice(0, 60), slice(60, 101)][rank]
            own, own_bias = (None if t is None else t.detach()[here].clone().requires_grad_() for t in (weight, bias))
            result = vocabulary_parallel_loss(
                hidden, own, targets, bias=own_bias, group=dist.group.WORLD, first=here.start, whole=101, impl=impl, **case.options
            )
            _compare(result, gradients(result.loss, hidden, own, own_bias), case, here, slice(None))


def _codebooks(rank):
    for case in CODEBOOKS.values():
        hidden, weight, bias, targets = case.made()
        rows, own = [(slice(0, 70), slice(0, 2)), (slice(70, 90), slice(2, 3))][rank]
        part, part_bias = (None if t is None else t.detach()[rows].clone().requires_grad_() for t in (weight, bias))
        options = dict(case.options)
        if "codebook_weight" in options:
            options["codebook_weight"] = options["codebook_weight"][own]
        segments = [[0, 40, 70], [0, 20]][rank]
        result = codebook_parallel_loss(hidden, part, targets[..., own], bias=part_bias, group=dist.group.WORLD, segments=segments, **options)
        _compare(result, gradients(result.loss, hidden, part, part_bias), case, rows, own)


def _compare(result, made, case, rows, codebooks):
    truth, (of_hidden, *of_rows) = expected(case)
    for name in ("losses", "lse"):
        target = getattr(truth, name)
        target = target[..., codebooks] if len(case.sizes) > 1 else target
        assert error(getattr(result, name), target) < 1e-5, name
    correct = truth.correct[..., codebooks] if len(case.sizes) > 1 else truth.correct
    assert torch.equal(result.correct, correct) and error(result.loss, truth.loss) < 1e-5
    for gradient, target in zip(made, [of_hidden, *(target[rows] for target in of_rows)], strict=True):
        assert error(gradient, target) < 1e-5
