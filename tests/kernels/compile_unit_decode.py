"""Compiles the kernels of unit decoding and of a decoder's step for an NVIDIA architecture.

It needs no GPU, and prints what each needs as JSON. The launches are the real ones: calls with fake
CUDA tensors go through the shipped code, and every launch is compiled instead of run.

usage: python compile_unit_decode.py 90
"""

import json

import torch
from compiling import compile_launches, resources
from torch._subclasses.fake_tensor import FakeTensorMode

from echox.kernels import decoder_step
from echox.kernels.decoder_step import apply_rotary_and_cache, fused_add_rmsnorm, gated
from echox.kernels.unit_decode import (
    UnitHead,
    UnitParams,
    UnitRequest,
    UnitState,
    kernel,
    sample_units,
)

CUDA = {"device": "cuda"}
torch.Tensor.pin_memory = lambda tensor: tensor  # there is no driver to pin memory with
STEP_NAMES = ("norm_kernel", "turn_kernel", "gate_kernel")
NAMES = ("head_kernel", "sample_kernel", "advance_kernel")


def step(B, D, sizes, dtype, plain=False):
    V = sum(sizes)
    cuts = [sum(sizes[:k]) for k in range(len(sizes) + 1)]
    bias = None if plain else torch.empty(V, dtype=dtype, **CUDA)
    table = None if plain else torch.empty(V, D, dtype=dtype, **CUDA)
    head = UnitHead.of(
        torch.empty(V, D, dtype=dtype, **CUDA),
        bias=bias,
        segments=cuts,
        softcap=None if plain else 30.0,
        embedding=table,
    )
    requests = [UnitRequest(temperature=0.8)] * B
    forced = None if plain else torch.empty(B, len(sizes), dtype=torch.int64, **CUDA)
    sample_units(
        torch.empty(B, D, dtype=dtype, **CUDA),
        head,
        UnitParams.of(requests, head),
        UnitState.of(requests, head),
        forced=forced,
    )


def layer(A, C, heads, groups, d, inside, dtype):
    more, norm = torch.empty(A, C, dtype=dtype, **CUDA), torch.empty(C, **CUDA)
    fused_add_rmsnorm(torch.empty(A, C, **CUDA), more, norm, 1e-5, dtype)
    table = torch.empty(2048, d, dtype=dtype, **CUDA)
    qkv = torch.empty(A, (heads + 2 * groups) * d, dtype=dtype, **CUDA)
    cache = torch.empty(2, 64, groups, 2048, d, dtype=dtype, **CUDA)
    apply_rotary_and_cache(
        qkv, torch.empty(A, dtype=torch.int64, **CUDA), table, table, cache, heads
    )
    gated(torch.empty(A, 2 * inside, dtype=dtype, **CUDA))


CASES = {
    "B=8 V=4096 bf16": lambda: step(8, 2048, [4096], torch.bfloat16),
    "B=64 V=16384 fp16, plain": lambda: step(64, 2048, [16384], torch.float16, plain=True),
    "B=8 K=8 unequal bf16": lambda: step(8, 1000, [1024, 1000, 777] + [512] * 5, torch.bfloat16),
    "B=8 V=500 fp32, plain": lambda: step(8, 1024, [500], torch.float32, plain=True),
    "layer of 512 channels bf16": lambda: layer(8, 512, 8, 8, 64, 2048, torch.bfloat16),
    "layer of 3072 channels fp32": lambda: layer(8, 3072, 24, 8, 96, 8192, torch.float32),
}

modules = ((kernel, NAMES), (decoder_step.kernel, STEP_NAMES))
by_module, report = [compile_launches(module, names) for module, names in modules], []
with FakeTensorMode():
    for case, call in CASES.items():
        for binaries in by_module:
            binaries.clear()  # another case compiles the same kernels with other options
        call()
        report += [
            {"case": case, **resources(name, binary)}
            for binaries in by_module
            for name, binary in binaries
        ]
print(json.dumps(report))
