"""Sections of spoken questions: templates, open questions, silence and free questions.

Each has a `make_` function, which runs the models and returns records, and a `score_` function,
which reads the records alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from echox.data.manifest import Row
from echox.evaluation.evaluated_run import EvaluatedRun, Speech, question_text
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
from echox.evaluation.scores import (
    Score,
    accuracy,
    difference,
    mean,
    same_words,
    token_error,
    word_error,
    word_f1,
)
from echox.inference.answers import Answer

QUESTIONS = "questions"

Records = dict[str, list[Record]]  # of the sections before, by name


def make_questions(run: EvaluatedRun, rows: list[Row], _: Records) -> list[Record]:
    """Answer the test questions of trained kinds."""
    config = run.config
    return asked(run, labelled(rows), QUESTIONS, spoken=config.spoken_rows, typed=config.typed_rows)


def make_reworded(run: EvaluatedRun, rows: list[Row], _: Records) -> list[Record]:
    """Answer questions in phrasings in which no fact is trained."""
    config = run.config
    return asked(
        run, labelled(rows), "reworded", spoken=config.spoken_rows, typed=config.typed_rows
    )


def make_unseen(run: EvaluatedRun, rows: list[Row], _: Records) -> list[Record]:
    """Answer questions about facts that are trained in no phrasing."""
    config = run.config
    return asked(run, labelled(rows), "unseen", spoken=config.spoken_rows, typed=config.typed_rows)


def make_open(run: EvaluatedRun, rows: list[Row], _: Records) -> list[Record]:
    """Answer a sample of open questions, each spoken and typed, in text alone."""
    rows = labelled(run.sample(rows, run.config.open_rows, "open"))
    # Not synthesized: the section is about knowledge, which the text shows.
    return asked(run, rows, "open", spoken=0, typed=len(rows))


def labelled(rows: Iterable[Row]) -> list[Row]:
    """Return the rows with a label "answer"; others, such as free questions, have no right one."""
    return [row for row in rows if label_of(row, "answer")]


def asked(
    run: EvaluatedRun, rows: Sequence[Row], name: str, *, spoken: int, typed: int
) -> list[Record]:
    """Answer all rows in text, and samples of them in speech and by typed questions.

    Args:
        run: whose models answer.
        rows: of the section's manifest.
        name: of the section.
        spoken: rows whose answers are synthesized and scored.
        typed: rows whose questions are typed to the language model too.
    """
    # Without rows no model is loaded.
    sample = run.sample(rows, spoken, name) if rows and run.pipeline.speaks else []
    answers = _answers(run, rows, sample, name)
    speech = {row.id: Speech(answers[row.id].samples, answers[row.id].rate_hz) for row in sample}
    # A checkpoint of S2T synthesizes nothing, so its sample is empty and nothing is scored.
    scored = run.score_speech(speech, name) if sample else {}
    recorded = recorded_answers(run, sample)
    questions = {question_text(row) for row in run.sample(rows, typed, f"{name} typed")}
    trained, pretrained = _typed_answers(run, questions - {""}, name)
    # The keys are those of stored records: another name would score old reports as empty.
    return [
        {
            **labels_of(row),
            "heard": answers[row.id].heard if is_spoken(row) else None,
            "text": answers[row.id].text,
            "spoken": scored.get(row.id),
            "recorded": recorded.get(row.id),
            "typed": trained.get(question_text(row)),
            "typed_pretrained": pretrained.get(question_text(row)),
        }
        for row in rows
    ]


def labels_of(row: Row) -> Record:
    """Return what a row says of itself, as the first keys of its record."""
    return {
        "id": row.id,
        "kind": label_of(row, "kind"),
        "voice": label_of(row, "voice"),
        "question": question_text(row),
        "answer": label_of(row, "answer"),
    }


def is_spoken(row: Row) -> bool:
    """Return whether a row's question is spoken, and not typed."""
    return row.question is not None and row.question.audio is not None


def recorded_answers(run: EvaluatedRun, rows: Iterable[Row]) -> dict[str, str]:
    """Transcribe the recordings of right answers, which bound what the recogniser finds right.

    Returns:
        row id -> transcript, of the rows whose answer is recorded.
    """
    clips = {
        row.id: row.answer.audio
        for row in rows
        if row.answer is not None and row.answer.audio is not None
    }
    return transcribed(run, run.recordings(clips))


def _answers(
    run: EvaluatedRun, rows: Sequence[Row], sample: Sequence[Row], name: str
) -> dict[str, Answer]:
    """Answers by row id, in speech for the rows of the sample."""
    ids = {row.id for row in sample}
    answers = run.answer(sample, f"{name}: answering aloud", speak=True)
    # Text alone is much faster, and the text of a spoken answer is the same.
    others = [row for row in rows if row.id not in ids]
    return answers | run.answer(others, f"{name}: answering in text", speak=False)


# Twice, to tell what training took from the language model apart from what it never knew.
def _typed_answers(
    run: EvaluatedRun, questions: Iterable[str], name: str
) -> tuple[dict[str, str], dict[str, str]]:
    """Answers to typed questions by the language model as trained, and as pretrained."""
    trained = run.answer_typed(questions, f"{name}: typed, as trained", trained=True)
    pretrained = run.answer_typed(questions, f"{name}: typed, as pretrained", trained=False)
    return trained, pretrained


def score_asked(records: list[Record], scorers: Scorers) -> Table:
    """Score answers with a right text, over all rows, by kind and by voice."""
    groups = groups_of(records, "kind", "voice")
    return {name: asked_scores(group, scorers) for name, group in groups.items()}


def asked_scores(records: list[Record], scorers: Scorers) -> dict[str, Score]:
    """Score the records of `asked`; what no record has the labels for is left out."""
    # A row without a label is neither right nor wrong.
    labelled = [record for record in records if record["answer"]]
    # The order of the scores is that of the table's columns.
    text_right = [is_right(record, record["text"]) for record in labelled]
    scores = {"S2T accuracy": accuracy(text_right, "s2t-em")}
    scores |= _spoken_scores(
        [record for record in records if record["spoken"] is not None], scorers
    )
    for name, key in (
        ("typed accuracy", "typed"),
        ("typed accuracy, as pretrained", "typed_pretrained"),
    ):
        # A question is typed once, however many voices ask it.
        by_question = {record["question"]: record for record in labelled if record[key] is not None}
        right = [is_right(record, record[key]) for record in by_question.values()]
        scores[name] = accuracy(right, "typed-em")
    return counted(scores | _retention_scores(labelled) | _question_error(records))


def _spoken_scores(records: list[Record], scorers: Scorers) -> dict[str, Score]:
    """Scores of the rows whose answers were synthesized."""
    asr = scorers["asr"]
    labelled = [record for record in records if record["answer"]]
    text_right = [is_right(record, record["text"]) for record in labelled]
    speech_right = [is_right(record, record["spoken"]["transcript"]) for record in labelled]
    # Not every right answer was recorded.
    recorded_right = [
        is_right(record, record["recorded"])
        for record in labelled
        if record.get("recorded") is not None
    ]
    # Against the model's own text: whether the speech says it, be it right or wrong.
    transcripts = [(record["text"], record["spoken"]["transcript"]) for record in records]
    return {
        "S2T accuracy, spoken rows": accuracy(text_right, "s2t-em"),
        "S2S accuracy": accuracy(speech_right, "s2s-em", asr),
        "S2S accuracy, recordings": accuracy(
            recorded_right,
            "s2s-em of the right answers' recordings: the most that this recogniser finds right",
            asr,
        ),
        # Paired: speech loses what its text had right, on the very same rows.
        "gap": difference(
            as_rates(text_right),
            as_rates(speech_right),
            "s2t-em minus s2s-em on the spoken rows",
            asr,
        ),
        "speech WER": word_error(transcripts, "asr-wer against the model's own text", asr),
        "MOS": mos_score([record["spoken"] for record in records], scorers),
    }


def _retention_scores(records: list[Record]) -> dict[str, Score]:
    """What training and speech take from the language model's typed answers."""
    typed = [
        record
        for record in records
        if record["typed"] is not None and record["typed_pretrained"] is not None
    ]
    # Paired: the differences are over the same questions.
    after, before, spoken = (
        as_rates(is_right(record, record[key]) for record in typed)
        for key in ("typed", "typed_pretrained", "text")
    )
    return {
        "typed accuracy, change by training": difference(
            after, before, "typed-em, as trained minus as pretrained, the same questions"
        ),
        "typed minus spoken": difference(
            after, spoken, "typed-em minus s2t-em, the same questions"
        ),
    }


def _question_error(records: list[Record]) -> dict[str, Score]:
    pairs = [
        (record["question"], record["heard"])
        for record in records
        if record["question"] and record["heard"] is not None
    ]
    protocol = "words of the greedy CTC transcript against the question's"
    return {"question WER": word_error(pairs, protocol)}


def make_silent(run: EvaluatedRun, rows: list[Row], _: Records) -> list[Record]:
    """Answer clips without speech."""
    # In text alone: what is scored is whether anything is transcribed and answered.
    answers = run.answer(rows, "silence: answering in text", speak=False)
    return [
        {
            "id": row.id,
            "answer": label_of(row, "answer"),
            # What the adapter recognises, and not what is left of it for the record.
            "heard": run.pipeline.backbone.detokenize(list(answers[row.id].heard_ids)),
            "text": answers[row.id].text,
        }
        for row in rows
    ]


def score_silent(records: list[Record], _: Scorers) -> Table:
    """Score how often nothing is transcribed, and how often the model asks to repeat."""
    # Any transcript is an error here, of however few words.
    is_empty = [not record["heard"].strip() for record in records]
    asks_to_repeat = [is_right(record, record["text"]) for record in records if record["answer"]]
    scores = {
        "nothing heard": accuracy(is_empty, "empty greedy CTC transcript"),
        "asked to repeat": accuracy(asks_to_repeat, "s2t-em"),
    }
    return {"all": counted(scores)}


def make_free(run: EvaluatedRun, rows: list[Row], _: Records) -> list[Record]:
    """Answer a sample of free questions, spoken and typed, in text alone."""
    # A sample even of the text answers, because each question is also typed twice.
    rows = run.sample([row for row in rows if question_text(row)], run.config.free_rows, "free")
    if not rows:
        return []  # without loading a model
    answers = run.answer(rows, "free: answering in text", speak=False)
    questions = [question_text(row) for row in rows]
    trained, pretrained = _typed_answers(run, questions, "free")
    return [
        {
            "id": row.id,
            "voice": label_of(row, "voice"),
            "question": question,
            "heard": answers[row.id].heard,
            # As tokens: the adapter's CTC is trained on the language model's tokens.
            "said_ids": run.pipeline.backbone.tokenize(question),
            "heard_ids": list(answers[row.id].heard_ids),
            "text": answers[row.id].text,
            "typed": trained[question],
            "typed_pretrained": pretrained[question],
        }
        for row, question in zip(rows, questions)
    ]


def score_free(records: list[Record], _: Scorers) -> Table:
    """Score transcripts, and spoken answers against typed ones, over all rows and by voice."""
    return {name: _free_scores(group) for name, group in groups_of(records, "voice").items()}


def _free_scores(records: list[Record]) -> dict[str, Score]:
    scores = {
        "CTC token error": token_error(
            [(record["said_ids"], record["heard_ids"]) for record in records],
            "ctc-token-error, greedy, all tokens of the transcription",
        ),
    }
    # Training is on the first sentences of the pretrained model's answers, so these are compared.
    for name, key, cut in (
        ("typed answer", "typed", str),
        ("typed answer, as pretrained", "typed_pretrained", first_sentence),
    ):
        pairs = [(cut(record[key]), cut(record["text"])) for record in records]
        suffix = "" if cut is str else ", first sentences"
        same = [same_words(*pair) for pair in pairs]
        scores[f"same as {name}"] = accuracy(same, f"text-agreement, all words{suffix}")
        overlap = [word_f1(*pair) for pair in pairs]
        scores[f"word F1 with {name}"] = mean(overlap, f"text-agreement, word F1{suffix}")
    return counted(scores)


def first_sentence(text: str) -> str:
    """Return a text up to the end of its first sentence."""
    # An end needs a space behind it: "3.5" is one word.
    return re.split(r"(?<=[.!?])\s", text.strip(), maxsplit=1)[0]
