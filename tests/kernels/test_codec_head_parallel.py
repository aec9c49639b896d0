"""The codec-head loss over two processes is the loss of one."""

import copy

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from codec_head_cases import Case, error, expected, gradients
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from echox.kernels.codec_head_loss import CodecHead, Impl, Reduction
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


FUNCTIONS = ("vocabulary", "codebooks", "sharded")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What two processes finished, as a folder of one file each, and the error that ended them early.

    They do everything one after the other, as loading PyTorch takes them longer than the work.
    """
    folder = tmp_path_factory.mktemp("ranks")
    try:
        mp.spawn(_rank, (folder,), nprocs=RANKS)
    except (mp.ProcessRaisedException, mp.ProcessExitedException) as error:
        return folder, error
    return folder, None


@pytest.mark.parametrize("function", FUNCTIONS)
def test_two_processes_are_one(function, ranks):
    folder, error = ranks
    if not all((folder / f"{function}.{rank}").exists() for rank in range(RANKS)):
        pytest.fail(str(error))


def _rank(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=RANKS)
    try:
        for function, check in zip(FUNCTIONS, (_vocabulary, _codebooks, _sharded), strict=True):
            check(rank)
            (folder / f"{function}.{rank}").touch()
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


def _sharded(rank):
    """FSDP2 gathers the head's weight around its `forward`, so the loss never meets a shard; every rank has its own rows."""
    whole = CodecHead(24, [40, 30, 20], bias=True)
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.dim())))
    head = fully_shard(copy.deepcopy(whole), mesh=init_device_mesh("cpu", (RANKS,)))
    draw = torch.Generator().manual_seed(5)
    hidden, targets = torch.randn(RANKS, 31, 24, generator=draw), torch.randint(0, 20, (RANKS, 31, 3), generator=draw)
    targets[1, :9] = -100
    count = (targets != -100).sum()
    for _ in range(2):  # gathered again for a second step
        loss = head(hidden[rank], targets[rank], count=count).loss
        loss.backward()
        assert all(isinstance(parameter, DTensor) and isinstance(parameter.grad, DTensor) for parameter in head.parameters())
    expected = whole(hidden, targets).loss
    expected.backward()
    dist.all_reduce(loss := loss.detach().clone())
    assert error(loss, expected) < 1e-5
    for parameter, target in zip(head.parameters(), whole.parameters()):
        # FSDP divides the sum over ranks by their number; two steps were added up.
        assert error(parameter.grad.full_tensor() * RANKS / 2, target.grad) < 1e-5


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
