"""The number format in which a CPU multiplies fastest: measured once, kept with a run, the same for all that ask.

Flags do not tell: of two processors with AVX512-BF16, one multiplies bfloat16 twice as fast as float32 and another half as fast.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import platform
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from echox.errors import ConfigError
from echox.threads import on_threads

log = logging.getLogger(__name__)

FILE = "number_format.json"  # in a run's folder
VARIABLE = "ECHOX_CPU_PRECISION"
WORDS = {"fp32": False, "bf16": True}
# Rows, inputs and outputs of products as the small language model, Whisper base and T2C have them.
SHAPES = ((256, 576, 1536), (512, 512, 2048), (256, 256, 1024))
ROUNDS_S, FEWEST_ROUNDS, MOST_ROUNDS = 0.3, 4, 25


@dataclass(frozen=True, slots=True)
class NumberFormat:
    """How a CPU multiplies, and why."""

    bf16: bool
    chosen_by: str  # "measurement", or the environment variable
    float32_gflops: float | None = None  # of one thread; None where nothing was measured
    bfloat16_gflops: float | None = None
    cpu: str | None = None

    @property
    def rates(self) -> dict[str, str]:
        """Each format's measured rate, for people; none where nothing was measured."""
        found = {name_of(False): self.float32_gflops, name_of(True): self.bfloat16_gflops}
        return {name: f"{rate:.0f} GFLOP/s on one thread" for name, rate in found.items() if rate is not None}

    def __str__(self) -> str:
        rates = ", ".join(f"{name} {rate}" for name, rate in self.rates.items())
        return f"products in {name_of(self.bf16)} by {self.chosen_by}" + (f" ({rates} of {self.cpu})" if rates else "")


def name_of(bf16: bool) -> str:
    """The name of the format, by which caches of what was computed in it are told apart."""
    return "bfloat16" if bf16 else "float32"


def measured() -> NumberFormat:
    """Multiply in both formats, some 0.3 s long, and take the faster.

    What is timed is the processor's time of one thread, of which other processes take none; products of several threads wait for
    the last of them, which on a busy machine takes many times as long. The formats take turns, and medians count.
    """
    times_s: dict[torch.dtype, list[list[float]]] = {dtype: [[] for _ in SHAPES] for dtype in (torch.float32, torch.bfloat16)}
    began_s, rounds = time.perf_counter(), 0
    with on_threads(1):
        while rounds < FEWEST_ROUNDS or (rounds < MOST_ROUNDS and time.perf_counter() - began_s < ROUNDS_S):
            rounds += 1
            for number, shape in enumerate(SHAPES):
                for dtype, spent_s in times_s.items():
                    spent_s[number].append(_product_s(*shape, dtype))
    operations = sum(2 * rows * inputs * outputs for rows, inputs, outputs in SHAPES)
    float32, bfloat16 = (
        round(1e-9 * operations / sum(map(statistics.median, spent_s)), 1) for spent_s in times_s.values()
    )
    return NumberFormat(bfloat16 > float32, "measurement", float32, bfloat16, cpu_name())


@torch.inference_mode()
def _product_s(rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> float:
    """Seconds of the processor that one product takes on this thread."""
    # Ones, because random numbers would move the generator that a training run draws from.
    x, weight = torch.ones(rows, inputs, dtype=dtype), torch.ones(outputs, inputs, dtype=dtype)
    with torch.autocast("cpu", enabled=False):
        began_s = time.thread_time()
        torch.nn.functional.linear(x, weight)
        return time.thread_time() - began_s


def cpu_name() -> str:
    """What the processor calls itself."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


_adopted: NumberFormat | None = None


def number_format() -> NumberFormat:
    """What this process's CPU multiplies in: the user's word, what was adopted, or else what is measured now, once."""
    if (word := _users_word()) is not None:
        return word
    if _adopted is None:
        adopt(measured())
    return _adopted


def adopted() -> NumberFormat | None:
    """What a process that is started from here is to adopt; None where nothing was asked for yet."""
    return _adopted


def adopt(found: NumberFormat | None) -> None:
    """Multiply in this format from now on, unless the user's word is another; None measures when it is asked for."""
    global _adopted
    _adopted = found


@contextmanager
def kept_in(folder: str | Path, device: torch.device) -> Iterator[None]:
    """Within, multiply as was done when the work in `folder` began, here or on another machine; new work keeps today's format.

    The user's word is followed while it is given, and does not change what is kept.

    Args:
        device: where the work is done; on another than a CPU nothing is measured or kept.
    Raises:
        ConfigError: what the folder keeps cannot be read, or the user's word is none.
    """
    if device.type != "cpu":
        yield
        return
    before, kept = _adopted, _kept(Path(folder))
    if (word := _users_word()) is not None and word.bf16 != kept.bf16:
        log.warning("%s was begun in %s; %s says otherwise, so what is computed now differs", folder, kept, VARIABLE)
    adopt(kept)
    try:
        yield
    finally:
        adopt(before)


def recorded(about: Mapping[str, Any] | None) -> NumberFormat:
    """What a checkpoint's lineage says of the format it was trained in; the process's own where it says nothing."""
    return number_format() if about is None or _users_word() is not None else NumberFormat(**about)


def _kept(folder: Path) -> NumberFormat:
    path = folder / FILE
    if (found := _read(path)) is not None:
        return found
    folder.mkdir(parents=True, exist_ok=True)
    # Processes started together wait for the first one's choice.
    with FileLock(folder / f".{FILE}.lock"):
        if (found := _read(path)) is None:
            found = number_format()
            _write(path, found)
    return found


def _read(path: Path) -> NumberFormat | None:
    try:
        return NumberFormat(**json.loads(path.read_text("utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path} is damaged ({error}); delete it to have the number format measured again") from error


def _write(path: Path, found: NumberFormat) -> None:
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(json.dumps(dataclasses.asdict(found), indent=1) + "\n", "utf-8")
    unfinished.replace(path)


def _users_word() -> NumberFormat | None:
    word = os.environ.get(VARIABLE)
    if not word:
        return None
    if word not in WORDS:
        raise ConfigError(f"{VARIABLE} is {word!r}; use {' or '.join(WORDS)}, or unset it to have the faster one measured")
    return NumberFormat(WORDS[word], VARIABLE)
