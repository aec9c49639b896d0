"""Time and peak memory of a call, on a CPU or a GPU."""

from __future__ import annotations

import gc
import importlib.metadata
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

PACKAGES = ("torch", "triton", "liger-kernel", "cut-cross-entropy")


# Rounds of short calls go on for this long, up to this many: a median of a few is worth little below ten milliseconds.
ROUNDS_S, MOST_ROUNDS = 2.0, 101


@dataclass(frozen=True, slots=True)
class Spent:
    """Median time of a call."""

    wall_ms: float
    cpu_ms: float | None  # of all the process's threads; None where a GPU computes


def medians(calls: Mapping[str, Callable[[], object]], device: torch.device, repeats: int) -> dict[str, Spent]:
    """Median times of each call, of `repeats` rounds or of more if they are short.

    The calls take turns, so that a slow spell of the machine meets them all. Time on the CPU does not count what other processes do
    meanwhile, only what they take from the caches.
    """
    times: dict[str, list[Spent]] = {name: [] for name in calls}
    start, rounds = time.perf_counter(), 0
    while rounds < repeats or (rounds < MOST_ROUNDS and time.perf_counter() - start < ROUNDS_S):
        for name, call in calls.items():
            times[name].append(_once(call, device))
        rounds += 1
    return {name: _median(found) for name, found in times.items()}


def _median(found: Sequence[Spent]) -> Spent:
    on_cpu = [spent.cpu_ms for spent in found if spent.cpu_ms is not None]
    return Spent(statistics.median(spent.wall_ms for spent in found), statistics.median(on_cpu) if on_cpu else None)


def _once(call: Callable[[], object], device: torch.device) -> Spent:
    if device.type != "cuda":
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        return Spent(1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu))
    before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(device)
    before.record()
    call()
    after.record()
    after.synchronize()
    return Spent(before.elapsed_time(after), None)


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """The most memory the call holds beyond what was held before, as PyTorch's allocator counts it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.autograd.profiler.profile(use_cpu=True, profile_memory=True) as profile:
        call()
    changes = sorted((event.start_ns(), event.nbytes()) for event in profile.kineto_results.events() if event.name() == "[memory]")
    held = peak = 0
    for _, nbytes in changes:
        held += nbytes
        peak = max(peak, held)
    return peak


def machine(device: torch.device) -> dict[str, str]:
    """Hardware, versions and commit, for a table's foot."""
    found = {"device": _device_name(device), "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found | {"commit": _commit()}


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor() or platform.machine())
    return f"{model}, {torch.get_num_threads()} of {os.cpu_count()} cores"


def _commit() -> str:
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
