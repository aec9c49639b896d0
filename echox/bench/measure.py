"""Time and peak memory of a call on a CPU or a GPU, and the machine they are measured on."""

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

from echox.core.number_format import cpu_name, measured

# Packages whose versions a table names, because they change its numbers.
PACKAGES = (
    "torch",
    "triton",
    "transformers",
    "liger-kernel",
    "cut-cross-entropy",
    "flashinfer-python",
)

# Rounds of short calls go on for this long, up to this many: a median of a few is worth little
# below ten milliseconds.
ROUNDS_S, MOST_ROUNDS = 2.0, 101
# Short calls of a GPU are timed so many at once, or for so long: it then has its next call in the
# queue, as in training.
MOST_QUEUED, QUEUE_MS = 20, 10.0


@dataclass(frozen=True, slots=True)
class CallTime:
    """Time of a call in milliseconds."""

    wall_ms: float
    cpu_ms: float  # of all the process's threads; for a GPU, the time to launch its work


def medians(
    calls: Mapping[str, Callable[[], object]], device: torch.device, repeats: int
) -> dict[str, CallTime]:
    """Measure the median times of several calls.

    The calls alternate, so that a slow spell of the machine slows all of them. CPU time does not
    count what other processes do meanwhile, only what they take from the caches.

    Args:
        calls: name -> call.
        device: where the calls compute.
        repeats: rounds at least; short calls have more.

    Returns:
        name -> median times.
    """
    queued = {name: _queued_calls(call, device) for name, call in calls.items()}
    times: dict[str, list[CallTime]] = {name: [] for name in calls}
    start_s, rounds = time.perf_counter(), 0
    while rounds < repeats or (rounds < MOST_ROUNDS and time.perf_counter() - start_s < ROUNDS_S):
        for name, call in calls.items():
            times[name].append(_time_calls(call, device, queued[name]))
        rounds += 1
    return {name: _median(of_call) for name, of_call in times.items()}


def _median(times: Sequence[CallTime]) -> CallTime:
    # Each by itself: the call of the median wall time need not have the median CPU time.
    return CallTime(
        statistics.median(one.wall_ms for one in times),
        statistics.median(one.cpu_ms for one in times),
    )


def _queued_calls(call: Callable[[], object], device: torch.device) -> int:
    """How many calls are timed at once."""
    if device.type != "cuda":
        return 1
    return max(1, min(MOST_QUEUED, int(QUEUE_MS / _time_calls(call, device, 1).wall_ms)))


def _time_calls(call: Callable[[], object], device: torch.device, count: int) -> CallTime:
    """Time of one of `count` calls, which follow each other."""
    if device.type != "cuda":
        start_s, cpu_start_s = time.perf_counter(), time.process_time()
        for _ in range(count):
            call()
        wall_s, cpu_s = time.perf_counter() - start_s, time.process_time() - cpu_start_s
        return CallTime(1e3 * wall_s / count, 1e3 * cpu_s / count)
    before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    # Events, because calls return before the GPU has computed them.
    torch.cuda.synchronize(device)
    before.record()
    cpu_start_s = time.process_time()
    for _ in range(count):
        call()
    # Before the wait, in which this process would spin.
    cpu_s = time.process_time() - cpu_start_s
    after.record()
    after.synchronize()
    return CallTime(before.elapsed_time(after) / count, 1e3 * cpu_s / count)


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """Measure the most bytes that a call holds beyond those held before.

    Args:
        call: what is measured; it is run once.
        device: whose memory is counted, as PyTorch's allocator counts it.
    """
    # Garbage of earlier calls would be freed during this one, and lower its peak.
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    # The CPU's allocator keeps no peak, so it is the largest sum of the profiled changes.
    with torch.autograd.profiler.profile(use_cpu=True, profile_memory=True) as profile:
        call()
    changes = sorted(
        (event.start_ns(), event.nbytes())
        for event in profile.kineto_results.events()
        if event.name() == "[memory]"
    )
    held = peak = 0
    for _, nbytes in changes:
        held += nbytes
        peak = max(peak, held)
    return peak


def machine(device: torch.device) -> dict[str, str]:
    """Return hardware, versions and commit by name, for the line below a table."""
    facts = {"device": _device_name(device), "python": platform.python_version()}
    for package in PACKAGES:
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            # Named all the same: it says why a contender is missing.
            facts[package] = "not installed"
    # Rates of matrix products, by which the CPU's number format is chosen.
    if device.type == "cpu":
        facts |= measured().rates
    return facts | {"commit": _commit()}


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{cpu_name()}, {torch.get_num_threads()} of {os.cpu_count()} cores"


def _commit() -> str:
    # Without tags, for a hash names a commit in every clone; "-dirty" tells of local changes.
    describe = ["describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    git = ["git", "-C", str(Path(__file__).parent), *describe]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    # An installed package is in no repository, and there may be no git.
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
