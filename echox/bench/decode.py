"""`echox-bench decode`: the decode loop beside Hugging Face `generate`, the sampler beside an eager chain, an answer's time by part."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from echox.bench.answer import ANSWER_TOKENS, PROMPT_TOKENS, AnswerBench, AnswerTime
from echox.bench.decode_contenders import SamplerTime, SamplingProblem, sampler_table, sampler_times
from echox.bench.decode_loops import Contest, LoopProblem
from echox.bench.loss import Dtype
from echox.bench.measure import machine, medians, write_tables
from echox.device import device_named, multiplies_bf16_fast
from echox.errors import ConfigError
from echox.progress import progress
from echox.threads import on_threads

SHAPES = ["4x256", "6x512"]  # the demo's unit decoder, and the one of EchoX
BATCHES = [1, 8, 64]
GPU_SAMPLERS = [SamplingProblem(batch, 2048, 4096) for batch in BATCHES]
CPU_SAMPLERS = [SamplingProblem(batch, 512, 1024) for batch in BATCHES]


@dataclass(kw_only=True, slots=True)
class DecodeBenchConfig:
    """Unit decoding: the loop against Hugging Face generate, the sampler against an eager chain, and an answer's time by part."""

    shapes: list[str] = field(default_factory=list)
    """Unit decoders as LxC (layers x channels, heads of 64 channels); none takes 4x256 and 6x512."""
    batches: list[int] = field(default_factory=lambda: list(BATCHES))
    """Rows that are decoded together."""
    words: int = 1000
    """Words of the unit language."""
    tokens: int = 64
    """Words that every row says."""
    threads: list[int] = field(default_factory=list)
    """CPU threads, each measured in turn; none takes PyTorch's present number."""
    dtype: Dtype = Dtype.auto
    """Precision of the weights; auto is bfloat16 on a GPU, and float32 on a CPU, and bfloat16 too where it multiplies that fast."""
    repeats: int = 3
    """Timed runs of each contender, whose median is taken; they take turns."""
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
            raise ConfigError(f"batches {self.batches} and threads {self.threads} must be positive numbers")
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
    step_us: float | None = None
    tokens_per_s: float | None = None
    of_echox: float | None = None  # its time over echox's
    cpu_us: float | None = None  # of a step, all the process's threads together
    cpu_of_echox: float | None = None
    note: str = ""


def bench_decode(config: DecodeBenchConfig) -> None:
    """Measure, print and write the tables; what was measured is written after every part."""
    device = device_named(config.device)
    facts = machine(device) | {"repeats": str(config.repeats)}
    loops: list[LoopTime] = []
    samplers: list[SamplerTime] = []
    answers: list[AnswerTime] = []
    parts = [(loops, _loop_times(config, device))]
    if config.sampler:
        parts.append((samplers, _sampler_times(config, device)))
    if config.answer:
        parts.append((answers, _answer_times(config, device)))
    for lines, measured in parts:
        for some in measured:
            lines += some
            page = _page(config, loops, samplers, answers, facts)
            found = {"loops": loops, "samplers": samplers, "answers": answers}
            write_tables(config.output, page, {"machine": facts} | {name: [asdict(line) for line in lines] for name, lines in found.items()})
    print(page)


def _loop_times(config: DecodeBenchConfig, device: torch.device) -> Iterator[list[LoopTime]]:
    shapes = config.shapes or SHAPES
    threads = config.threads or [torch.get_num_threads()]
    cases = list(itertools.product(_dtypes(config, device), shapes, config.batches, threads))
    yield from (_measured(*case, config, device) for case in progress(cases, "measuring", unit="case"))


def _dtypes(config: DecodeBenchConfig, device: torch.device) -> list[torch.dtype]:
    if config.dtype is not Dtype.auto:
        return [getattr(torch, config.dtype.value)]
    if device.type == "cuda":
        return [torch.bfloat16]
    return [torch.float32, *([torch.bfloat16] if multiplies_bf16_fast(device) else [])]


def _measured(dtype: torch.dtype, shape: str, batch: int, threads: int, config: DecodeBenchConfig, device: torch.device) -> list[LoopTime]:
    problem = LoopProblem(*LoopProblem.size_of(shape), batch, config.words, config.tokens, config.seed)
    where = (shape, batch, device.type, threads, str(dtype).removeprefix("torch."))
    with on_threads(threads):
        calls = Contest(problem, device, dtype).calls()
        said = {name: call() for name, call in calls.items()}  # the first run is not timed
        times = medians(calls, device, config.repeats)
    lines = []
    for name, spent in times.items():
        equal = float((said[name] == said["echox"]).float().mean())
        note = "" if equal == 1 else f"{1 - equal:.1%} of its words are others"
        per_step = 1e3 * spent.wall_ms / config.tokens
        on_cpu = 1e3 * spent.cpu_ms / config.tokens, spent.cpu_ms / times["echox"].cpu_ms
        lines.append(LoopTime(*where, name, per_step, 1e6 * batch / per_step, spent.wall_ms / times["echox"].wall_ms, *on_cpu, note))
    return lines


def _sampler_times(config: DecodeBenchConfig, device: torch.device) -> Iterator[list[SamplerTime]]:
    problems, dtype = (GPU_SAMPLERS, torch.bfloat16) if device.type == "cuda" else (CPU_SAMPLERS, torch.float32)
    yield from (sampler_times(problem, device, dtype, config.repeats) for problem in problems)


def _answer_times(config: DecodeBenchConfig, device: torch.device) -> Iterator[list[AnswerTime]]:
    bench = AnswerBench(device, config.seed)
    yield from ([bench.measured(batch)] for batch in (1, 16))


def _page(
    config: DecodeBenchConfig,
    loops: Sequence[LoopTime],
    samplers: Sequence[SamplerTime],
    answers: Sequence[AnswerTime],
    facts: dict[str, str],
) -> str:
    """All tables as a Markdown page."""
    page = ["# Unit decoding", "", _table(LOOP_HEAD, [_loop_row(line) for line in loops])]
    page += [
        f"Layers x channels, {config.words} words, {config.tokens} greedy words a row, prompt included; medians of runs taken in turns. CPU time",
        "is this process's, all threads together: where others use the machine too, its ratios are those to trust. In bfloat16 words may differ:",
        "untrained, scores are close to each other, and roundings decide between them.",
        "",
    ]
    if samplers:
        page += ["## Head and sampling: top-k 50, top-p 0.9, temperature 0.9", "", sampler_table(samplers)]
    if answers:
        page += ["## An answer, by part", "", _table(ANSWER_HEAD, [_answer_row(line) for line in answers])]
        page += [
            f"Seconds of a batch: a language model of SmolLM2-135M's shapes says {ANSWER_TOKENS} tokens after {PROMPT_TOKENS}, the demo's unit",
            "decoder speaks them, words become units, and a unit HiFi-GAN of the public size sounds them. Untrained: tokens end by rule and",
            "units are short.",
            "",
        ]
    return "\n".join([*page, "; ".join(f"{name} {value}" for name, value in facts.items()) + "."]) + "\n"


LOOP_HEAD = ["decoder", "batch", "device", "threads", "weights", "who", "us per step", "tokens/s", "time over echox's", "CPU us per step", "over echox's", "note"]
ANSWER_HEAD = ["batch", "LLM", "LLM by transformers", "units", "assembly", "vocoder", "speech"]


def _loop_row(line: LoopTime) -> list[str]:
    numbers = [_number(line.step_us, ".0f"), _number(line.tokens_per_s, ".0f"), _number(line.of_echox, ".2f")]
    numbers += [_number(line.cpu_us, ".0f"), _number(line.cpu_of_echox, ".2f")]
    return [line.shape, str(line.batch), line.device, str(line.threads or ""), line.dtype, line.contender, *numbers, line.note]


def _answer_row(line: AnswerTime) -> list[str]:
    parts = (line.text_s, line.library_text_s, line.units_s, line.assembly_s, line.vocoder_s, line.speech_s)
    return [str(line.batch), *(f"{seconds:.4f}" for seconds in parts)]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]) + "\n"
