"""The sections of a report: what each measures, on which manifest, and by which functions."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from echox.data.lines import open_manifest
from echox.data.manifest import Row
from echox.evaluation.config import EvaluateConfig
from echox.evaluation.evaluated_run import EvaluatedRun
from echox.evaluation.own_sections import (
    answers_file,
    make_answered,
    make_own,
    missing_from,
    score_own,
)
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
from echox.inference.batch_run import file_name
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
    manifest: str | None  # of the corpus, or an absolute path; None for answers without one
    needs: tuple[tuple[Use, ...], ...]  # of the run's stages, one of each group
    # Runs the models: run, rows, records of the sections before -> records.
    make: Callable[[EvaluatedRun, list[Row], Records], list[Record]]
    # Reads the records: records, names of the scorers -> scores.
    score: Callable[[list[Record], Scorers], Table]
    count: str | None = None  # field of the config with the number of rows; 0 leaves it out
    # What a row must have for any score; said where no row has it.
    wants: str = 'a label "answer", the words of a right answer'
    # Reads the records: a sentence for each score that rows lack something for.
    missing: Callable[[list[Record]], list[str]] | None = None


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
        wants="a clip without speech",
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
        wants="the words of its question",
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
        wants="a recorded answer",
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
        wants="an answer that was spoken in the section of questions",
    ),
)


def sections_of(config: EvaluateConfig) -> list[Section]:
    """Return the sections that a config asks for.

    Those of the demo corpus are left out where manifests or answers of one's own are named and the
    corpus is not.

    Raises:
        ManifestError: one of the manifests is missing or unreadable.
    """
    for path in config.manifests:
        with open_manifest(Path(path)):
            pass  # opened for its errors: a section before it may take hours
    names = _names(config.manifests or ([config.answers] if config.answers else []))
    if config.answers is not None:
        return [_answered(name, path, config.answers) for name, path in names.items()]
    own = [_own(name, path) for name, path in names.items()]
    return own if own and config.corpus is None else [*SECTIONS, *own]


def _names(paths: Iterable[str]) -> dict[str, str]:
    """Names of sections, which are also folders of wavs, for paths."""
    names: dict[str, str] = {}
    for path in paths:
        name = file_name(f"own-{Path(path).stem}")
        # Manifests of one name may lie in several folders.
        names[name if name not in names else f"{name}-{len(names) + 1}"] = path
    return names


def _own(name: str, path: str) -> Section:
    return Section(
        name,
        f"Your own data: {path}",
        "Text is scored on all rows, everything spoken on a sample; typed answers are those of the "
        "same language model in writing.",
        os.path.abspath(path),
        (ANSWERS,),
        functools.partial(make_own, name=name),
        score_own,
        missing=missing_from,
        wants='a label "answer", an assistant\'s text, or a "transcription" of its question',
    )


def _answered(name: str, path: str, answers: str) -> Section:
    is_manifest = path != answers
    return Section(
        name,
        f"Answers of {answers}" + (f" to {path}" if is_manifest else ""),
        "Text is scored on all rows, everything spoken on a sample.",
        os.path.abspath(path) if is_manifest else None,
        (),
        functools.partial(make_answered, name=name, path=answers_file(answers)),
        score_own,
        missing=missing_from,
        wants="speech, and no manifest says what was asked; name it by manifests=[FILE.jsonl]"
        if not is_manifest
        else 'speech, a label "answer", an assistant\'s text, or a "transcription"',
    )
