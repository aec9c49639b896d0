"""`echox-bench loss`: the codec-head loss, forward and backward, against what people use today."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from echox.bench.loss_contenders import EAGER, Contender, contenders
from echox.bench.measure import Spent, machine, medians, peak_bytes, write_tables
from echox.device import device_named
from echox.errors import ConfigError
from echox.kernels.codec_head_loss import Impl, codec_head_loss
from echox.progress import progress

GPU_SHAPES = ["8192x2048x1024", "8192x2048x4096", "8192x2048x16384", "8192x2048x65536", "8192x2048x8*1024", "1024x2048x8*1024", "8192x4096x4096"]
CPU_SHAPES = ["512x256x1024", "2048x256x1024", "2048x256x4096", "1024x512x16384", "2048x512x65536", "2048x256x8*1024"]
# Relative Frobenius errors beyond which a result is marked as wrong, of gradients; they are those of the tests.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-3, torch.float16: 5e-3}
NOT_MEASURED = "not yet measured"


class Dtype(enum.Enum):
    """Precision of the inputs."""

    auto = "auto"  # bfloat16 on a GPU, float32 on a CPU
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


@dataclass(kw_only=True, slots=True)
class LossBenchConfig:
    """Time, memory and error of the codec-head loss, forward and backward, against PyTorch, Liger-Kernel and cut-cross-entropy."""

    shapes: list[str] = field(default_factory=list)
    """Shapes as NxDxV (rows, channels, entries) or NxDxK*V for K codebooks; none takes the device's own list."""
    dtype: Dtype = Dtype.auto
    """Precision of the inputs; auto is bfloat16 on a GPU and float32 on a CPU."""
    repeats: int = 9
    """Timed calls of each contender at the least, whose median is taken; they take turns, short ones for two seconds."""
    only: list[str] = field(default_factory=list)
    """Contenders to measure, by name; none takes all."""
    peak_tflops: float | None = None
    """Matrix throughput the roofline is drawn from, in TFLOP/s; null measures the three bare matrix products instead."""
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
    """The shape of one loss."""

    rows: int
    channels: int
    codebooks: int
    entries: int

    @classmethod
    def parse(cls, text: str) -> Problem:
        """NxDxV or NxDxK*V.

        Raises:
            ConfigError: it is neither.
        """
        try:
            rows, channels, entries = text.split("x")
            codebooks, _, size = entries.rpartition("*")
            found = cls(int(rows), int(channels), int(codebooks or 1), int(size))
        except ValueError as error:
            raise ConfigError(f"shape {text!r} is neither NxDxV nor NxDxK*V; write 8192x2048x4096 or 8192x2048x8*1024") from error
        if min(found.rows, found.channels, found.codebooks, found.entries) < 1:
            raise ConfigError(f"shape {text!r} must have positive numbers")
        return found

    @property
    def flops(self) -> int:
        """Of the three matrix products."""
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
    cpu_ms: float | None = None  # of all the process's threads; on a GPU, to give it its work
    cpu_of_eager: float | None = None
    peak_mib: float | None = None
    roofline_share: float | None = None  # time of the three matrix products over the contender's
    loss_error: float | None = None  # relative, against float64
    gradient_error: float | None = None  # the larger of hidden states' and weight's
    note: str = ""


def bench_loss(config: LossBenchConfig) -> None:
    """Measure, print and write the table; what was measured is written after every shape."""
    device = device_named(config.device)
    facts = machine(device) | {"repeats": str(config.repeats)}
    lines: list[Line] = []
    for shape in progress(_shapes(config, device), "measuring", unit="shape"):
        lines += _measured(shape, config, device)
        page = table(lines, facts)
        write_tables(config.output, page, {"machine": facts, "lines": [asdict(line) for line in lines]})
    print(page)


def _shapes(config: LossBenchConfig, device: torch.device) -> Sequence[str]:
    return config.shapes or (GPU_SHAPES if device.type == "cuda" else CPU_SHAPES)


def _dtype(config: LossBenchConfig, device: torch.device) -> torch.dtype:
    if config.dtype is Dtype.auto:
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return getattr(torch, config.dtype.value)


def _measured(shape: str, config: LossBenchConfig, device: torch.device) -> list[Line]:
    torch.compiler.reset()  # or shapes measured before would count as recompilations, and too many of them end compilation
    problem, dtype = Problem.parse(shape), _dtype(config, device)
    draw = torch.Generator().manual_seed(config.seed)
    V = problem.codebooks * problem.entries
    hidden = torch.randn(problem.rows, problem.channels, generator=draw).to(device, dtype).requires_grad_()
    weight = torch.randn(V, problem.channels, generator=draw).mul_(problem.channels**-0.5).to(device, dtype).requires_grad_()
    targets = torch.randint(problem.entries, (problem.rows, problem.codebooks), generator=draw).to(device)
    sizes = [problem.entries] * problem.codebooks
    truth = _truth(hidden, weight, targets, sizes)
    chosen = [contender for contender in contenders(device) if not config.only or contender.name in config.only]
    where = {"shape": shape, "device": device.type, "dtype": str(dtype).removeprefix("torch.")}
    lines, calls = {}, {}
    for contender in chosen:
        if contender.name.endswith("loop over heads") and problem.codebooks == 1:
            continue
        line, call = _tried(contender, (hidden, weight, targets, sizes), truth, where)
        lines[contender.name] = line
        if call is not None:
            calls[contender.name] = call
    floor = "the three products"
    times = medians(calls | {floor: _products(hidden, weight)}, device, config.repeats)
    floor_ms = times[floor].wall_ms if config.peak_tflops is None else problem.flops / config.peak_tflops / 1e9
    for name, call in calls.items():
        share = {"peak_mib": peak_bytes(call, device) / 2**20, "roofline_share": floor_ms / times[name].wall_ms}
        lines[name] = Line(**{**asdict(lines[name]), **_times(times[name], times.get(EAGER)), **share})
    return list(lines.values())


def _times(spent: Spent, eager: Spent | None) -> dict[str, float | None]:
    found = {"time_ms": spent.wall_ms, "cpu_ms": spent.cpu_ms}
    if eager is not None:
        found |= {"of_eager": spent.wall_ms / eager.wall_ms, "cpu_of_eager": spent.cpu_ms / eager.cpu_ms}
    return found


def _truth(hidden: Tensor, weight: Tensor, targets: Tensor, sizes: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and both gradients in float64, in chunks."""
    leaves = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]
    cuts = [sum(sizes[:k]) for k in range(len(sizes) + 1)]
    loss = codec_head_loss(*leaves, targets, segments=cuts, impl=Impl.torch).loss
    return loss.detach(), *torch.autograd.grad(loss, leaves)


def _tried(contender: Contender, inputs: tuple, truth: tuple[Tensor, Tensor, Tensor], where: dict[str, str]) -> tuple[Line, Callable[[], object] | None]:
    """A line with the contender's errors, and the call to be timed; None where it fails."""
    hidden, weight, targets, sizes = inputs
    line = {**where, "contender": contender.name}
    if contender.function is None:
        return Line(**line, note=f"{NOT_MEASURED}: {contender.reason}"), None

    def call() -> tuple[Tensor, tuple[Tensor, ...]]:
        loss = contender.function(hidden, weight, targets, sizes)
        return loss, torch.autograd.grad(loss, (hidden, weight))

    try:
        loss, gradients = call()  # compiles, too
    except Exception as error:  # a rival that fails is a line of the table, not the end of it
        return Line(**line, note=f"{NOT_MEASURED}: {type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"), None
    of_loss, *of_gradients = (_error(found, target) for found, target in zip((loss, *gradients), truth))
    worst = max(of_gradients)
    note = "" if worst <= TOLERANCE[hidden.dtype] else "gradients beyond tolerance"
    return Line(**line, loss_error=of_loss, gradient_error=worst, note=note), call


def _error(found: Tensor, truth: Tensor) -> float:
    return float((found.detach().double() - truth).norm() / truth.norm())


def _products(hidden: Tensor, weight: Tensor) -> Callable[[], object]:
    """The three matrix products and nothing else: the floor of every contender that keeps its logits."""
    x, w = hidden.detach(), weight.detach()
    scores = x @ w.T

    def call() -> object:
        torch.mm(x, w.T, out=scores)
        return scores @ w, scores.T @ x

    return call


def table(lines: Sequence[Line], facts: dict[str, str]) -> str:
    """The lines as a Markdown page."""
    head = ["shape", "device", "inputs", "who", "ms", "of eager", "CPU ms", "of eager's", "peak MiB", "of roofline", "loss error", "gradient error", "note"]
    rows = [head, ["---"] * len(head)]
    for line in lines:
        numbers = [_number(value, ".2f") for value in (line.time_ms, line.of_eager, line.cpu_ms, line.cpu_of_eager)]
        numbers += [_number(line.peak_mib, ".1f"), _number(line.roofline_share, ".0%")]
        errors = [_number(line.loss_error, ".0e"), _number(line.gradient_error, ".0e")]
        rows.append([line.shape, line.device, line.dtype, line.contender, *numbers, *errors, line.note])
    page = ["# Codec-head loss, forward and backward", "", *("| " + " | ".join(row) + " |" for row in rows), ""]
    page += ["; ".join(f"{name} {value}" for name, value in facts.items()) + ".", ""]
    page += [
        "Shapes are rows x channels x entries, K*V for K codebooks. On a GPU short calls are queued, up to 20, as in training; its CPU time",
        "is what it takes to give it its work. Times are medians, taken in turns in one process: where others",
        "use the machine too, trust the ratios (\"of eager\": time over PyTorch eager's) more than the milliseconds, and of them those of the",
        "time this process had on the CPU (\"CPU ms\", all its threads together), which does not count the others'; memory is the allocator's",
        "peak beyond the inputs, gradients included; the roofline is the time of the three bare matrix products; errors are against float64.",
    ]
    return "\n".join(page) + "\n"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
