"""Time and peak memory of a call, on a CPU or a GPU."""

from __future__ import annotations

import gc
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from echox.data.writing import appearing
from echox.number_format import cpu_name, measured

PACKAGES = ("torch", "triton", "transformers", "liger-kernel", "cut-cross-entropy", "flashinfer-python")

# Rounds of short calls go on for this long, up to this many: a median of a few is worth little below ten milliseconds.
ROUNDS_S, MOST_ROUNDS = 2.0, 101
# Short calls of a GPU are timed so many at once, or for so long: it then has its next call in the queue, as in training.
MOST_QUEUED, QUEUE_MS = 20, 10.0


@dataclass(frozen=True, slots=True)
class Spent:
    """Median time of a call."""

    wall_ms: float
    cpu_ms: float  # of all the process's threads; where a GPU computes, what it takes to give it its work


def medians(calls: Mapping[str, Callable[[], object]], device: torch.device, repeats: int) -> dict[str, Spent]:
    """Median times of each call, of `repeats` rounds or of more if they are short.

    The calls take turns, so that a slow spell of the machine meets them all. Time on the CPU does not count what other processes do
    meanwhile, only what they take from the caches.
    """
    queued = {name: _queued(call, device) for name, call in calls.items()}
    times: dict[str, list[Spent]] = {name: [] for name in calls}
    start, rounds = time.perf_counter(), 0
    while rounds < repeats or (rounds < MOST_ROUNDS and time.perf_counter() - start < ROUNDS_S):
        for name, call in calls.items():
            times[name].append(_spent(call, device, queued[name]))
        rounds += 1
    return {name: _median(found) for name, found in times.items()}


def _median(found: Sequence[Spent]) -> Spent:
    return Spent(statistics.median(spent.wall_ms for spent in found), statistics.median(spent.cpu_ms for spent in found))


def _queued(call: Callable[[], object], device: torch.device) -> int:
    """How many calls are timed at once."""
    if device.type != "cuda":
        return 1
    return max(1, min(MOST_QUEUED, int(QUEUE_MS / _spent(call, device, 1).wall_ms)))


def _spent(call: Callable[[], object], device: torch.device, count: int) -> Spent:
    """Time of one of `count` calls, one after the other."""
    if device.type != "cuda":
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(count):
            call()
        return Spent(1e3 * (time.perf_counter() - wall) / count, 1e3 * (time.process_time() - cpu) / count)
    before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(device)
    before.record()
    cpu = time.process_time()
    for _ in range(count):
        call()
    cpu = time.process_time() - cpu
    after.record()
    after.synchronize()
    return Spent(before.elapsed_time(after) / count, 1e3 * cpu / count)


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


def write_tables(output: Path, page: str, found: Mapping[str, object]) -> None:
    """Put a page and the same numbers for programs under one name, with .md and .json."""
    for ending, text in ((".md", page), (".json", json.dumps(found, indent=1) + "\n")):
        with appearing(Path(f"{output}{ending}")) as unfinished:
            unfinished.write_text(text, encoding="utf-8")


def machine(device: torch.device) -> dict[str, str]:
    """Hardware, versions and commit, for a table's foot."""
    found = {"device": _device_name(device), "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    if device.type == "cpu":
        found |= measured().rates
    return found | {"commit": _commit()}


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{cpu_name()}, {torch.get_num_threads()} of {os.cpu_count()} cores"


def _commit() -> str:
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
