"""How alike the units of spoken answers are: to those of recordings, and to what T2C says for the same text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from echox.codecs.base import Codec
from echox.data.audio import load_audio, pad_waveforms
from echox.data.manifest import Row
from echox.data.text import contains_answer, edit_distance
from echox.evaluation.scores import Score, accuracy, difference, token_error
from echox.generation.answering import Answerer, Voice
from echox.generation.manifest_run import question_of

Record = dict[str, Any]
CASCADE = "greedy text, T2C"


@torch.no_grad()
def recorded_units(rows: Sequence[Row], codec: Codec, device: torch.device) -> dict[str, list[int]]:
    """Row id -> units of the recorded answer, where there is one."""
    found = {}
    for row in rows:
        if row.answer.audio is not None:
            units = codec.encode(pad_waveforms([load_audio(row.answer.audio, codec.rate_hz)], codec.rate_hz).to(device))
            (found[row.id],) = units.rows()
    return found


@torch.no_grad()
def spoken_answers(answerer: Answerer, voice: Voice, rows: Sequence[Row]) -> list[Record]:
    """A batch of questions answered: the greedy text, the units of Echo, and those of T2C for that text."""
    said = answerer.think([question_of(row, answerer.rate_hz) for row in rows])
    with torch.autocast(answerer.device.type, torch.bfloat16, enabled=answerer.bf16):
        echo = answerer.echo.speak(said.hidden, said.lengths, loop=answerer.loop)
        cascade = voice.model.speak(said.ids, said.lengths, loop=voice.loop)
    texts = [answerer.backbone.detokenize(ids[:length]) for ids, length in zip(said.ids.tolist(), said.lengths.tolist())]
    units_of = answerer.codec.units_of
    return [
        {"id": row.id, "text": text, "answer": str(row.extra.get("answer", "")), "echo": list(units_of(own)), "t2c": list(units_of(other))}
        for row, text, own, other in zip(rows, texts, echo, cascade)
    ]


def cascade_of(records: Sequence[Record]) -> list[Record]:
    """The same answers as T2C speaks them."""
    return [{**record, "echo": record["t2c"]} for record in records]


def agreement_table(ways: Mapping[str, Sequence[Record]], recordings: Mapping[str, Sequence[int]]) -> dict[str, dict[str, Score]]:
    """Scores of each way to speak the same questions, the first of them the one that others are compared with."""
    first = next(iter(ways.values()))
    return {name: _scores(records, first, recordings) for name, records in ways.items()}


def _scores(records: Sequence[Record], first: Sequence[Record], recordings: Mapping[str, Sequence[int]]) -> dict[str, Score]:
    pairs = [(recordings[record["id"]], record["echo"]) for record in records if record["id"] in recordings]
    before = [(recordings[record["id"]], record["echo"]) for record in first if record["id"] in recordings]
    graded = [record for record in records if record["answer"]]
    scores = {
        "unit error, recordings": token_error(pairs, "edit distance to the units of the recorded answer / their number, free-running"),
        "minus the first row": difference(_errors(pairs), _errors(before), "paired difference of unit error, recordings"),
        "unit error, pseudo-labels": token_error(
            [(record["t2c"], record["echo"]) for record in records], "edit distance to T2C's units for the same greedy text / their number"
        ),
        "text accuracy": accuracy([contains_answer(record["text"], record["answer"]) for record in graded], "text-em of the greedy text"),
    }
    return {name: score for name, score in scores.items() if score.value is not None}


def _errors(pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[float, float]]:
    return [(edit_distance(said, wanted), len(wanted)) for wanted, said in pairs]
