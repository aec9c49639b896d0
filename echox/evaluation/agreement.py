"""Agreement of the units of spoken answers with those of recordings, and with T2C's units.

T2C's units for the greedy text are the pseudo-labels that Echo is trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from echox.codecs.base import Codec
from echox.data.audio import load_audio, pad_waveforms
from echox.data.manifest import Row
from echox.data.text import contains_answer, edit_distance
from echox.evaluation.scores import Score, accuracy, difference, token_error
from echox.inference.pipeline import SpeechToSpeechPipeline
from echox.inference.row_answers import question_of
from echox.inference.tts import TTSPipeline

Record = dict[str, Any]
CASCADE = "greedy text, T2C"  # its name in tables


@torch.no_grad()
def recorded_units(rows: Sequence[Row], codec: Codec, device: torch.device) -> dict[str, list[int]]:
    """Encode the recorded answers of rows.

    Args:
        rows: with answers, of which some are recorded.
        codec: on `device`.
        device: of the codec.

    Returns:
        row id -> units [N], of the rows whose answer is recorded.

    Raises:
        SignalError: a recording cannot be read.
    """
    units_by_id = {}
    for row in rows:
        audio = row.require_answer().audio
        if audio is not None:
            # One by one, so that no recording is padded: [1, T].
            wave = pad_waveforms([load_audio(audio, codec.rate_hz)], codec.rate_hz)
            (units_by_id[row.id],) = codec.encode(wave.to(device)).rows()
    return units_by_id


@torch.no_grad()
def spoken_answers(
    pipeline: SpeechToSpeechPipeline, tts: TTSPipeline, rows: Sequence[Row]
) -> list[Record]:
    """Answer a batch of questions by Echo, and synthesize the same greedy texts by T2C.

    Args:
        pipeline: of Echo.
        tts: of T2C.
        rows: with questions.

    Returns:
        records with "id", greedy "text", right "answer", and the units [N] of "echo" and "t2c".

    Raises:
        SignalError: a question cannot be read.
    """
    generated = pipeline.generate_text([question_of(row, pipeline.rate_hz) for row in rows])
    with torch.autocast(pipeline.device.type, torch.bfloat16, enabled=pipeline.bf16):
        # Both from the same greedy decoding: Echo reads its hidden states, T2C its token ids.
        echo = pipeline.require_echo().speak(
            generated.hidden,
            generated.lengths,
            engine=pipeline.unit_engine,
            text=generated.ids,
        )
        t2c = tts.model.speak(generated.ids, generated.lengths, engine=tts.unit_engine)
    texts = [pipeline.backbone.detokenize(ids) for ids in generated.rows()]
    # Units, not tokens of a unit language, because recordings are encoded to units.
    units_of = pipeline.require_codec().units_of
    return [
        {
            "id": row.id,
            "text": text,
            "answer": str(row.extra.get("answer", "")),
            "echo": list(units_of(echo_tokens)),
            "t2c": list(units_of(t2c_tokens)),
        }
        for row, text, echo_tokens, t2c_tokens in zip(rows, texts, echo, t2c)
    ]


def cascade_of(records: Sequence[Record]) -> list[Record]:
    """Return the records of the cascade, in which T2C's units take the place of Echo's."""
    return [{**record, "echo": record["t2c"]} for record in records]


def agreement_table(
    ways: Mapping[str, Sequence[Record]], recordings: Mapping[str, Sequence[int]]
) -> dict[str, dict[str, Score]]:
    """Score several ways to speak answers to the same questions.

    Args:
        ways: name -> records; the others are compared with the first one.
        recordings: row id -> units [N] of the recorded answer.

    Returns:
        name -> metric -> score.
    """
    first = next(iter(ways.values()))
    return {name: _scores(records, first, recordings) for name, records in ways.items()}


def _scores(
    records: Sequence[Record], first: Sequence[Record], recordings: Mapping[str, Sequence[int]]
) -> dict[str, Score]:
    # Paired with the first way over the same rows: `first` answers the same questions.
    pairs, first_pairs = _with_recordings(records, recordings), _with_recordings(first, recordings)
    # Questions without a right answer, such as free ones, have units to compare all the same.
    right = [
        contains_answer(record["text"], record["answer"]) for record in records if record["answer"]
    ]
    scores = {
        "unit error, recordings": token_error(
            pairs, "edit distance to the units of the recorded answer / their number, free-running"
        ),
        # Over the same rows, so a small difference shows that two intervals would hide.
        "minus the first row": difference(
            _errors(pairs), _errors(first_pairs), "paired difference of unit error, recordings"
        ),
        "unit error, pseudo-labels": token_error(
            [(record["t2c"], record["echo"]) for record in records],
            "edit distance to T2C's units for the same greedy text / their number",
        ),
        "text accuracy": accuracy(right, "text-em of the greedy text"),
    }
    # A table has no column for what was never counted, such as recordings where there are none.
    return {name: score for name, score in scores.items() if score.value is not None}


def _with_recordings(
    records: Sequence[Record], recordings: Mapping[str, Sequence[int]]
) -> list[tuple[Sequence[int], Sequence[int]]]:
    """(units of the recording, units of the answer) of each record that has a recording."""
    return [
        (recordings[record["id"]], record["echo"])
        for record in records
        if record["id"] in recordings
    ]


def _errors(pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[float, float]]:
    """Edit distance and length of the reference, for each (reference, hypothesis)."""
    return [
        (edit_distance(hypothesis, reference), len(reference)) for reference, hypothesis in pairs
    ]
