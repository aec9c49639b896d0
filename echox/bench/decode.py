"""`echox-bench decode`: speed of unit decoding.

It times the decode loop beside Hugging Face `generate`, the sampler beside an eager chain, and a
spoken answer by part.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from echox.bench.answer import ANSWER_TOKENS, PROMPT_TOKENS, AnswerBench, AnswerTime
from echox.bench.decode_contenders import SamplerTime, SamplingProblem, sampler_table, sampler_times
from echox.bench.decode_loops import LoopComparison, LoopProblem
from echox.bench.loss import Dtype
from echox.bench.measure import CallTime, machine, medians
from echox.bench.tables import facts_line, number_text, table_lines, write_tables
from echox.core.device import device_named, multiplies_bf16_fast
from echox.core.errors import ConfigError
from echox.core.progress import progress
from echox.core.threads import on_threads

SHAPES = ["4x256", "6x512"]  # the demo's unit decoder, and the one of EchoX
BATCHES = [1, 8, 64]
ANSWER_BATCHES = (1, 16)
# Rows, channels and entries; smaller ones on a CPU, which takes longer for a step.
GPU_SAMPLERS = [SamplingProblem(batch, 2048, 4096) for batch in BATCHES]
CPU_SAMPLERS = [SamplingProblem(batch, 512, 1024) for batch in BATCHES]


@dataclass(kw_only=True, slots=True)
class DecodeBenchConfig:
    """Time unit decoding beside Hugging Face generate, sampling, and the parts of an answer.

    Raises:
        ConfigError: a number is out of range, or a shape is written otherwise.
    """

    shapes: list[str] = field(default_factory=list)
    """Unit decoders as LxC (layers x channels, heads of 64 channels); none takes 4x256 and
    6x512."""
    batches: list[int] = field(default_factory=lambda: list(BATCHES))
    """Rows that are decoded together."""
    words: int = 1000
    """Words of the unit language."""
    tokens: int = 64
    """Words that are generated for each row."""
    threads: list[int] = field(default_factory=list)
    """CPU threads, each measured in turn; none takes PyTorch's present number."""
    dtype: Dtype = Dtype.auto
    """Precision of the weights; auto is bfloat16 on a GPU, and float32 on a CPU, and bfloat16 too
    where it multiplies that fast."""
    repeats: int = 3
    """Timed runs of each contender, whose median is taken; they alternate."""
    sampler: bool = True
    """Time the sampler beside an eager chain too."""
    answer: bool = True
    """Time the parts of spoken answers too."""
    seed: int = 0
    """Seed of weights and inputs."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    output: Path = Path("runs/bench/decode")
    """Where the tables go: this name with .md and .json."""

    def __post_init__(self) -> None:
        for name in ("words", "tokens", "repeats"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        if min([1, *self.batches, *self.threads]) < 1:
            raise ConfigError(
                f"batches {self.batches} and threads {self.threads} must be positive numbers"
            )
        # Refused here, before anything is measured.
        for shape in self.shapes:
            LoopProblem.size_of(shape)


@dataclass(frozen=True, slots=True)
class LoopTime:
    """One contender on one decoder and batch; numbers are None where nothing was measured."""

    shape: str
    batch: int
    device: str
    threads: int
    dtype: str
    contender: str
    step_us: float | None = None  # one unit token of all rows
    tokens_per_s: float | None = None
    of_echox: float | None = None  # its time over echox's
    cpu_us: float | None = None  # of a step, all the process's threads together
    cpu_of_echox: float | None = None
    note: str = ""


T = TypeVar("T")


def bench_decode(config: DecodeBenchConfig) -> None:
    """Measure unit decoding, write the tables after every part, and print them.

    Raises:
        ConfigError: there is no such device.
    """
    device = device_named(config.device)
    facts = machine(device) | {"repeats": str(config.repeats)}
    loops: list[LoopTime] = []
    samplers: list[SamplerTime] = []
    answers: list[AnswerTime] = []

    page = ""

    def measure(lines: list[T], measurements: Iterator[list[T]]) -> None:
        nonlocal page
        # A generator: lines are measured when they are asked for here.
        for measured in measurements:
            lines += measured
            # Everything again, so that an interrupted run leaves a complete page of its parts.
            page = _page(config, loops, samplers, answers, facts)
            results = {
                "machine": facts,
                "loops": [asdict(line) for line in loops],
                "samplers": [asdict(line) for line in samplers],
                "answers": [asdict(line) for line in answers],
            }
            write_tables(config.output, page, results)

    measure(loops, _loop_times(config, device))
    if config.sampler:
        measure(samplers, _sampler_times(config, device))
    if config.answer:
        measure(answers, _answer_times(config, device))
    print(page)


def _loop_times(config: DecodeBenchConfig, device: torch.device) -> Iterator[list[LoopTime]]:
    shapes = config.shapes or SHAPES
    threads = config.threads or [torch.get_num_threads()]
    cases = list(itertools.product(_dtypes(config, device), shapes, config.batches, threads))
    for case in progress(cases, "measuring", unit="case"):
        yield _measure(*case, config, device)


def _dtypes(config: DecodeBenchConfig, device: torch.device) -> list[torch.dtype]:
    if config.dtype is not Dtype.auto:
        return [getattr(torch, config.dtype.value)]
    if device.type == "cuda":
        return [torch.bfloat16]
    return [torch.float32, *([torch.bfloat16] if multiplies_bf16_fast(device) else [])]


def _measure(
    dtype: torch.dtype,
    shape: str,
    batch: int,
    threads: int,
    config: DecodeBenchConfig,
    device: torch.device,
) -> list[LoopTime]:
    """The lines of all contenders on one decoder, batch and number of threads."""
    size = LoopProblem.size_of(shape)
    problem = LoopProblem(*size, batch, config.words, config.tokens, config.seed)
    case = (shape, batch, device.type, threads, str(dtype).removeprefix("torch."))
    with on_threads(threads):
        calls = LoopComparison(problem, device, dtype).calls()
        # The first run is not timed; its tokens [B, N] show whether all compute the same.
        tokens = {name: call() for name, call in calls.items()}
        times = medians(calls, device, config.repeats)
    lines = []
    for name, time in times.items():
        note = _difference(tokens[name], tokens["echox"])
        lines.append(_loop_time(case, name, time, times["echox"], config.tokens, note))
    return lines


def _difference(tokens: Tensor, expected: Tensor) -> str:
    """What a table notes of a contender whose unit tokens [B, N] are not echox's."""
    equal = float((tokens == expected).float().mean())
    return "" if equal == 1 else f"{1 - equal:.1%} of its words are others"


def _loop_time(
    case: tuple[str, int, str, int, str],
    name: str,
    time: CallTime,
    echox: CallTime,
    steps: int,
    note: str,
) -> LoopTime:
    step_us = 1e3 * time.wall_ms / steps
    _, batch, *_ = case
    return LoopTime(
        *case,
        name,
        step_us=step_us,
        tokens_per_s=1e6 * batch / step_us,
        of_echox=time.wall_ms / echox.wall_ms,
        cpu_us=1e3 * time.cpu_ms / steps,
        cpu_of_echox=time.cpu_ms / echox.cpu_ms,
        note=note,
    )


def _sampler_times(config: DecodeBenchConfig, device: torch.device) -> Iterator[list[SamplerTime]]:
    # In the precision in which each device generates.
    is_gpu = device.type == "cuda"
    dtype = torch.bfloat16 if is_gpu else torch.float32
    for problem in GPU_SAMPLERS if is_gpu else CPU_SAMPLERS:
        yield sampler_times(problem, device, dtype, config.repeats)


def _answer_times(config: DecodeBenchConfig, device: torch.device) -> Iterator[list[AnswerTime]]:
    bench = AnswerBench(device, config.seed)
    for batch in ANSWER_BATCHES:
        yield [bench.measure(batch)]


def _page(
    config: DecodeBenchConfig,
    loops: Sequence[LoopTime],
    samplers: Sequence[SamplerTime],
    answers: Sequence[AnswerTime],
    facts: dict[str, str],
) -> str:
    """All tables as a Markdown page."""
    page = [
        "# Unit decoding",
        "",
        *table_lines(LOOP_HEAD, map(_loop_row, loops)),
        "",
        f"Layers x channels, {config.words} words, {config.tokens} greedy words a row, prompt "
        "included; medians of runs taken in turns. CPU time",
        "is this process's, all threads together: where others use the machine too, its ratios are "
        "those to trust. In bfloat16 words may differ:",
        "untrained, scores are close to each other, and roundings decide between them.",
        "",
    ]
    if samplers:
        title = "## Head and sampling: top-k 50, top-p 0.9, temperature 0.9"
        page += [title, "", sampler_table(samplers)]
    if answers:
        page += _answer_section(answers)
    return "\n".join([*page, facts_line(facts)]) + "\n"


def _answer_section(answers: Sequence[AnswerTime]) -> list[str]:
    return [
        "## An answer, by part",
        "",
        *table_lines(ANSWER_HEAD, map(_answer_row, answers)),
        "",
        f"Seconds of a batch: a language model of SmolLM2-135M's shapes says {ANSWER_TOKENS} "
        f"tokens after {PROMPT_TOKENS}, the demo's unit",
        "decoder speaks them, words become units, and a unit HiFi-GAN of the public size sounds "
        "them. Untrained: tokens end by rule and",
        "units are short.",
        "",
    ]


LOOP_HEAD = [
    "decoder",
    "batch",
    "device",
    "threads",
    "weights",
    "who",
    "us per step",
    "tokens/s",
    "time over echox's",
    "CPU us per step",
    "over echox's",
    "note",
]
ANSWER_HEAD = ["batch", "LLM", "LLM by transformers", "units", "assembly", "vocoder", "speech"]


def _loop_row(line: LoopTime) -> list[str]:
    return [
        line.shape,
        str(line.batch),
        line.device,
        str(line.threads or ""),
        line.dtype,
        line.contender,
        number_text(line.step_us, ".0f"),
        number_text(line.tokens_per_s, ".0f"),
        number_text(line.of_echox, ".2f"),
        number_text(line.cpu_us, ".0f"),
        number_text(line.cpu_of_echox, ".2f"),
        line.note,
    ]


def _answer_row(line: AnswerTime) -> list[str]:
    # In the order of the fields, which is that of `ANSWER_HEAD`.
    batch, *parts_s = astuple(line)
    return [str(batch), *(f"{seconds:.4f}" for seconds in parts_s)]
