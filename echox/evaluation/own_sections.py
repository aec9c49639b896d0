"""Sections of one's own data: any manifest, answered by a run or by an `answers.jsonl`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from echox.core.errors import ManifestError, SignalError
from echox.core.progress import print_message
from echox.data.audio import load_audio
from echox.data.lines import read_records
from echox.data.manifest import Row
from echox.data.row_reader import BrokenRow
from echox.evaluation.evaluated_run import RECORDINGS_HZ, EvaluatedRun, Speech
from echox.evaluation.question_sections import (
    Records,
    asked,
    asked_scores,
    is_spoken,
    labels_of,
    recorded_answers,
)
from echox.evaluation.records import Record, Scorers, Table, counted, groups_of
from echox.evaluation.scores import Score, accuracy, mean, same_words, word_f1
from echox.inference.records import ANSWERS

# What records of no row say of their questions.
_UNLABELLED = {"kind": "", "voice": "", "question": "", "answer": "", "reference": ""}


def make_own(run: EvaluatedRun, rows: list[Row], _: Records, *, name: str) -> list[Record]:
    """Answer the rows of any manifest that can be scored.

    Args:
        run: whose models answer.
        rows: of the manifest.
        name: of the section.

    Raises:
        ManifestError: not one row could be answered.
    """
    # Text alone can only be compared with what the row says.
    if not run.pipeline.speaks:
        rows = [row for row in rows if _says_something(labels_of(row), row)]
    config = run.config
    records = asked(run, rows, name, spoken=config.spoken_rows, typed=config.typed_rows)
    records = [
        {**record, "reference": _reference(row), "error": run.failures.get(row.id)}
        for record, row in zip(records, rows, strict=True)
    ]
    _refuse_unanswered(records, name)
    return records


def _refuse_unanswered(records: Sequence[Record], name: str) -> None:
    """Refuse records without one answer, of which every score would be zero.

    Raises:
        ManifestError: no row was answered.
    """
    if records and all(record["error"] is not None for record in records):
        raise ManifestError(
            f"{name}: not one of {len(records)} rows was answered, the first for: "
            f"{records[0]['error']}; mend the rows, or name others"
        )


def _says_something(labels: Record, row: Row) -> bool:
    return bool(labels["answer"] or _reference(row) or labels["question"])


def _reference(row: Row) -> str:
    return "" if row.answer is None else row.answer.text


def make_answered(
    run: EvaluatedRun, rows: list[Row], _: Records, *, name: str, path: Path
) -> list[Record]:
    """Score the answers of a file, and their speech.

    Args:
        run: whose recogniser scores; none of its models is run.
        rows: that were answered; none where no manifest is named.
        name: of the section.
        path: of answers.jsonl, whose folder its wavs lie in.

    Raises:
        ManifestError: the file cannot be read, a line of it is no answer, no answer is of a row, or
            all of them are errors.
    """
    answers = read_answers(path)
    if rows and not any(row.id in answers for row in rows):
        raise ManifestError(
            f"no answer of {path} is of a row of {', '.join(run.config.manifests)}: they are of "
            f"{next(iter(answers))!r} and others, the rows are {rows[0].id!r} and others; name the "
            "manifest that was answered"
        )
    labels = {row.id: {**labels_of(row), "reference": _reference(row)} for row in rows}
    labels = labels or {row_id: {"id": row_id, **_UNLABELLED} for row_id in answers}
    typed = {row.id for row in rows if not is_spoken(row)}
    spoken = _spoken(run, {key: answers[key] for key in labels if key in answers}, path, name)
    recorded = recorded_answers(run, [row for row in rows if row.id in spoken])
    records = []
    for row_id, of_row in labels.items():
        answer = answers.get(row_id, {"error": f"it has no line in {path}"})
        heard = None if row_id in typed else answer.get("heard")
        records.append(
            {
                **of_row,
                "heard": heard,
                "text": answer.get("text") or "",
                "spoken": spoken.get(row_id),
                "recorded": recorded.get(row_id),
                "typed": None,
                "typed_pretrained": None,
                "error": answer.get("error"),
                "cut": answer.get("cut"),
                "unheard": answer.get("unheard"),
            }
        )
    _refuse_unanswered(records, name)
    return records


def answers_file(place: str) -> Path:
    """Return the file of answers: `place` itself, or the one in that folder."""
    path = Path(place)
    return path / ANSWERS if path.is_dir() else path


def read_answers(path: Path) -> dict[str, dict[str, Any]]:
    """Read the answers of a file by the ids of their rows; of two with one id, the last.

    Raises:
        ManifestError: the file cannot be read or is empty, or a line is no answer.
    """
    answers = {}
    for line, record in read_records(path):
        if reason := _why_no_answer(record):
            raise ManifestError(f"{path}, line {line}: {reason}")
        answers[record["id"]] = record
    if not answers:
        raise ManifestError(f"{path} is empty; it needs at least one answer")
    return answers


def _why_no_answer(record: Any) -> str:
    if isinstance(record, BrokenRow):
        return str(record)
    if not isinstance(record, dict) or not isinstance(record.get("id"), str):
        return 'an answer is an object with "id", which is text; mend the line, or leave it out'
    for key in ("text", "heard", "audio", "error", "cut", "unheard"):
        if not isinstance(record.get(key), str | None):
            return f'"{key}" must be text or null, and is {type(record[key]).__name__}; mend it'
    if "text" not in record and record.get("error") is None:
        return 'an answer without an "error" has a "text"; name the file of answers'
    return ""


def _spoken(
    run: EvaluatedRun, answers: Mapping[str, Mapping[str, Any]], path: Path, name: str
) -> dict[str, Record]:
    """Scores of the speech of a sample of answers, by row id."""
    audible = [row_id for row_id, answer in answers.items() if answer.get("audio")]
    wavs = {
        row_id: path.parent / answers[row_id]["audio"]
        for row_id in run.sample(audible, run.config.spoken_rows, name)
    }
    speech = {}
    for row_id, wav in wavs.items():
        try:
            speech[row_id] = Speech(load_audio(wav, RECORDINGS_HZ), RECORDINGS_HZ)
        # One lost wav must not cost the others' scores.
        except SignalError as error:
            print_message(f"{name}: the speech of row {row_id!r} is left out: {error}")
    scored = run.score_speech(speech, name, keep=False) if speech else {}
    # The page links the wavs where they lie.
    return {
        row_id: {**scores, "audio": os.path.relpath(wavs[row_id], run.folder)}
        for row_id, scores in scored.items()
    }


def score_own(records: list[Record], scorers: Scorers) -> Table:
    """Score answers by the labels that their rows have, over all rows, by kind and by voice."""
    groups = groups_of(records, "kind", "voice")
    return {
        name: asked_scores(group, scorers) | counted(_reference_scores(group))
        for name, group in groups.items()
    }


def _reference_scores(records: Sequence[Record]) -> dict[str, Score]:
    """Scores against the assistant's text, of which there are often other good wordings."""
    pairs = [(record["reference"], record["text"]) for record in records if record["reference"]]
    same = [same_words(*pair) for pair in pairs]
    overlap = [word_f1(*pair) for pair in pairs]
    return {
        "same as the answer's text": accuracy(same, "text-agreement, all words"),
        "word F1 with the answer's text": mean(overlap, "text-agreement, word F1"),
    }


# What a score takes from a record, what it is called, and how a row comes to have it.
_TAKES: tuple[tuple[Callable[[Record], Any], str, str], ...] = (
    (lambda record: record["answer"], "accuracy", 'a label "answer", the words of a right answer'),
    (lambda record: record["reference"], "likeness to the answer's text", "an assistant's text"),
    (
        lambda record: record["question"] and record["heard"] is not None,
        "question WER",
        'a spoken question with a "transcription", and what was heard of it',
    ),
    (
        lambda record: record["spoken"] is not None,
        "everything spoken",
        "speech in the sample of spoken_rows",
    ),
)


def missing_from(records: Sequence[Record]) -> list[str]:
    """Return what could not be scored of records, a sentence each, and how many answers failed."""
    N, sentences = len(records), []
    for has, score, label in _TAKES:
        if not (count := sum(bool(has(record)) for record in records)):
            sentences.append(f"{score} is missing: no row has {label}")
        elif count < N and score != "everything spoken":
            sentences.append(f"{score} is over {count} of {N} rows: the others do not have {label}")
    if failed := sum(record["error"] is not None for record in records):
        sentences.append(f"{failed} of {N} rows have no answer, which counts as a wrong one")
    if unheard := sum(record.get("unheard") is not None for record in records):
        sentences.append(f"in {unheard} of {N} rows nothing was heard")
    if cut := sum(record.get("cut") is not None for record in records):
        sentences.append(f"{cut} of {N} answers were cut at a limit of length")
    return sentences
