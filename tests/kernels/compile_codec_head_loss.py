"""Compiles the codec-head loss's kernels for an NVIDIA architecture, without a GPU.

It prints what each needs as JSON. The launches are the real ones: problems of fake CUDA tensors go
through the shipped paths, and every launch is compiled instead of run.

usage: python compile_codec_head_loss.py 90
"""

import json
import sys

import torch
from compiling import compile_launches, resources
from torch._subclasses.fake_tensor import FakeTensorMode

from echox.kernels.codec_head_loss import kernel, launch
from echox.kernels.codec_head_loss.paths import Problem
from echox.kernels.codec_head_loss.terms import Terms


def problem(sizes, dtype, plain):
    N, D, V = 4096, 2048, sum(sizes)
    cuts = [0]
    for size in sizes:
        cuts.append(cuts[-1] + size)
    terms = (
        Terms(tuple(cuts))
        if plain
        else Terms(tuple(cuts), label_smoothing=0.1, z_loss=1e-4, softcap=30.0, temperature=0.8)
    )
    cuda = {"device": "cuda"}
    bias = None if plain else torch.empty(V, dtype=dtype, **cuda)
    weights = None if plain else torch.empty(N, len(sizes), **cuda)
    targets = torch.empty(N, len(sizes), dtype=torch.int64, **cuda)
    return Problem(
        torch.empty(N, D, dtype=dtype, **cuda),
        torch.empty(V, D, dtype=dtype, **cuda),
        bias,
        targets,
        weights,
        terms,
        dtype,
    )


def cases():
    """Yield name, problem and paths of what is compiled."""
    both, rows = (launch.ChunkedPath, launch.FusedPath), (launch.ChunkedPath,)
    yield "V=1024 bf16", problem([1024], torch.bfloat16, True), both
    yield "V=4096 bf16, all terms", problem([4096], torch.bfloat16, False), both
    yield "V=16384 bf16", problem([16384], torch.bfloat16, True), rows
    yield "V=65536 bf16, all terms", problem([65536], torch.bfloat16, False), rows
    yield "K=8 unequal fp16", problem([1024, 1000, 777] + [512] * 5, torch.float16, False), both
    yield "V=4096 fp32", problem([4096], torch.float32, True), both


# Properties that a fake device does not have; 132 multiprocessors are an H200's.
launch.processors = lambda device: 132
launch.is_hopper = lambda device: int(sys.argv[1]) >= 90
binaries = compile_launches(
    kernel,
    (
        "row_kernel",
        "tile_statistics_kernel",
        "combine_kernel",
        "tile_gradient_kernel",
        "scale_kernel",
    ),
)
report = []
with FakeTensorMode():
    for case, inputs, paths in cases():
        for path in paths:
            binaries.clear()  # another case compiles the same kernels with other options
            path(inputs).gradients(slice(0, 4096), None)
            launch.scale_gradient(
                torch.empty(4096, 2048, device="cuda"),
                torch.empty((), device="cuda"),
                torch.empty((), dtype=torch.int64, device="cuda"),
                inputs.dtype,
            )
            report += [{"case": case, **resources(name, binary)} for name, binary in binaries]
print(json.dumps(report))
