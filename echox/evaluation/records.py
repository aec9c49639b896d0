"""Records of a report's sections, and what their scores share.

A record is a plain mapping of one row, as it is stored in JSON: its question, its answers, and the
scores of its speech.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from echox.data.rows import Row
from echox.data.text import contains_answer
from echox.evaluation.evaluated_run import RECORDINGS_HZ, EvaluatedRun, Speech
from echox.evaluation.scores import Score, mean

Record = dict[str, Any]
# "asr" and "mos" -> name of the model that scored, None where none did.
Scorers = Mapping[str, str | None]
# Group of rows -> metric -> score.
Table = dict[str, dict[str, Score]]


def label_of(row: Row, name: str) -> str:
    """Return a label of a row as text; "" where it has none."""
    # Numbers and words would not sort together.
    value = row.extra.get(name)
    return "" if value is None else str(value)


def is_right(record: Record, text: str) -> bool:
    """Return whether a text contains the right answer of a record."""
    return contains_answer(text, record["answer"])


def as_rates(values: Iterable[bool]) -> list[tuple[float, int]]:
    """Return (numerator, denominator) pairs as `scores.difference` takes them, 1 or 0 of 1 each."""
    return [(float(value), 1) for value in values]


def mos_score(speech: Sequence[Record], scorers: Scorers) -> Score:
    """Return the mean opinion score over those clips that have one."""
    # None stands for clips outside the sample, and for those too short to score.
    values = [clip["mos"] for clip in speech if clip["mos"] is not None]
    return mean(values, "distillmos, mean over clips", scorers["mos"])


def groups_of(records: list[Record], *keys: str) -> dict[str, list[Record]]:
    """Group records: all of them, then those of each value of each key; "" is no value."""
    # The order of the groups is that of the report's table.
    groups = {"all": records}
    for key in keys:
        for value in sorted({record[key] for record in records} - {""}):
            groups[f"{key} {value}"] = [record for record in records if record[key] == value]
    return groups


def counted(scores: dict[str, Score]) -> dict[str, Score]:
    """Return the scores that have a value, for a table has no place for the others."""
    return {name: score for name, score in scores.items() if score.value is not None}


def transcribed(run: EvaluatedRun, clips: Mapping[str, Speech]) -> dict[str, str]:
    """Transcribe recordings.

    Args:
        run: whose recogniser is used.
        clips: name -> samples [T] at 16 kHz.

    Returns:
        name -> transcript.
    """
    # `run.transcriber` loads the recogniser, which is not needed without clips.
    if not clips:
        return {}
    samples = [clip.require_samples() for clip in clips.values()]
    texts = run.transcriber.transcribe(samples, RECORDINGS_HZ)
    # A cascade asks even what its recogniser did not understand.
    return {name: text or "..." for name, text in zip(clips, texts)}
