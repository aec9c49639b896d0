"""The number format in which a CPU multiplies fastest: measured once, then kept with a run.

The processor's feature flags cannot replace the measurement: of two processors with
AVX512-BF16, one multiplies bfloat16 twice as fast as float32 and another half as fast.
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

from echox.core.errors import ConfigError
from echox.core.files import atomic_write, make_folder, translate_disk_faults
from echox.core.threads import on_threads

log = logging.getLogger(__name__)

FILE = "number_format.json"  # in a run's folder
VARIABLE = "ECHOX_CPU_PRECISION"  # of the environment: the user's choice
PRECISIONS = {"fp32": False, "bf16": True}  # values of VARIABLE -> whether products use bfloat16
# Rows, inputs and outputs of products as the small language model, Whisper base and T2C have.
SHAPES = ((256, 576, 1536), (512, 512, 2048), (256, 256, 1024))
# Seconds that rounds are repeated for, and bounds on their number: a median needs a few rounds
# on a slow machine, and gains nothing from more of them on a fast one.
ROUNDS_S, FEWEST_ROUNDS, MOST_ROUNDS = 0.3, 4, 25


@dataclass(frozen=True, slots=True)
class NumberFormat:
    """The number format of a CPU's matrix products, and the reason for it."""

    bf16: bool
    chosen_by: str  # "measurement", or the environment variable
    float32_gflops: float | None = None  # GFLOP/s of one thread; None if nothing was measured
    bfloat16_gflops: float | None = None
    cpu: str | None = None

    @property
    def rates(self) -> dict[str, str]:
        """Format -> measured rate as text in GFLOP/s; empty if nothing was measured."""
        gflops = {name_of(False): self.float32_gflops, name_of(True): self.bfloat16_gflops}
        return {
            name: f"{rate:.0f} GFLOP/s on one thread"
            for name, rate in gflops.items()
            if rate is not None
        }

    def __str__(self) -> str:
        rates = ", ".join(f"{name} {rate}" for name, rate in self.rates.items())
        measurement = f" ({rates} of {self.cpu})" if rates else ""
        return f"products in {name_of(self.bf16)} by {self.chosen_by}{measurement}"


def name_of(bf16: bool) -> str:
    """Return the name of a number format, "bfloat16" or "float32".

    It is part of the keys of caches, because results computed in the two formats differ.
    """
    return "bfloat16" if bf16 else "float32"


def measured() -> NumberFormat:
    """Time products in both formats for about 0.3 seconds and choose the faster format.

    Each product is [R, I] x [I, O] for the rows, inputs and outputs of one of `SHAPES`.
    """
    times_s = _times_of_products_s()
    # A multiplication and an addition for each element of the product.
    operations = sum(2 * rows * inputs * outputs for rows, inputs, outputs in SHAPES)
    # Medians, so that a round that another process disturbed decides nothing.
    float32, bfloat16 = (
        round(1e-9 * operations / sum(map(statistics.median, shape_times_s)), 1)
        for shape_times_s in times_s.values()
    )
    return NumberFormat(bfloat16 > float32, "measurement", float32, bfloat16, cpu_name())


def _times_of_products_s() -> dict[torch.dtype, list[list[float]]]:
    """Return the seconds of each product: format -> one list for each of `SHAPES`."""
    times_s: dict[torch.dtype, list[list[float]]] = {
        dtype: [[] for _ in SHAPES] for dtype in (torch.float32, torch.bfloat16)
    }
    began_s, rounds = time.perf_counter(), 0
    # One thread: products of several threads wait for the last of them, which on a busy machine
    # takes many times as long.
    with on_threads(1):
        while rounds < FEWEST_ROUNDS or (
            rounds < MOST_ROUNDS and time.perf_counter() - began_s < ROUNDS_S
        ):
            rounds += 1
            for number, shape in enumerate(SHAPES):
                # The formats alternate, so that a change of the clock rate meets both.
                for dtype, shape_times_s in times_s.items():
                    shape_times_s[number].append(_product_s(*shape, dtype))
    return times_s


@torch.inference_mode()
def _product_s(rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> float:
    """Return the processor seconds of one product on this thread."""
    # Ones, because random numbers would move the generator that a training run draws from.
    x, weight = torch.ones(rows, inputs, dtype=dtype), torch.ones(outputs, inputs, dtype=dtype)
    # A caller's autocast would turn the float32 product into a bfloat16 one.
    with torch.autocast("cpu", enabled=False):
        # The thread's own time: seconds in which another process had the core do not count.
        began_s = time.thread_time()
        torch.nn.functional.linear(x, weight)
        return time.thread_time() - began_s


def cpu_name() -> str:
    """Return the model name of the processor."""
    # On Linux `platform.processor()` is empty or the architecture alone.
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


_adopted: NumberFormat | None = None  # of this process; measured when it is first asked for


def number_format() -> NumberFormat:
    """Return the number format of this process's CPU.

    It is the user's choice in the environment, else the adopted format, else the one that is
    measured at the first call.

    Raises:
        ConfigError: the environment variable has an unknown value.
    """
    if (choice := _users_choice()) is not None:
        return choice
    if _adopted is not None:
        return _adopted
    adopt(choice := measured())
    return choice


def adopted() -> NumberFormat | None:
    """Return the format that child processes should adopt, or None if none was chosen yet."""
    return _adopted


def adopt(choice: NumberFormat | None) -> None:
    """Use a number format from now on, unless the user's choice is another one.

    Args:
        choice: the format; None measures it when it is next asked for.
    """
    global _adopted
    _adopted = choice


@contextmanager
def kept_in(folder: str | Path, device: torch.device) -> Iterator[None]:
    """Use, within a block, the number format in which the work in `folder` began.

    New work keeps this process's format in the folder, so that it continues in the same format
    on another machine. The user's choice goes first, and does not change what a folder keeps.

    Args:
        folder: the run's folder.
        device: where the work is done; unless it is a CPU, nothing is measured or kept.

    Raises:
        ConfigError: the folder's file is damaged, or the user's choice has an unknown value.
    """
    if device.type != "cpu":
        yield
        return
    before, run_format = _adopted, _format_of_run(Path(folder))
    _warn_if_user_differs(folder, run_format)
    adopt(run_format)
    try:
        yield
    finally:
        adopt(before)


def _warn_if_user_differs(folder: str | Path, run_format: NumberFormat) -> None:
    if (choice := _users_choice()) is not None and choice.bf16 != run_format.bf16:
        log.warning(
            "%s was begun in %s; %s says otherwise, so what is computed now differs",
            folder,
            run_format,
            VARIABLE,
        )


def recorded(about: Mapping[str, Any] | None) -> NumberFormat:
    """Return the format in which a checkpoint was trained, unless the user chose another one.

    Args:
        about: the fields of a `NumberFormat`, from a checkpoint's lineage; None, as in
            checkpoints without them, is this process's own format.

    Raises:
        ConfigError: the environment variable has an unknown value.
    """
    if about is None or _users_choice() is not None:
        return number_format()
    return NumberFormat(**about)


def _format_of_run(folder: Path) -> NumberFormat:
    path = folder / FILE
    if (run_format := _read(path)) is not None:
        return run_format
    make_folder(folder)
    # Processes that start together wait for the first one's choice.
    with translate_disk_faults(path), FileLock(folder / f".{FILE}.lock"):
        # Another process may have written the file while this one waited for the lock.
        if (run_format := _read(path)) is None:
            run_format = number_format()
            _write(path, run_format)
    return run_format


def _read(path: Path) -> NumberFormat | None:
    try:
        return NumberFormat(**json.loads(path.read_text("utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"{path} is damaged ({error}); delete it to have the number format measured again"
        ) from error


def _write(path: Path, choice: NumberFormat) -> None:
    # Atomic, because others read the file without the lock.
    with atomic_write(path) as unfinished:
        unfinished.write_text(json.dumps(dataclasses.asdict(choice), indent=1) + "\n", "utf-8")


def _users_choice() -> NumberFormat | None:
    word = os.environ.get(VARIABLE)
    if not word:
        return None
    if word not in PRECISIONS:
        raise ConfigError(
            f"{VARIABLE} is {word!r}; use {' or '.join(PRECISIONS)}, "
            "or unset it to have the faster one measured"
        )
    return NumberFormat(PRECISIONS[word], VARIABLE)
