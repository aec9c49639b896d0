"""Answers to a manifest or one file: a wav per row, and a line of JSON with text and transcript."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from echox.core import checkpoint
from echox.core.config import to_plain
from echox.core.durations import duration_text
from echox.core.errors import ConfigError, SignalError
from echox.core.progress import Bar, waiting
from echox.data.audio import audio_header, load_audio, refuse_ending, save_audio
from echox.data.manifest import (
    Manifest,
    Problem,
    Row,
    examine_manifest,
    manifest_fingerprint,
    spelled_units,
)
from echox.inference.answers import CUT_SPEECH, CUT_TEXT, Answer, refuse_unheard
from echox.inference.config import GenerateConfig
from echox.inference.live import PIPE, answer_live, refuse_output
from echox.inference.load import answering_checkpoint, load_answering
from echox.inference.pipeline import SpeechToSpeechPipeline
from echox.inference.records import ANSWERS, Records
from echox.inference.row_answers import answer_rows, clips_of, stream_rows
from echox.models.release.folder import is_release, weights_fingerprint

WAVS = "wavs"
CUTS = (CUT_TEXT, CUT_SPEECH)


def generate(config: GenerateConfig) -> int:
    """Answer the questions that a config names.

    Returns:
        the exit code: 0, or 2 where not one row could be answered.

    Raises:
        ConfigError: there is no question, or out_dir holds the answers of another run.
        CheckpointError, ManifestError, SignalError: the checkpoint, the manifest or the one input
            cannot be used.
        CapacityError: memory ran out.
    """
    if config.input is not None:
        return _generate_one(config, config.input)
    if config.manifest is None:
        raise ConfigError(
            "nothing to answer: give manifest=questions.jsonl, or input=question.wav "
            "output=answer.wav"
        )
    return _generate_all(config, config.manifest)


def _load(config: GenerateConfig) -> SpeechToSpeechPipeline:
    pipeline = load_answering(
        config.checkpoint,
        device=config.device,
        codec_folder=config.codec_folder,
        encoder_folder=config.encoder_folder,
        backbone_folder=config.backbone_folder,
        max_tokens=config.limit,
        answer_silence=config.answer_silence,
    )
    pipeline.segments = config.segments
    return pipeline


def _generate_one(config: GenerateConfig, question: str) -> int:
    # Wrong paths are reported before models are loaded.
    audio_header(question)
    if config.stream or config.output == PIPE:
        refuse_output(config.output)
        answer_live(_load(config), question, config.output)
        return 0
    refuse_ending(config.output)
    pipeline = _load(config)
    with waiting("answering"):
        answer = pipeline.answer([load_audio(question, pipeline.rate_hz)])[0]
    refuse_unheard(answer, question, config.answer_silence)
    _print_text(answer, config.limit)
    if not pipeline.speaks:
        print(
            "not spoken: the checkpoint has no voice; give one of stage echo, or an EchoX folder, "
            "to hear the answer",
            file=sys.stderr,
        )
        return 0
    if answer.samples is None:
        raise SignalError(
            f"the model has nothing to say to {config.input}, so {config.output} was not written"
        )
    save_audio(config.output, answer.samples, answer.rate_hz)
    print(f"spoken:   {config.output} ({answer.seconds:.1f} s{_speech_cut(answer)})")
    return 0


def _print_text(answer: Answer, limit: int) -> None:
    is_cut = CUT_TEXT in (answer.cut or "")
    cut = f" (cut at {limit} tokens; raise max_tokens to read on)" if is_cut else ""
    unheard = f" ({answer.unheard})" if answer.unheard else ""
    # People compare the three lines, so their texts begin in one column.
    print(f"heard:    {answer.heard}{unheard}\nanswered: {answer.text}{cut}")


def _speech_cut(answer: Answer) -> str:
    if CUT_SPEECH not in (answer.cut or ""):
        return ""
    return "; cut at the limit of the unit decoder: set shorter segments"


def _generate_all(config: GenerateConfig, path: str) -> int:
    manifest = examine_manifest(path, allow_outside=config.allow_outside)
    records = Records(Path(config.out_dir), _origin(config, path), overwrite=config.overwrite)
    lines = {row.id: line for row, line in zip(manifest.rows, manifest.lines)}
    # Broken lines are recorded first: they need no model.
    records.add([_problem_record(problem) for problem in manifest.problems])
    # With nothing left to answer no model is loaded.
    missing = [row for row in manifest.rows if row.id not in records.kept]
    if missing:
        answer = _stream_missing if config.stream else _answer_missing
        answer(_load(config), missing, lines, records, config.batch_size)
    return _summarise(records.in_order(_ids_in_order(manifest)), config)


def _origin(config: GenerateConfig, path: str) -> dict[str, Any]:
    """What the answers depend on: answers of another origin are not continued."""
    folder = Path(config.checkpoint)
    if is_release(folder):
        fingerprint = weights_fingerprint(folder)
    else:
        fingerprint = checkpoint.fingerprint(answering_checkpoint(folder))
    return {
        "checkpoint": fingerprint,
        "manifest": manifest_fingerprint(path),
        "max_tokens": config.limit,
        "answer_silence": config.answer_silence,
        "segments": None if config.segments is None else to_plain(config.segments),
    }


def _ids_in_order(manifest: Manifest) -> list[str]:
    """The ids of all lines of a manifest, broken ones included."""
    placed = [(line, row.id) for row, line in zip(manifest.rows, manifest.lines)]
    # A line without a readable id is placed by its number all the same.
    placed += [(problem.line, _id_of(problem)) for problem in manifest.problems]
    return [row_id for _, row_id in sorted(placed)]


def _answer_missing(
    pipeline: SpeechToSpeechPipeline,
    rows: Sequence[Row],
    lines: dict[str, int],
    records: Records,
    batch_size: int,
) -> None:
    """Answer rows and record them batch by batch, so that an interrupted run can go on."""
    with Bar("answering", len(rows), unit="row") as bar:
        for batch in _batches(rows, batch_size):
            outcomes = answer_rows(pipeline, batch)
            # A list: all files of the batch exist before the first of its lines is written.
            records.add(
                [_record(row, lines[row.id], outcome, records.folder) for row, outcome in outcomes]
            )
            bar.update(len(batch))


def _stream_missing(
    pipeline: SpeechToSpeechPipeline,
    rows: Sequence[Row],
    lines: dict[str, int],
    records: Records,
    at_once: int,
) -> None:
    """Answer rows piece by piece and record each as its answer ends."""
    with Bar("answering", len(rows), unit="row") as bar:
        for row, outcome in stream_rows(pipeline, rows, at_once):
            records.add([_record(row, lines[row.id], outcome, records.folder)])
            bar.update(1)


def _batches(rows: Sequence[Row], size: int) -> Iterator[list[Row]]:
    """Rows of similar length together, which takes the least padding."""

    def duration_s(row: Row) -> float:
        return sum(audio_header(clip).duration_s for clip in clips_of(row.turns))

    by_length = sorted(rows, key=duration_s)
    for start in range(0, len(by_length), size):
        yield by_length[start : start + size]


def _record(row: Row, line: int, outcome: Answer | str, folder: Path) -> dict[str, Any]:
    """The record of a row; its speech is written to a file."""
    if isinstance(outcome, str):
        return _failure_record(row.id, line, outcome)
    audio = None
    if outcome.samples is not None:
        audio = f"{WAVS}/{file_name(row.id)}.wav"
        # A file that cannot be written costs this row alone.
        try:
            save_audio(folder / audio, outcome.samples, outcome.rate_hz)
        except SignalError as error:
            return _failure_record(row.id, line, str(error))
    # The keys are the format of answers.jsonl; those of `_failure_record` are the same.
    return {
        "id": row.id,
        "line": line,
        "text": outcome.text,
        "cut": outcome.cut,
        "heard": outcome.heard,
        "unheard": outcome.unheard,
        "units": spelled_units(outcome.units, outcome.codebooks),
        "audio": audio,
        "seconds": round(outcome.seconds, 3),
        "timings_s": outcome.timings_s,
        "batch": outcome.batch,
        "error": None,
    }


def _problem_record(problem: Problem) -> dict[str, Any]:
    return _failure_record(_id_of(problem), problem.line, problem.reason)


def _id_of(problem: Problem) -> str:
    return problem.row_id if problem.row_id is not None else f"line-{problem.line}"


def _failure_record(row_id: str, line: int, reason: str) -> dict[str, Any]:
    return {
        "id": row_id,
        "line": line,
        "text": None,
        "cut": None,
        "heard": None,
        "unheard": None,
        "units": None,
        "audio": None,
        "seconds": 0.0,
        "timings_s": {},
        "batch": 0,
        "error": reason,
    }


def file_name(row_id: str) -> str:
    """A row's id as a file name; different ids have different names."""
    safe = re.sub(r"[^\w.-]", "_", row_id)[:100].lstrip(".")
    # A hash where characters were replaced: "a/b" and "a b" would both be "a_b".
    return safe if safe == row_id else f"{safe}-{hashlib.sha256(row_id.encode()).hexdigest()[:8]}"


def _summarise(records: Sequence[dict[str, Any]], config: GenerateConfig) -> int:
    """Print what was answered, and return the exit code."""
    failures = [record for record in records if record["error"] is not None]
    spoken = sum(record["audio"] is not None for record in records)
    seconds = sum(record["seconds"] for record in records)
    silent = [] if config.answer_silence else [row for row in records if row["unheard"]]
    answered = len(records) - len(failures) - len(silent)
    print(
        f"{answered} of {len(records)} rows answered, {spoken} aloud ({duration_text(seconds)})"
        f"{_remarks(records, len(silent))}: {Path(config.out_dir) / ANSWERS}"
    )
    for record in failures:
        print(
            f"{config.manifest}, line {record['line']} (row {record['id']!r}): {record['error']}",
            file=sys.stderr,
        )
    # A run of which some rows failed has done its work; one without any answer has not.
    return 2 if len(failures) == len(records) else 0


def _remarks(records: Sequence[dict[str, Any]], silent: int) -> str:
    """How many answers were cut, and how many rows had nothing to answer."""
    cuts = {kind: sum(kind in (row["cut"] or "") for row in records) for kind in CUTS}
    cut = "".join(f"; {count} cut in {kind}" for kind, count in cuts.items() if count)
    unheard = f"; in {silent} nothing was heard (answer_silence=true answers)" if silent else ""
    return cut + unheard
