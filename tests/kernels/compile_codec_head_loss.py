"""Compiles the codec-head loss's kernels for an NVIDIA architecture, with no GPU, and prints what each needs as JSON.

The launches are the real ones: problems of fake CUDA tensors walk through the shipped paths, and every launch is compiled instead of run.

usage: python compile_codec_head_loss.py 90
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import MockTensor

from echox.kernels.codec_head_loss import kernel, launch
from echox.kernels.codec_head_loss.passes import Problem
from echox.kernels.codec_head_loss.terms import Terms

CAPABILITY = int(sys.argv[1])
PTXAS = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"


class Driver:
    """As much of a driver as compiling asks for."""

    def get_current_target(self):
        return GPUTarget("cuda", CAPABILITY, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


class Compiled:
    """Stands in for a kernel: launching it compiles it."""

    def __init__(self, function):
        self.function = function

    def __getitem__(self, grid):
        def launched(*args, **options):
            if any(name == self.function.__name__ for name, _ in found):
                return  # another chunk of the same
            mocks = [MockTensor(arg.dtype) if isinstance(arg, torch.Tensor) else arg for arg in args]
            found.append((self.function.__name__, self.function.warmup(*mocks, grid=grid, **options)))

        return launched


def resources(name, compiled):
    """Registers, spilled bytes and shared memory, as ptxas counts them."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(compiled.asm["ptx"], encoding="utf-8")
        arch = "sm_90a" if CAPABILITY == 90 else f"sm_{CAPABILITY}"
        done = subprocess.run([PTXAS, "-v", f"--gpu-name={arch}", source, "-o", Path(folder) / "out"], capture_output=True, text=True, check=True)
    spills = sum(map(int, re.findall(r"(\d+) bytes spill", done.stderr)))
    registers = int(re.search(r"Used (\d+) registers", done.stderr)[1])
    tensor_cores = "wgmma" in compiled.asm["ptx"] or "mma.sync" in compiled.asm["ptx"]
    threads, shared = 32 * compiled.metadata.num_warps, compiled.metadata.shared
    return {"kernel": name, "registers": registers, "threads": threads, "spilled_bytes": spills, "shared_bytes": shared, "tensor_cores": tensor_cores}


def problem(sizes, dtype, plain):
    N, D, V = 4096, 2048, sum(sizes)
    cuts = [0]
    for size in sizes:
        cuts.append(cuts[-1] + size)
    terms = Terms(tuple(cuts)) if plain else Terms(tuple(cuts), label_smoothing=0.1, z_loss=1e-4, softcap=30.0, temperature=0.8)
    cuda = {"device": "cuda"}
    bias = None if plain else torch.empty(V, dtype=dtype, **cuda)
    weights = None if plain else torch.empty(N, len(sizes), **cuda)
    targets = torch.empty(N, len(sizes), dtype=torch.int64, **cuda)
    return Problem(torch.empty(N, D, dtype=dtype, **cuda), torch.empty(V, D, dtype=dtype, **cuda), bias, targets, weights, terms, dtype)


def cases():
    """Name, problem and paths of what is compiled."""
    both, rows = (launch.ChunkedPath, launch.FusedPath), (launch.ChunkedPath,)
    yield "V=1024 bf16", problem([1024], torch.bfloat16, True), both
    yield "V=4096 bf16, all terms", problem([4096], torch.bfloat16, False), both
    yield "V=16384 bf16", problem([16384], torch.bfloat16, True), rows
    yield "V=65536 bf16, all terms", problem([65536], torch.bfloat16, False), rows
    yield "K=8 unequal fp16", problem([1024, 1000, 777] + [512] * 5, torch.float16, False), both
    yield "V=4096 fp32", problem([4096], torch.float32, True), both


triton.runtime.driver.set_active(Driver())
launch.processors = lambda device: 132
for name in ("row_kernel", "tile_statistics_kernel", "combine_kernel", "tile_gradient_kernel"):
    setattr(kernel, name, Compiled(getattr(kernel, name)))
found, report = [], []
with FakeTensorMode():
    for case, made, paths in cases():
        for path in paths:
            found.clear()
            path(made).gradients(slice(0, 4096), None)
            report += [{"case": case, **resources(name, compiled)} for name, compiled in found]
print(json.dumps(report))
