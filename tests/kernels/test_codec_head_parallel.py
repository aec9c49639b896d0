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
    "mean": Case(
        sizes=(101,),
        lead=(3, 7),
        bias=True,
        options={"label_smoothing": 0.1, "z_loss": 0.01, "softcap": 4.0, "temperature": 0.8},
    ),
    "count, weights": Case(
        sizes=(101,), options={"count": 70.0, "token_weight": torch.linspace(0, 2, 63)}
    ),
    "each": Case(sizes=(101,), options={"reduction": Reduction.none}),
    "all ignored": Case(sizes=(101,), ignored=1.1),
}
CODEBOOKS = {
    "mean": Case(
        sizes=(40, 30, 20),
        lead=(3, 7),
        bias=True,
        options={"codebook_weight": [1.0, 0.5, 2.0], "label_smoothing": 0.1},
    ),
    "sum": Case(sizes=(40, 30, 20), options={"reduction": Reduction.sum}),
    "count": Case(sizes=(40, 30, 20), options={"count": 70.0}),
}
RANKS = 2


FUNCTIONS = ("vocabulary", "codebooks", "sharded")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Return what two processes finished, a folder of one file each, and the error that ended them.

    They do everything one after the other, as loading PyTorch takes them longer than the work.
    """
    folder = tmp_path_factory.mktemp("ranks")
    try:
        mp.spawn(_rank, (folder,), nprocs=RANKS)
    except (mp.ProcessRaisedException, mp.ProcessExitedException) as error:
        return folder, error
    return folder, None


@pytest.mark.parametrize("function", FUNCTIONS)
def test_two_processes_compute_the_loss_of_one(function, ranks):
    folder, error = ranks
    if not all((folder / f"{function}.{rank}").exists() for rank in range(RANKS)):
        pytest.fail(str(error))


def _rank(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=RANKS
    )
    try:
        for function, check in zip(FUNCTIONS, (_vocabulary, _codebooks, _sharded), strict=True):
            check(rank)
            (folder / f"{function}.{rank}").touch()
    finally:
        dist.destroy_process_group()


def _vocabulary(rank):
    for name, case in VOCABULARY.items():
        for impl in (Impl.torch, Impl.chunked, Impl.fused) if name == "mean" else (Impl.auto,):
            hidden, weight, bias, targets = case.tensors()
            rows = [slice(0, 60), slice(60, 101)][rank]
            own, own_bias = (_part(tensor, rows) for tensor in (weight, bias))
            result = vocabulary_parallel_loss(
                hidden,
                own,
                targets,
                bias=own_bias,
                group=dist.group.WORLD,
                first_row=rows.start,
                vocabulary_size=101,
                impl=impl,
                **case.options,
            )
            own_gradients = gradients(result.loss, hidden, own, own_bias)
            _compare(result, own_gradients, case, rows, slice(None))


def _part(tensor, rows):
    return None if tensor is None else tensor.detach()[rows].clone().requires_grad_()


def _codebooks(rank):
    for case in CODEBOOKS.values():
        hidden, weight, bias, targets = case.tensors()
        rows, books = [(slice(0, 70), slice(0, 2)), (slice(70, 90), slice(2, 3))][rank]
        own, own_bias = (_part(tensor, rows) for tensor in (weight, bias))
        options = dict(case.options)
        if "codebook_weight" in options:
            options["codebook_weight"] = options["codebook_weight"][books]
        segments = [[0, 40, 70], [0, 20]][rank]
        result = codebook_parallel_loss(
            hidden,
            own,
            targets[..., books],
            bias=own_bias,
            group=dist.group.WORLD,
            segments=segments,
            **options,
        )
        _compare(result, gradients(result.loss, hidden, own, own_bias), case, rows, books)


def _sharded(rank):
    """FSDP2 gathers the head's weight around its `forward`, so the loss never meets a shard.

    Every rank has its own rows.
    """
    full_head = CodecHead(24, [40, 30, 20], bias=True)
    with torch.no_grad():
        for parameter in full_head.parameters():
            draw = torch.Generator().manual_seed(parameter.dim())
            parameter.copy_(torch.randn(parameter.shape, generator=draw))
    head = fully_shard(copy.deepcopy(full_head), mesh=init_device_mesh("cpu", (RANKS,)))
    draw = torch.Generator().manual_seed(5)
    hidden = torch.randn(RANKS, 31, 24, generator=draw)
    targets = torch.randint(0, 20, (RANKS, 31, 3), generator=draw)
    targets[1, :9] = -100  # so that the ranks have unequal counts
    count = (targets != -100).sum()
    for _ in range(2):  # gathered again for a second step
        loss = head(hidden[rank], targets[rank], count=count).loss
        loss.backward()
        assert all(
            isinstance(parameter, DTensor) and isinstance(parameter.grad, DTensor)
            for parameter in head.parameters()
        )
    truth = full_head(hidden, targets).loss
    truth.backward()
    dist.all_reduce(loss := loss.detach().clone())
    assert error(loss, truth) < 1e-5
    for parameter, target in zip(head.parameters(), full_head.parameters()):
        # FSDP divides the sum over ranks by their number; two steps were added up.
        assert error(parameter.grad.full_tensor() * RANKS / 2, target.grad) < 1e-5


def _compare(result, own_gradients, case, rows, books):
    truth, (d_hidden, *d_rows) = expected(case)
    for name in ("losses", "lse"):
        target = getattr(truth, name)
        target = target[..., books] if len(case.sizes) > 1 else target
        assert error(getattr(result, name), target) < 1e-5, name
    correct = truth.correct[..., books] if len(case.sizes) > 1 else truth.correct
    assert torch.equal(result.correct, correct) and error(result.loss, truth.loss) < 1e-5
    # The hidden states' gradient is summed over the ranks, the rows' gradients are a rank's own.
    targets = [d_hidden, *(gradient[rows] for gradient in d_rows)]
    for gradient, target in zip(own_gradients, targets, strict=True):
        assert error(gradient, target) < 1e-5
