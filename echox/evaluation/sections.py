"""The sections of a report: what each measures, on which manifest, and by which functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from echox.data.manifest import Row
from echox.evaluation.evaluated_run import EvaluatedRun
from echox.evaluation.question_sections import (
    QUESTIONS,
    Records,
    make_free,
    make_open,
    make_questions,
    make_reworded,
    make_silent,
    make_unseen,
    score_asked,
    score_free,
    score_silent,
)
from echox.evaluation.records import Record, Scorers, Table
from echox.evaluation.speech_sections import make_cascade, make_t2c, score_cascade, score_t2c
from echox.inference.load import ANSWERS
from echox.tasks.base import Use


@dataclass(frozen=True, slots=True)
class Section:
    """One part of a report.

    Its records are stored, so that scores can be computed again without running the models.
    """

    name: str
    title: str
    about: str  # a sentence or two for the reader
    manifest: str
    needs: tuple[tuple[Use, ...], ...]  # of the run's stages, one of each group
    # Runs the models: run, rows, records of the sections before -> records.
    make: Callable[[EvaluatedRun, list[Row], Records], list[Record]]
    # Reads the records: records, names of the scorers -> scores.
    score: Callable[[list[Record], Scorers], Table]
    count: str | None = None  # field of the config with the number of rows; 0 leaves it out


# In this order, because the cascades take the questions that an earlier section has answered.
SECTIONS = (
    Section(
        QUESTIONS,
        "Trained kinds, unheard voices and phrasings",
        "Text accuracy is over all rows, everything spoken over a sample; typed accuracy asks the "
        "same language model in writing.",
        "questions.test.jsonl",
        (ANSWERS,),
        make_questions,
        score_asked,
    ),
    Section(
        "reworded",
        "Trained facts in wordings that no fact is trained in",
        "The questions of people who do not know how the training asks.",
        "reworded.test.jsonl",
        (ANSWERS,),
        make_reworded,
        score_asked,
    ),
    Section(
        "unseen",
        "Facts trained in no phrasing",
        "What the language model does not know from its pretraining it cannot answer here; typed "
        "accuracy says what it knows.",
        "unseen.test.jsonl",
        (ANSWERS,),
        make_unseen,
        score_asked,
    ),
    Section(
        "open",
        "Open questions about the world",
        "What the language model knows from its pretraining: in writing before training, in "
        "writing after it, and when it is asked aloud.",
        "open.test.jsonl",
        (ANSWERS,),
        make_open,
        score_asked,
        count="open_rows",
    ),
    Section(
        "silent",
        "Silence and noise",
        "Clips in which nobody speaks: whether a question is heard, and whether one is answered.",
        "silent.test.jsonl",
        (ANSWERS,),
        make_silent,
        score_silent,
    ),
    Section(
        "free",
        "Free English questions of no trained kind",
        "How much is understood, and whether the spoken question is answered like the typed one.",
        "free.test.jsonl",
        (ANSWERS,),
        make_free,
        score_free,
        count="free_rows",
    ),
    Section(
        "t2c",
        "T2C alone",
        "Typed text, spoken; beside it the recordings themselves and the codec's rendering of them "
        "(wave, units, wave).",
        "speech.test.jsonl",
        ((Use.synthesize,),),
        make_t2c,
        score_t2c,
        count="t2c_rows",
    ),
    Section(
        "cascade",
        "Echo and cascades",
        "The same questions and the same greedy text, spoken by Echo from hidden states and by T2C "
        "from the text; below, Whisper writes the question down first.",
        "questions.test.jsonl",
        ((Use.answer_aloud,), (Use.synthesize,)),
        make_cascade,
        score_cascade,
        count="cascade_rows",
    ),
)
