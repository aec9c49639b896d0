"""Samplers of a unit decoder, of echox and others: from hidden states to one token of each row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from echox.bench.measure import CallTime, medians
from echox.bench.tables import number_text, table_lines
from echox.core.packages import FLASHINFER
from echox.kernels.unit_decode import (
    Impl,
    UnitHead,
    UnitParams,
    UnitRequest,
    UnitState,
    reference,
    sample_units,
)

Step = Callable[[], Tensor]  # tokens [B]
Call = Callable[[], None]  # many steps
GREEDY_NAME = "product and argmax"  # the lower bound of every sampler
CHECKED_STEPS = 8  # whose tokens are compared with the reference


@dataclass(frozen=True, slots=True)
class SamplingProblem:
    """Sizes and sampling settings of one step.

    A step reads hidden states [B, D] with B rows and D channels, and a weight [V, D] of V entries.
    """

    rows: int
    channels: int
    entries: int
    temperature: float = 0.9
    top_k: int = 50
    top_p: float = 0.9

    def inputs(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Draw hidden states [B, D] and a weight [V, D]; scores have a deviation of about 2."""
        generator = torch.Generator().manual_seed(self.entries)
        hidden = torch.randn(self.rows, self.channels, generator=generator)
        weight = torch.randn(self.entries, self.channels, generator=generator)
        weight = weight * 2 * self.channels**-0.5
        return hidden.to(device, dtype), weight.to(device, dtype)

    @property
    def request(self) -> UnitRequest:
        """The sampling settings as a request of one row."""
        return UnitRequest(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)


@dataclass(frozen=True, slots=True)
class Sampler:
    """One implementation of a step.

    A step draws tokens [B] from hidden states [B, D].
    """

    name: str
    # Problem, hidden states [B, D] and weight [V, D] -> step; None where it cannot run.
    make: Callable[[SamplingProblem, Tensor, Tensor], Step] | None
    reason: str = ""  # why it cannot run


@dataclass(frozen=True, slots=True)
class SamplerTime:
    """Times of one sampler in microseconds; None where nothing was measured."""

    problem: SamplingProblem
    sampler: str
    eager_us: float | None = None  # a step, called from Python
    cpu_us: float | None = None  # the same, of the CPU's time
    graph_us: float | None = None  # a step inside a CUDA graph
    note: str = ""


def samplers(device: torch.device) -> list[Sampler]:
    """Return all samplers, those that cannot run on the device included."""
    ours = [Sampler("echox", _echox(Impl.auto))]
    # On a CPU both are the same.
    ours += [Sampler("echox torch", _echox(Impl.torch))] if device.type == "cuda" else []
    return [
        *ours,
        Sampler("eager top-k, top-p, multinomial", _eager),
        _flashinfer(device),
        Sampler(GREEDY_NAME, _greedy),
    ]


def sampler_times(
    problem: SamplingProblem,
    device: torch.device,
    dtype: torch.dtype,
    repeats: int = 9,
    steps: int = 50,
) -> list[SamplerTime]:
    """Measure the median time of a step of every sampler, in alternation.

    On a GPU a step is timed twice: called from Python, and within a CUDA graph.

    Args:
        problem: sizes and settings.
        device: the samplers run on.
        dtype: of hidden states [B, D] and weight [V, D].
        repeats: rounds at least.
        steps: steps of a timed call, and of a graph.

    Returns:
        a line for each sampler, those that cannot run included.
    """
    notes, eager, graphs = _prepare(problem, device, dtype, steps)
    eager_times = medians(eager, device, repeats)
    graph_times = medians(graphs, device, repeats)
    return [
        SamplerTime(
            problem,
            name,
            eager_us=_us(eager_times.get(name), "wall_ms", steps),
            cpu_us=_us(eager_times.get(name), "cpu_ms", steps),
            graph_us=_us(graph_times.get(name), "wall_ms", steps),
            note=note,
        )
        for name, note in notes.items()
    ]


def _prepare(
    problem: SamplingProblem, device: torch.device, dtype: torch.dtype, steps: int
) -> tuple[dict[str, str], dict[str, Call], dict[str, Call]]:
    """The note of each sampler, and its calls of so many steps: from Python, and as a graph."""
    hidden, weight = problem.inputs(device, dtype)
    notes: dict[str, str] = {}
    eager: dict[str, Call] = {}
    graphs: dict[str, Call] = {}
    for sampler in samplers(device):
        if sampler.make is None:
            notes[sampler.name] = sampler.reason
            continue
        step = sampler.make(problem, hidden, weight)
        notes[sampler.name] = _fault(step, problem, hidden, weight)
        eager[sampler.name] = _repeated(step, steps)
        if device.type == "cuda":
            graph, reason = captured(eager[sampler.name])
            # Wrong tokens matter more than a graph that cannot be captured.
            notes[sampler.name] = notes[sampler.name] or reason
            if graph is not None:
                graphs[sampler.name] = graph
    return notes, eager, graphs


def _us(time: CallTime | None, field: str, steps: int) -> float | None:
    """Microseconds of a step, of the milliseconds of a call with so many steps."""
    return None if time is None else 1e3 * getattr(time, field) / steps


def _repeated(step: Step, steps: int) -> Call:
    def call() -> None:
        for _ in range(steps):
            step()

    return call


def captured(call: Callable[[], object]) -> tuple[Call | None, str]:
    """Capture a call as a CUDA graph.

    Returns:
        replay: replays the graph; None where the call cannot be captured.
        reason: why it cannot, or empty.
    """
    # Warmed up on another stream, as PyTorch's documentation of CUDA graphs requires.
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            call()
    except RuntimeError as error:
        return None, f"cannot be captured: {str(error).splitlines()[0]}"
    return graph.replay, ""


def _fault(step: Step, problem: SamplingProblem, hidden: Tensor, weight: Tensor) -> str:
    """What is wrong with a sampler's tokens: each must be one the float64 reference could draw."""
    head = UnitHead.of(weight.detach().cpu().double())
    scores = reference.head_scores(hidden.cpu(), head)  # [B, V]
    params = UnitParams.of([problem.request], head)
    tokens = torch.stack([step() for _ in range(CHECKED_STEPS)]).cpu()  # [steps, B]
    supports = torch.stack([reference.support(row, 0, params) for row in scores])  # bool [B, V]
    share = float(supports.gather(1, tokens.T).float().mean())
    if share == 1:
        return ""
    return f"{1 - share:.0%} of its tokens are outside the reference's support"


def _echox(impl: Impl) -> Callable[[SamplingProblem, Tensor, Tensor], Step]:
    def make(problem: SamplingProblem, hidden: Tensor, weight: Tensor) -> Step:
        head, requests = UnitHead.of(weight), [problem.request] * problem.rows
        params, state = UnitParams.of(requests, head), UnitState.of(requests, head)
        return lambda: sample_units(hidden, head, params, state, impl=impl).tokens[:, 0]

    return make


def _eager(problem: SamplingProblem, hidden: Tensor, weight: Tensor) -> Step:
    """As generation loops are commonly written: each filter over the whole vocabulary in turn."""

    def step() -> Tensor:
        scores = F.linear(hidden, weight).float() / problem.temperature
        kth = scores.topk(problem.top_k).values[:, -1:]
        scores = scores.masked_fill(scores < kth, float("-inf"))
        rising, order = scores.sort(dim=-1)
        drop = rising.softmax(-1).cumsum(-1) <= 1 - problem.top_p
        drop[:, -1] = False  # the likeliest token always stays
        scores = scores.masked_fill(drop.scatter(1, order, drop), float("-inf"))
        return torch.multinomial(scores.softmax(-1), 1)[:, 0]

    return step


def _greedy(problem: SamplingProblem, hidden: Tensor, weight: Tensor) -> Step:
    return lambda: F.linear(hidden, weight).argmax(-1)


def _flashinfer(device: torch.device) -> Sampler:
    name = "FlashInfer"
    if not FLASHINFER.is_installed():
        return Sampler(name, None, "not installed")
    if device.type != "cuda":
        return Sampler(name, None, "needs a GPU")
    try:
        function = FLASHINFER.load("sampling").top_k_top_p_sampling_from_logits
    except (ImportError, RuntimeError, AttributeError) as error:
        return Sampler(name, None, f"cannot be loaded: {str(error).splitlines()[0]}")

    def make(problem: SamplingProblem, hidden: Tensor, weight: Tensor) -> Step:
        seed = torch.zeros(problem.rows, dtype=torch.int64, device=hidden.device)
        offset = torch.zeros_like(seed)

        def step() -> Tensor:
            # A tensor: an offset by value would be frozen in a captured graph, whose replays would
            # all draw the same tokens.
            offset.add_(32)  # more draws than rejection sampling may take
            scores = F.linear(hidden, weight).float() / problem.temperature
            return function(scores, problem.top_k, problem.top_p, seed=seed, offset=offset).long()

        return step

    return Sampler(name, make)


def sampler_table(lines: Sequence[SamplerTime]) -> str:
    """Return the lines as a Markdown table."""
    head = ["rows x channels x entries", "who", "us, eager", "CPU us", "us, in a graph", "note"]
    rows = []
    for line in lines:
        problem = line.problem
        size = f"{problem.rows}x{problem.channels}x{problem.entries}"
        times = (line.eager_us, line.cpu_us, line.graph_us)
        numbers = [number_text(time, ".1f") for time in times]
        rows.append([size, line.sampler, *numbers, line.note])
    return "\n".join(table_lines(head, rows)) + "\n"
