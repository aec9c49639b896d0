"""`echox-bench loss`: the codec-head loss, forward and backward, beside what people use today."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from echox.bench.loss_contenders import EAGER, Contender, contenders
from echox.bench.measure import CallTime, machine, medians, peak_bytes
from echox.bench.tables import facts_line, number_text, table_lines, write_tables
from echox.core.device import device_named
from echox.core.errors import ConfigError
from echox.core.progress import progress
from echox.kernels.codec_head_loss import Impl, codec_head_loss

GPU_SHAPES = [
    "8192x2048x1024",
    "8192x2048x4096",
    "8192x2048x16384",
    "8192x2048x65536",
    "8192x2048x8*1024",
    "1024x2048x8*1024",
    "8192x4096x4096",
]
CPU_SHAPES = [
    "512x256x1024",
    "2048x256x1024",
    "2048x256x4096",
    "1024x512x16384",
    "2048x512x65536",
    "2048x256x8*1024",
]
# Relative Frobenius errors of gradients beyond which a result is marked as wrong; they are those of
# the tests.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-3, torch.float16: 5e-3}
NOT_MEASURED = "not yet measured"
PRODUCTS = "the three products"  # timed beside the contenders, as their lower bound
LOOP = "loop over heads"  # ending of the name of a contender that needs several codebooks


class Dtype(enum.Enum):
    """Precision of the inputs."""

    auto = "auto"  # bfloat16 on a GPU, float32 on a CPU
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


@dataclass(kw_only=True, slots=True)
class LossBenchConfig:
    """Compare the codec-head loss with PyTorch and libraries: time, memory and error.

    Raises:
        ConfigError: `repeats` is below 1, or a shape is written otherwise.
    """

    shapes: list[str] = field(default_factory=list)
    """Shapes as NxDxV (rows, channels, entries) or NxDxK*V for K codebooks; none takes the device's
    own list."""
    dtype: Dtype = Dtype.auto
    """Precision of the inputs; auto is bfloat16 on a GPU and float32 on a CPU."""
    repeats: int = 9
    """Timed calls of each contender at the least, whose median is taken; they alternate, short ones
    for two seconds."""
    only: list[str] = field(default_factory=list)
    """Contenders to measure, by name; none takes all."""
    peak_tflops: float | None = None
    """Matrix throughput the roofline is drawn from, in TFLOP/s; null measures the three bare matrix
    products instead."""
    seed: int = 0
    """Seed of the inputs."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    output: Path = Path("runs/bench/loss")
    """Where the tables go: this name with .md and .json."""

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise ConfigError(f"repeats must be at least 1, not {self.repeats}")
        for shape in self.shapes:
            Problem.parse(shape)


@dataclass(frozen=True, slots=True)
class Problem:
    """The shape of one loss.

    Hidden states are [N, D], the weight [K * V, D] and targets [N, K]: N rows, D channels, K
    codebooks of V entries.
    """

    rows: int
    channels: int
    codebooks: int
    entries: int

    @classmethod
    def parse(cls, text: str) -> Problem:
        """Parse a shape written as NxDxV or NxDxK*V.

        Raises:
            ConfigError: it is written otherwise, or a number is not positive.
        """
        try:
            rows, channels, entries = text.split("x")
            codebooks, _, size = entries.rpartition("*")
            numbers = (int(rows), int(channels), int(codebooks or 1), int(size))
        except ValueError as error:
            raise ConfigError(
                f"shape {text!r} is neither NxDxV nor NxDxK*V; "
                "write 8192x2048x4096 or 8192x2048x8*1024"
            ) from error
        if min(numbers) < 1:
            raise ConfigError(f"shape {text!r} must have positive numbers")
        return cls(*numbers)

    @property
    def flops(self) -> int:
        """Floating-point operations of the three matrix products, forward and backward."""
        # Two for each multiply-add, of N x D x K * V of them in each product.
        return 6 * self.rows * self.channels * self.codebooks * self.entries


@dataclass(frozen=True, slots=True)
class Line:
    """One contender on one shape; numbers are None where nothing was measured."""

    shape: str
    device: str
    dtype: str
    contender: str
    time_ms: float | None = None
    of_eager: float | None = None  # its time over PyTorch eager's
    cpu_ms: float | None = None  # of all the process's threads; on a GPU, to launch its work
    cpu_of_eager: float | None = None
    peak_mib: float | None = None
    roofline_share: float | None = None  # time of the three matrix products over the contender's
    loss_error: float | None = None  # relative, against float64
    gradient_error: float | None = None  # the larger one of hidden states and weight
    note: str = ""


def bench_loss(config: LossBenchConfig) -> None:
    """Measure all shapes, write the table after each of them, and print it.

    Raises:
        ConfigError: there is no such device.
    """
    device = device_named(config.device)
    facts = machine(device) | {"repeats": str(config.repeats)}
    lines: list[Line] = []
    for shape in progress(_shapes(config, device), "measuring", unit="shape"):
        lines += _measured(shape, config, device)
        page = table(lines, facts)
        results = {"machine": facts, "lines": [asdict(line) for line in lines]}
        write_tables(config.output, page, results)
    print(page)


def _shapes(config: LossBenchConfig, device: torch.device) -> Sequence[str]:
    return config.shapes or (GPU_SHAPES if device.type == "cuda" else CPU_SHAPES)


def _dtype(config: LossBenchConfig, device: torch.device) -> torch.dtype:
    if config.dtype is Dtype.auto:
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return getattr(torch, config.dtype.value)


@dataclass(frozen=True, slots=True)
class Inputs:
    """The inputs of one loss."""

    hidden: Tensor  # [N, D]
    weight: Tensor  # [K * V, D]
    targets: Tensor  # int64 [N, K]
    sizes: list[int]  # [K] entries of each codebook


def _inputs(problem: Problem, seed: int, device: torch.device, dtype: torch.dtype) -> Inputs:
    # Drawn on the CPU in float32, so that all devices and precisions have the same inputs.
    generator = torch.Generator().manual_seed(seed)
    N, D, K = problem.rows, problem.channels, problem.codebooks
    hidden = torch.randn(N, D, generator=generator)
    weight = torch.randn(K * problem.entries, D, generator=generator).mul_(D**-0.5)
    targets = torch.randint(problem.entries, (N, K), generator=generator)
    return Inputs(
        hidden.to(device, dtype).requires_grad_(),
        weight.to(device, dtype).requires_grad_(),
        targets.to(device),
        [problem.entries] * K,
    )


def _measured(shape: str, config: LossBenchConfig, device: torch.device) -> list[Line]:
    """The lines of all contenders on one shape."""
    # Or shapes measured before would count as recompilations, and too many of them end compilation.
    torch.compiler.reset()
    problem, dtype = Problem.parse(shape), _dtype(config, device)
    inputs = _inputs(problem, config.seed, device, dtype)
    truth = _truth(inputs)
    case = {"shape": shape, "device": device.type, "dtype": str(dtype).removeprefix("torch.")}
    lines, calls = {}, {}
    for contender in contenders(device):
        if config.only and contender.name not in config.only:
            continue
        # With one codebook the loop is plain eager.
        if contender.name.endswith(LOOP) and problem.codebooks == 1:
            continue
        lines[contender.name], call = _check(contender, inputs, truth, case)
        if call is not None:
            calls[contender.name] = call
    products = _products(inputs.hidden, inputs.weight)
    times = medians(calls | {PRODUCTS: products}, device, config.repeats)
    roofline_ms = times[PRODUCTS].wall_ms
    if config.peak_tflops is not None:
        roofline_ms = problem.flops / config.peak_tflops / 1e9
    for name, call in calls.items():
        # Apart from the timed calls, because the profiler that counts bytes slows a call down.
        lines[name] = dataclasses.replace(
            _timed(lines[name], times[name], times.get(EAGER)),
            peak_mib=peak_bytes(call, device) / 2**20,
            roofline_share=roofline_ms / times[name].wall_ms,
        )
    return list(lines.values())


def _timed(line: Line, time: CallTime, eager: CallTime | None) -> Line:
    """The line with its times; ratios only where eager was measured."""
    line = dataclasses.replace(line, time_ms=time.wall_ms, cpu_ms=time.cpu_ms)
    if eager is None:
        return line
    return dataclasses.replace(
        line,
        of_eager=time.wall_ms / eager.wall_ms,
        cpu_of_eager=time.cpu_ms / eager.cpu_ms,
    )


def _truth(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, and gradients of hidden states [N, D] and weight [V, D], in float64."""
    hidden, weight = (
        tensor.detach().double().requires_grad_() for tensor in (inputs.hidden, inputs.weight)
    )
    cuts = [sum(inputs.sizes[:k]) for k in range(len(inputs.sizes) + 1)]
    # In chunks: all float64 logits [N, K * V] of a large shape would take gigabytes.
    loss = codec_head_loss(hidden, weight, inputs.targets, segments=cuts, impl=Impl.torch).loss
    by_hidden, by_weight = torch.autograd.grad(loss, (hidden, weight))
    return loss.detach(), by_hidden, by_weight


def _check(
    contender: Contender,
    inputs: Inputs,
    truth: tuple[Tensor, Tensor, Tensor],
    case: dict[str, str],
) -> tuple[Line, Callable[[], object] | None]:
    """A line with the contender's errors, and the call to be timed; None where it fails."""
    line = Line(case["shape"], case["device"], case["dtype"], contender.name)
    function = contender.function
    if function is None:
        reason = f"{NOT_MEASURED}: {contender.reason}"
        return dataclasses.replace(line, note=reason), None

    def call() -> tuple[Tensor, tuple[Tensor, ...]]:
        loss = function(inputs.hidden, inputs.weight, inputs.targets, inputs.sizes)
        return loss, torch.autograd.grad(loss, (inputs.hidden, inputs.weight))

    try:
        loss, gradients = call()  # compiles, too
    except Exception as error:  # a rival that fails is a line of the table, not the end of it
        first, *_ = str(error).strip().splitlines() or [""]
        reason = f"{NOT_MEASURED}: {type(error).__name__}: {first}"
        return dataclasses.replace(line, note=reason), None
    loss_error, *gradient_errors = (
        _relative_error(tensor, target) for tensor, target in zip((loss, *gradients), truth)
    )
    gradient_error = max(gradient_errors)
    is_close = gradient_error <= TOLERANCE[inputs.hidden.dtype]
    note = "" if is_close else "gradients beyond tolerance"
    return dataclasses.replace(
        line, loss_error=loss_error, gradient_error=gradient_error, note=note
    ), call


def _relative_error(tensor: Tensor, truth: Tensor) -> float:
    return float((tensor.detach().double() - truth).norm() / truth.norm())


def _products(hidden: Tensor, weight: Tensor) -> Callable[[], object]:
    """The three matrix products alone: the lower bound of contenders that keep their logits."""
    x, w = hidden.detach(), weight.detach()
    scores = x @ w.T  # [N, V], allocated once

    def call() -> object:
        torch.mm(x, w.T, out=scores)
        # As the gradients of hidden states [N, D] and weight [V, D].
        return scores @ w, scores.T @ x

    return call


HEAD = [
    "shape",
    "device",
    "inputs",
    "who",
    "ms",
    "of eager",
    "CPU ms",
    "of eager's",
    "peak MiB",
    "of roofline",
    "loss error",
    "gradient error",
    "note",
]


def table(lines: Sequence[Line], facts: dict[str, str]) -> str:
    """Return the lines as a Markdown page.

    Args:
        lines: of all shapes.
        facts: about the machine.
    """
    page = [
        "# Codec-head loss, forward and backward",
        "",
        *table_lines(HEAD, map(_row, lines)),
        "",
        facts_line(facts),
        "",
        "Shapes are rows x channels x entries, K*V for K codebooks. On a GPU short calls are "
        "queued, up to 20, as in training; its CPU time",
        "is what it takes to give it its work. Times are medians, taken in turns in one process: "
        "where others",
        'use the machine too, trust the ratios ("of eager": time over PyTorch eager\'s) more than '
        "the milliseconds, and of them those of the",
        'time this process had on the CPU ("CPU ms", all its threads together), which does not '
        "count the others'; memory is the allocator's",
        "peak beyond the inputs, gradients included; the roofline is the time of the three bare "
        "matrix products; errors are against float64.",
    ]
    return "\n".join(page) + "\n"


def _row(line: Line) -> list[str]:
    return [
        line.shape,
        line.device,
        line.dtype,
        line.contender,
        number_text(line.time_ms, ".2f"),
        number_text(line.of_eager, ".2f"),
        number_text(line.cpu_ms, ".2f"),
        number_text(line.cpu_of_eager, ".2f"),
        number_text(line.peak_mib, ".1f"),
        number_text(line.roofline_share, ".0%"),
        number_text(line.loss_error, ".0e"),
        number_text(line.gradient_error, ".0e"),
        line.note,
    ]
