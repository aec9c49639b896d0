"""Sections of synthesized speech: T2C alone, and Echo beside cascades.

Each has a `make_` function, which runs the models and returns records, and a `score_` function,
which reads the records alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from echox.data.manifest import Row
from echox.evaluation.evaluated_run import EvaluatedRun
from echox.evaluation.question_sections import QUESTIONS, Records
from echox.evaluation.records import (
    Record,
    Scorers,
    Table,
    as_rates,
    counted,
    groups_of,
    is_right,
    label_of,
    mos_score,
    transcribed,
)
from echox.evaluation.scores import Score, accuracy, difference, word_error, word_errors

# Name in the table -> key of the record: three ways to the same sentence, the best one first.
T2C_SIDES = {"recordings": "source", "codec": "codec", "T2C": "t2c"}


def make_t2c(run: EvaluatedRun, rows: list[Row], _: Records) -> list[Record]:
    """Synthesize texts by T2C, and score their recordings, before and after the codec."""
    recorded = [row for row in rows if row.answer is not None and row.answer.audio is not None]
    sample = [
        row
        # A sample of each kind: the rare kinds would be missing in a sample of all rows.
        for kind in sorted({label_of(row, "kind") for row in rows})
        for row in run.sample(
            [row for row in recorded if label_of(row, "kind") == kind],
            run.config.t2c_rows,
            f"t2c {kind}",
        )
    ]
    answers = {row.id: row.require_answer() for row in sample}
    texts = {row_id: answer.text for row_id, answer in answers.items()}
    synthesized = run.synthesize(texts.values(), "t2c", "t2c: speaking")
    clips = {row_id: answer.require_audio() for row_id, answer in answers.items()}
    codec = run.score_speech(run.through_codec(clips, "t2c: codec"), "codec")
    # The recordings are in the corpus already, so no wavs are written.
    source = run.score_speech(run.recordings(clips), "source", keep=False)
    return [
        {
            "id": row.id,
            "kind": label_of(row, "kind"),
            "text": texts[row.id],
            "source": source[row.id],
            "codec": codec[row.id],
            "t2c": synthesized[texts[row.id]],
        }
        for row in sample
    ]


def score_t2c(records: list[Record], scorers: Scorers) -> Table:
    """Score recordings, their copies by the codec, and T2C, over all rows and by kind."""
    groups = groups_of(records, "kind")
    return {name: _t2c_scores(group, scorers) for name, group in groups.items()}


def _t2c_scores(records: list[Record], scorers: Scorers) -> dict[str, Score]:
    scores = {}
    # Word error rates first, so that their columns stand side by side.
    for name, key in T2C_SIDES.items():
        pairs = [(record["text"], record[key]["transcript"]) for record in records]
        scores[f"{name} WER"] = word_error(pairs, "asr-wer against the text", scorers["asr"])
    for name, key in T2C_SIDES.items():
        scores[f"{name} MOS"] = mos_score([record[key] for record in records], scorers)
    return counted(scores)


def make_cascade(run: EvaluatedRun, rows: list[Row], before: Records) -> list[Record]:
    """Run the cascades on the questions that Echo answered in speech."""
    # The answers of an earlier section, so that both sides speak the same greedy texts.
    echo = [record for record in before.get(QUESTIONS, []) if record["spoken"] is not None]
    # The records have no paths of audio, the rows do.
    by_id = {row.id: row for row in rows}
    full = run.sample(echo, run.config.cascade_rows, "cascade")
    clips = {
        record["id"]: by_id[record["id"]].require_question().require_audio() for record in full
    }
    questions = transcribed(run, run.recordings(clips))
    answers = run.answer_typed(questions.values(), "cascade: typed", trained=True)
    # Row id -> text that the cascade synthesizes.
    texts = {record["id"]: answers[questions[record["id"]]] for record in full}
    # Together: a text of both cascades is synthesized once.
    synthesized = run.synthesize(
        [*(record["text"] for record in echo), *texts.values()], "cascade", "cascade: speaking"
    )
    return [
        {
            **{key: record[key] for key in ("id", "kind", "voice", "question", "answer", "text")},
            "echo": record["spoken"],
            "cascade": synthesized[record["text"]],
            "full": _full_record(record["id"], questions, texts, synthesized),
        }
        for record in echo
    ]


def _full_record(
    row_id: str,
    questions: Mapping[str, str],
    texts: Mapping[str, str],
    synthesized: Mapping[str, Record],
) -> Record | None:
    """The full cascade's transcript, answer and speech; None outside its sample."""
    if row_id not in texts:
        return None
    text = texts[row_id]
    return {"asr": questions[row_id], "text": text, "spoken": synthesized[text]}


def score_cascade(records: list[Record], scorers: Scorers) -> Table:
    """Score Echo, T2C on Echo's own greedy text, their difference, and the full cascade."""
    echo = [record["echo"] for record in records]
    cascade = [record["cascade"] for record in records]
    table: Table = {
        "Echo": _side_scores(records, echo, scorers),
        "greedy text, T2C": _side_scores(records, cascade, scorers),
        "Echo minus greedy text, T2C": {
            "S2S accuracy": difference(
                as_rates(_right(records, echo)),
                as_rates(_right(records, cascade)),
                "s2s-em, paired difference",
                scorers["asr"],
            ),
            "speech WER": difference(
                [word_errors(*pair) for pair in _transcripts(records, echo)],
                [word_errors(*pair) for pair in _transcripts(records, cascade)],
                "asr-wer, paired difference",
                scorers["asr"],
            ),
        },
        "recogniser, typed question, T2C": _full_scores(
            [record for record in records if record["full"] is not None], scorers
        ),
    }
    # Without a sample of the full cascade its row would be empty.
    groups = {name: counted(scores) for name, scores in table.items()}
    return {name: scores for name, scores in groups.items() if scores}


def _side_scores(
    records: Sequence[Record], speech: Sequence[Record], scorers: Scorers
) -> dict[str, Score]:
    """Scores of one way to speak the greedy texts."""
    asr = scorers["asr"]
    return {
        "S2S accuracy": accuracy(_right(records, speech), "s2s-em", asr),
        "speech WER": word_error(
            _transcripts(records, speech), "asr-wer against the greedy text", asr
        ),
        "MOS": mos_score(speech, scorers),
    }


def _full_scores(records: Sequence[Record], scorers: Scorers) -> dict[str, Score]:
    """Scores of the cascade of recogniser, language model and T2C."""
    asr = scorers["asr"]
    full = [record["full"] for record in records]
    speech = [side["spoken"] for side in full]
    text_right = [is_right(record, side["text"]) for record, side in zip(records, full)]
    # The first error of the cascade: what its recogniser made of the question.
    questions = [(record["question"], side["asr"]) for record, side in zip(records, full)]
    return {
        "S2S accuracy": accuracy(_right(records, speech), "s2s-em", asr),
        "speech WER": word_error(_transcripts(full, speech), "asr-wer against its own text", asr),
        "MOS": mos_score(speech, scorers),
        "text accuracy": accuracy(text_right, "cascade text-em", asr),
        "question WER": word_error(questions, "asr-wer of the question", asr),
    }


def _right(records: Sequence[Record], speech: Sequence[Record]) -> list[bool]:
    return [is_right(record, clip["transcript"]) for record, clip in zip(records, speech)]


def _transcripts(texts: Sequence[Record], speech: Sequence[Record]) -> list[tuple[str, str]]:
    """(text, transcript of its speech) pairs."""
    return [(record["text"], clip["transcript"]) for record, clip in zip(texts, speech)]
