"""Head and sampling of a unit decoder as echox and others compute them: hidden states in, one drawn token of each row out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from echox.bench.measure import Spent, medians
from echox.kernels.unit_decode import Impl, UnitHead, UnitParams, UnitRequest, UnitState, reference, sample_units
from echox.packages import FLASHINFER

Step = Callable[[], Tensor]  # tokens [B]
GREEDY_NAME = "product and argmax"  # the floor of whoever draws


@dataclass(frozen=True, slots=True)
class SamplingProblem:
    """One step's sizes and settings."""

    rows: int
    channels: int
    entries: int
    temperature: float = 0.9
    top_k: int = 50
    top_p: float = 0.9

    def inputs(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Hidden states [B, D] and weight [V, D] with scores of about 2 in size."""
        draw = torch.Generator().manual_seed(self.entries)
        hidden = torch.randn(self.rows, self.channels, generator=draw)
        weight = torch.randn(self.entries, self.channels, generator=draw) * 2 * self.channels**-0.5
        return hidden.to(device, dtype), weight.to(device, dtype)

    @property
    def request(self) -> UnitRequest:
        return UnitRequest(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)


@dataclass(frozen=True, slots=True)
class Sampler:
    """One way to take a step."""

    name: str
    make: Callable[[SamplingProblem, Tensor, Tensor], Step] | None  # None where it cannot be had
    reason: str = ""  # why it cannot


@dataclass(frozen=True, slots=True)
class SamplerTime:
    """What was measured of one sampler; numbers are None where nothing was."""

    problem: SamplingProblem
    sampler: str
    eager_us: float | None = None  # a step, called from Python
    cpu_us: float | None = None  # the same, of the CPU's time
    graph_us: float | None = None  # a step inside a CUDA graph
    note: str = ""


def samplers(device: torch.device) -> list[Sampler]:
    """All of them, also those that cannot run here."""
    found = [Sampler("echox", _echox(Impl.auto))]
    found += [Sampler("echox torch", _echox(Impl.torch))] if device.type == "cuda" else []
    return [*found, Sampler("eager top-k, top-p, multinomial", _eager), _flashinfer(device), Sampler(GREEDY_NAME, _greedy)]


def sampler_times(problem: SamplingProblem, device: torch.device, dtype: torch.dtype, repeats: int = 9, steps: int = 50) -> list[SamplerTime]:
    """Median time of a step of every sampler; they take turns, `steps` steps at a time.

    On a GPU a step is timed twice: called from Python, and within a graph of all `steps`.
    """
    hidden, weight = problem.inputs(device, dtype)
    lines, eager, graphs = {}, {}, {}
    for sampler in samplers(device):
        if sampler.make is None:
            lines[sampler.name] = SamplerTime(problem, sampler.name, note=sampler.reason)
            continue
        step = sampler.make(problem, hidden, weight)
        lines[sampler.name] = SamplerTime(problem, sampler.name, note=_fault(step, problem, hidden, weight))
        eager[sampler.name] = _many(step, steps)
        if device.type == "cuda":
            graphs[sampler.name], reason = captured(eager[sampler.name])
            lines[sampler.name] = SamplerTime(problem, sampler.name, note=lines[sampler.name].note or reason)
    of_eager = medians(eager, device, repeats)
    of_graph = medians({name: call for name, call in graphs.items() if call is not None}, device, repeats)
    found = []
    for name, line in lines.items():
        times = [_us(of_eager.get(name), "wall_ms", steps), _us(of_eager.get(name), "cpu_ms", steps), _us(of_graph.get(name), "wall_ms", steps)]
        found.append(SamplerTime(problem, name, *times, line.note))
    return found


def _us(spent: Spent | None, which: str, steps: int) -> float | None:
    return None if spent is None else 1e3 * getattr(spent, which) / steps


def _many(step: Step, steps: int) -> Callable[[], None]:
    def call() -> None:
        for _ in range(steps):
            step()

    return call


def captured(call: Callable[[], object]) -> tuple[Callable[[], None] | None, str]:
    """A call as one CUDA graph to replay, or the reason why it cannot be one."""
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
    scores = reference.head_scores(hidden.cpu(), head)
    params = UnitParams.of([problem.request], head)
    tokens = torch.stack([step() for _ in range(8)]).cpu()
    supports = torch.stack([reference.support(row, 0, params) for row in scores])
    share = supports.gather(1, tokens.T).float().mean()
    return "" if share == 1 else f"{1 - float(share):.0%} of its tokens are outside the reference's support"


def _echox(impl: Impl) -> Callable[[SamplingProblem, Tensor, Tensor], Step]:
    def make(problem: SamplingProblem, hidden: Tensor, weight: Tensor) -> Step:
        head, asked = UnitHead.of(weight), [problem.request] * problem.rows
        params, state = UnitParams.of(asked, head), UnitState.of(asked, head)
        return lambda: sample_units(hidden, head, params, state, impl=impl).tokens[:, 0]

    return make


def _eager(problem: SamplingProblem, hidden: Tensor, weight: Tensor) -> Step:
    """As generation loops are commonly written: filters one after the other, each over the whole vocabulary."""

    def step() -> Tensor:
        scores = F.linear(hidden, weight).float() / problem.temperature
        kth = scores.topk(problem.top_k).values[:, -1:]
        scores = scores.masked_fill(scores < kth, float("-inf"))
        rising, order = scores.sort(dim=-1)
        drop = rising.softmax(-1).cumsum(-1) <= 1 - problem.top_p
        drop[:, -1] = False
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
            # A seed by value would be frozen in a captured graph.
            offset.add_(32)  # more draws than rejection may take
            scores = F.linear(hidden, weight).float() / problem.temperature
            return function(scores, problem.top_k, problem.top_p, seed=seed, offset=offset).long()

        return step

    return Sampler(name, make)


def sampler_table(lines: Sequence[SamplerTime]) -> str:
    """The lines as a Markdown table."""
    head = ["rows x channels x entries", "who", "us, eager", "CPU us", "us, in a graph", "note"]
    rows = [head, ["---"] * len(head)]
    for line in lines:
        p = line.problem
        numbers = ["" if time is None else f"{time:.1f}" for time in (line.eager_us, line.cpu_us, line.graph_us)]
        rows.append([f"{p.rows}x{p.channels}x{p.entries}", line.sampler, *numbers, line.note])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"
