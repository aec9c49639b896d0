"""Compiles Triton kernels for an NVIDIA architecture that is not here, instead of running them.

The scripts beside this import it in a process of their own, where Triton is not interpreted; their
first argument is the architecture.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.runtime.jit import MockTensor

CAPABILITY = int(sys.argv[1])
PTXAS = get_ptxas(CAPABILITY).path  # Triton has several, and writes for the one it takes


class Driver:
    """The part of a driver that compiling needs."""

    def get_current_target(self):
        return GPUTarget("cuda", CAPABILITY, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


class Compiled:
    """Kernel whose launches compile it, once until `binaries` is emptied."""

    def __init__(self, function, binaries):
        self.function = function
        self.binaries = binaries

    def __getitem__(self, grid):
        def launch(*args, **options):
            if any(name == self.function.__name__ for name, _ in self.binaries):
                return
            mocks = [
                MockTensor(arg.dtype) if isinstance(arg, torch.Tensor) else arg for arg in args
            ]
            binary = self.function.warmup(*mocks, grid=grid, **options)
            self.binaries.append((self.function.__name__, binary))

        return launch


def compile_launches(module, names):
    """Replace a module's kernels by `Compiled`; return the list of (name, binary) they fill."""
    # Without a driver Triton refuses to compile on a machine that has no GPU.
    triton.runtime.driver.set_active(Driver())
    binaries = []
    for name in names:
        setattr(module, name, Compiled(getattr(module, name), binaries))
    return binaries


def resources(name, compiled):
    """Return registers, spilled bytes and shared memory, as ptxas counts them."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(compiled.asm["ptx"], encoding="utf-8")
        # Warp-group instructions are of the architecture-specific sm_90a alone.
        arch = "sm_90a" if CAPABILITY == 90 else f"sm_{CAPABILITY}"
        process = subprocess.run(
            [PTXAS, "-v", f"--gpu-name={arch}", source, "-o", Path(folder) / "out"],
            capture_output=True,
            text=True,
            check=True,
        )
    ptx = compiled.asm["ptx"]
    return {
        "kernel": name,
        "registers": int(re.search(r"Used (\d+) registers", process.stderr)[1]),
        "threads": 32 * compiled.metadata.num_warps,
        "spilled_bytes": sum(map(int, re.findall(r"(\d+) bytes spill", process.stderr))),
        "shared_bytes": compiled.metadata.shared,
        "tensor_cores": "wgmma" in ptx or "mma.sync" in ptx,
        "warp_groups": "wgmma" in ptx,
    }
