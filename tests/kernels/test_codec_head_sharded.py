"""The codec-head loss of a head that is sharded over two processes is the loss of one."""

import copy

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from codec_head_cases import error
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from echox.kernels.codec_head_loss import CodecHead

RANKS = 2


def test_two_processes_compute_the_loss_of_one(tmp_path):
    mp.spawn(_rank, (tmp_path / "rendezvous",), nprocs=RANKS)


def _rank(rank, rendezvous):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=RANKS)
    try:
        _compare(rank)
        # A rank that leaves while another still reads from it makes that one abort.
        dist.barrier()
    finally:
        dist.destroy_process_group()


def _compare(rank):
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
