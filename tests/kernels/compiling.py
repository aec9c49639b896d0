"""Compiles Triton kernels for an NVIDIA architecture that is not here: launches are compiled instead of run.

The scripts beside this import it in a process of their own, where Triton is not interpreted; their first argument is the architecture.
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
    """As much of a driver as compiling asks for."""

    def get_current_target(self):
        return GPUTarget("cuda", CAPABILITY, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


class Compiled:
    """Stands in for a kernel: launching it compiles it, once until `found` is emptied."""

    def __init__(self, function, found):
        self.function = function
        self.found = found

    def __getitem__(self, grid):
        def launched(*args, **options):
            if any(name == self.function.__name__ for name, _ in self.found):
                return
            mocks = [MockTensor(arg.dtype) if isinstance(arg, torch.Tensor) else arg for arg in args]
            self.found.append((self.function.__name__, self.function.warmup(*mocks, grid=grid, **options)))

        return launched


def stand_in(module, names):
    """Put `Compiled` in the place of a module's kernels; the list of what they compile."""
    triton.runtime.driver.set_active(Driver())
    found = []
    for name in names:
        setattr(module, name, Compiled(getattr(module, name), found))
    return found


def resources(name, compiled):
    """Registers, spilled bytes and shared memory, as ptxas counts them."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(compiled.asm["ptx"], encoding="utf-8")
        arch = "sm_90a" if CAPABILITY == 90 else f"sm_{CAPABILITY}"
        done = subprocess.run([PTXAS, "-v", f"--gpu-name={arch}", source, "-o", Path(folder) / "out"], capture_output=True, text=True, check=True)
    ptx = compiled.asm["ptx"]
    return {
        "kernel": name,
        "registers": int(re.search(r"Used (\d+) registers", done.stderr)[1]),
        "threads": 32 * compiled.metadata.num_warps,
        "spilled_bytes": sum(map(int, re.findall(r"(\d+) bytes spill", done.stderr))),
        "shared_bytes": compiled.metadata.shared,
        "tensor_cores": "wgmma" in ptx or "mma.sync" in ptx,
        "warp_groups": "wgmma" in ptx,
    }
