"""Answering a whole manifest, or one file: one wav per row, and a line of JSON that says what was heard, thought and spoken."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


from echox import checkpoint
from echox.backbones.base import Turn
from echox.data.audio import audio_header, load_audio, refuse_ending, save_audio
from echox.data.manifest import Item, Manifest, Problem, Role, Row, examine_manifest, manifest_fingerprint, spelled_units
from echox.errors import ConfigError, EchoxError, SignalError
from echox.generation.answering import MAX_TOKENS, Answer, Answerer, Question
from echox.generation.live_run import PIPE, answer_live, refuse_output
from echox.generation.loading import load_answerer
from echox.generation.published import RELEASE_TOKENS, PublishedAnswerer, load_published_answerer
from echox.generation.records import ANSWERS, Records
from echox.models.segmenting import SegmentsConfig
from echox.models.published.folder import is_release, weights_fingerprint
from echox.progress import Bar, waiting

WAVS = "wavs"


@dataclass(kw_only=True, slots=True)
class GenerateConfig:
    """Answer spoken questions aloud: those of a manifest, or one file."""

    checkpoint: str = "runs/echo_mini/echo/final"
    """Finished checkpoint of the echo stage, or a published EchoX folder; one of s2t, and Soundwave, answer in text alone."""
    manifest: str | None = None
    """Manifest whose questions are answered."""
    input: str | None = None
    """One audio file to answer, instead of a manifest."""
    output: str = "answer.wav"
    """Audio file of that one answer; "-" streams raw 16-bit samples to stdout."""
    stream: bool = False
    """Give the one answer as it comes: text token by token, and speech segment by segment into a .wav that grows, or to stdout."""
    segments: SegmentsConfig | None = None
    """Where a stream is cut; null cuts as the checkpoint was trained."""
    out_dir: str = "answers"
    """Folder of a manifest's answers: answers.jsonl and wavs/."""
    batch_size: int = 16
    """Rows answered at once."""
    max_tokens: int | None = None
    """Text tokens of an answer at most; null takes 512 for a published folder and 64 for others."""
    device: str = "auto"
    """Device to run on: auto, cpu, cuda or cuda:N."""
    codec_folder: str | None = None
    """Where the codec lies, if it was moved since training."""
    encoder_folder: str | None = None
    """Where Whisper lies, for a published EchoX folder; otherwise its config.json says it."""
    allow_outside: bool = False
    """Allow audio outside the manifest's folder."""
    overwrite: bool = False
    """Answer everything anew, even what out_dir holds already."""
    plugin_dirs: list[str] = field(default_factory=list)
    """Folders of plugins beside ./plugins and ECHOX_PLUGINS; their code is run."""

    def __post_init__(self) -> None:
        if self.manifest and self.input:
            raise ConfigError("manifest and input are both given; give one of them")
        if self.manifest and (self.stream or self.output == PIPE):
            raise ConfigError("a stream is of one answer, and a manifest has many; give input=question.wav, or leave out stream=true and output=-")
        for name in ("batch_size", "max_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, and is {value}")

    @property
    def limit(self) -> int:
        """Text tokens of an answer at most, from this checkpoint."""
        if self.max_tokens is not None:
            return self.max_tokens
        return RELEASE_TOKENS if is_release(self.checkpoint) else MAX_TOKENS


def generate(config: GenerateConfig) -> int:
    """Answer what the config names.

    Returns:
        the exit code: 0, or 2 where not one row could be answered.
    Raises:
        ConfigError: there is no question, or out_dir holds the answers of another run.
        CheckpointError, ManifestError, SignalError: the checkpoint, the manifest or the one input cannot be used.
    """
    if config.input is not None:
        return _generate_one(config)
    if config.manifest is None:
        raise ConfigError("nothing to answer: give manifest=questions.jsonl, or input=question.wav output=answer.wav")
    return _generate_all(config)


def _load(config: GenerateConfig) -> Answerer | PublishedAnswerer:
    if is_release(config.checkpoint):
        return load_published_answerer(config.checkpoint, device=config.device, encoder_folder=config.encoder_folder, max_tokens=config.limit)
    return load_answerer(config.checkpoint, device=config.device, codec_folder=config.codec_folder, max_tokens=config.limit)


def _generate_one(config: GenerateConfig) -> int:
    # Wrong paths are said before models are loaded.
    audio_header(config.input)
    if config.stream or config.output == PIPE:
        refuse_output(config.output)
        answer_live(_load(config), config.input, config.output, config.segments)
        return 0
    refuse_ending(config.output)
    answerer = _load(config)
    with waiting("answering"):
        answer = answerer.answer([load_audio(config.input, answerer.rate_hz)])[0]
    cut = f" (cut at {config.limit} tokens; raise max_tokens to read on)" if answer.is_cut else ""
    print(f"heard:    {answer.heard}\nanswered: {answer.text}{cut}")
    if not answerer.speaks:
        print("not spoken: the checkpoint has no voice; give one of stage echo, or an EchoX folder, to hear the answer", file=sys.stderr)
        return 0
    if answer.samples is None:
        raise SignalError(f"the model has nothing to say to {config.input}, so {config.output} was not written")
    save_audio(config.output, answer.samples, answer.rate_hz)
    print(f"spoken:   {config.output} ({answer.seconds:.1f} s)")
    return 0


def _generate_all(config: GenerateConfig) -> int:
    manifest = examine_manifest(config.manifest, allow_outside=config.allow_outside)
    records = Records(Path(config.out_dir), _origin(config), overwrite=config.overwrite)
    lines = {row.id: line for row, line in zip(manifest.rows, manifest.lines)}
    records.add([_broken(problem) for problem in manifest.problems])
    missing = [row for row in manifest.rows if row.id not in records.kept]
    if missing:
        _answer_rows(_load(config), missing, lines, records, config.batch_size)
    return _summarise(records.in_order(_ids_in_order(manifest)), config)


def _origin(config: GenerateConfig) -> dict[str, Any]:
    folder = Path(config.checkpoint)
    return {
        "checkpoint": weights_fingerprint(folder) if is_release(folder) else checkpoint.fingerprint(folder),
        "manifest": manifest_fingerprint(config.manifest),
        "max_tokens": config.limit,
    }


def _ids_in_order(manifest: Manifest) -> list[str]:
    placed = [(line, row.id) for row, line in zip(manifest.rows, manifest.lines)]
    placed += [(problem.line, _id_of(problem)) for problem in manifest.problems]
    return [row_id for _, row_id in sorted(placed)]


def _answer_rows(answerer: Answerer | PublishedAnswerer, rows: Sequence[Row], lines: dict[str, int], records: Records, batch_size: int) -> None:
    with Bar("answering", len(rows), unit="row") as bar:
        for batch in _batches(rows, batch_size):
            records.add([_record(row, lines[row.id], outcome, records.folder) for row, outcome in answer_rows(answerer, batch)])
            bar.update(len(batch))


def _batches(rows: Sequence[Row], size: int) -> Iterator[list[Row]]:
    """Rows of like length together."""
    by_length = sorted(rows, key=lambda row: sum(audio_header(item.audio).duration_s for item in row.turns if _is_heard(item)))
    for start in range(0, len(by_length), size):
        yield by_length[start : start + size]


def answer_rows(answerer: Answerer | PublishedAnswerer, rows: Sequence[Row], *, speak: bool = True) -> list[tuple[Row, Answer | str]]:
    """Answer rows in one batch; a row that cannot be answered has the reason instead, and does not keep the others from theirs."""
    questions: list[tuple[Row, Question | str]] = [(row, _question_or_fault(row, answerer.rate_hz)) for row in rows]
    usable = [question for _, question in questions if isinstance(question, Question)]
    answers = iter(_reply(answerer, usable, speak))
    return [(row, next(answers) if isinstance(question, Question) else question) for row, question in questions]


def _reply(answerer: Answerer | PublishedAnswerer, questions: list[Question], speak: bool) -> list[Answer | str]:
    """Together, or one by one where together they fail."""
    try:
        return list(answerer.reply(questions, speak=speak))
    except (EchoxError, RuntimeError) as error:
        if len(questions) == 1:
            return [" ".join(str(error).split()) or type(error).__name__]
    return [outcome for question in questions for outcome in _reply(answerer, [question], speak)]


def _question_or_fault(row: Row, rate_hz: int) -> Question | str:
    try:
        return question_of(row, rate_hz)
    except EchoxError as error:
        return str(error)


def question_of(row: Row, rate_hz: int) -> Question:
    """A row up to its last answer, its clips read.

    Raises:
        SignalError: a clip cannot be read, is empty, or holds NaN; or nothing is asked.
    """
    turns = list(row.turns)
    if turns[-1].role is Role.ASSISTANT:
        turns.pop()
    if not turns:
        raise SignalError("the row asks nothing: it has no user turn before the assistant's")
    clips = tuple(load_audio(item.audio, rate_hz) for item in turns if _is_heard(item))
    return Question(tuple(Turn(item.role.value, item.text, _is_heard(item)) for item in turns), clips)


def _is_heard(item: Item) -> bool:
    return item.audio is not None and item.role is Role.USER


def _record(row: Row, line: int, outcome: Answer | str, folder: Path) -> dict[str, Any]:
    if isinstance(outcome, str):
        return _failed(row.id, line, outcome)
    audio = None
    if outcome.samples is not None:
        audio = f"{WAVS}/{file_name(row.id)}.wav"
        try:
            save_audio(folder / audio, outcome.samples, outcome.rate_hz)
        except SignalError as error:
            return _failed(row.id, line, str(error))
    return {
        "id": row.id,
        "line": line,
        "text": outcome.text,
        "cut": "text" if outcome.is_cut else None,
        "heard": outcome.heard,
        "units": spelled_units(outcome.units, outcome.codebooks),
        "audio": audio,
        "seconds": round(outcome.seconds, 3),
        "timings_s": outcome.timings_s,
        "batch": outcome.batch,
        "error": None,
    }


def _broken(problem: Problem) -> dict[str, Any]:
    return _failed(_id_of(problem), problem.line, problem.reason)


def _id_of(problem: Problem) -> str:
    return problem.row_id if problem.row_id is not None else f"line-{problem.line}"


def _failed(row_id: str, line: int, reason: str) -> dict[str, Any]:
    return {"id": row_id, "line": line, "text": None, "cut": None, "heard": None, "units": None, "audio": None, "seconds": 0.0, "timings_s": {}, "batch": 0, "error": reason}


def file_name(row_id: str) -> str:
    """A row's id as a file name; ids that differ keep names that differ."""
    safe = re.sub(r"[^\w.-]", "_", row_id)[:100].lstrip(".")
    return safe if safe == row_id else f"{safe}-{hashlib.sha256(row_id.encode()).hexdigest()[:8]}"


def _summarise(records: Sequence[dict[str, Any]], config: GenerateConfig) -> int:
    broken = [record for record in records if record["error"] is not None]
    spoken = sum(record["audio"] is not None for record in records)
    seconds = sum(record["seconds"] for record in records)
    print(f"{len(records) - len(broken)} of {len(records)} rows answered, {spoken} aloud ({seconds:.0f} s): {Path(config.out_dir) / ANSWERS}")
    for record in broken:
        print(f"{config.manifest}, line {record['line']} (row {record['id']!r}): {record['error']}", file=sys.stderr)
    return 2 if len(broken) == len(records) else 0
