"""The sections of a report. Each has two halves: `make` runs the models and returns plain records, `score` reads the records."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from echox.data.manifest import Row
from echox.data.text import contains_answer
from echox.evaluation.bench import RECORDINGS_HZ, Bench, Sound, asked
from echox.evaluation.scores import Score, accuracy, difference, mean, same_words, token_error, word_error, word_errors, word_f1

Record = dict[str, Any]
Judges = Mapping[str, str | None]
Table = dict[str, dict[str, Score]]  # group of rows -> metric -> score

QUESTIONS = "questions"


@dataclass(frozen=True, slots=True)
class Section:
    """One part of a report."""

    name: str
    title: str
    about: str  # what the reader should know of it, in a sentence or two
    manifest: str
    needs: tuple[str, ...]  # stages of the run, one of each group "a|b"
    make: Callable[[Bench, list[Row], dict[str, list[Record]]], list[Record]]  # bench, rows, records of the sections before
    score: Callable[[list[Record], Judges], Table]
    count: str | None = None  # the config's field that says how many rows it takes; 0 leaves it out


def make_questions(bench: Bench, rows: list[Row], _: dict[str, list[Record]]) -> list[Record]:
    return _ask(bench, rows, QUESTIONS, aloud=bench.config.spoken_rows, typed=bench.config.typed_rows)


def make_reworded(bench: Bench, rows: list[Row], _: dict[str, list[Record]]) -> list[Record]:
    return _ask(bench, rows, "reworded", aloud=bench.config.spoken_rows, typed=bench.config.typed_rows)


def make_unseen(bench: Bench, rows: list[Row], _: dict[str, list[Record]]) -> list[Record]:
    return _ask(bench, rows, "unseen", aloud=bench.config.spoken_rows, typed=bench.config.typed_rows)


def make_open(bench: Bench, rows: list[Row], _: dict[str, list[Record]]) -> list[Record]:
    rows = bench.sample(rows, bench.config.open_rows, "open")
    return _ask(bench, rows, "open", aloud=0, typed=len(rows))


def _ask(bench: Bench, rows: list[Row], name: str, *, aloud: int, typed: int) -> list[Record]:
    """Answers to all rows in text, to a sample of `aloud` rows aloud, and to a sample of `typed` questions in writing."""
    rows = [row for row in rows if row.extra.get("answer")]
    aloud = bench.sample(rows, aloud, name) if bench.answerer.speaks else []
    ids = {row.id for row in aloud}
    answers = bench.answer(aloud, f"{name}: answering aloud", speak=True)
    answers |= bench.answer([row for row in rows if row.id not in ids], f"{name}: answering in text", speak=False)
    judged = bench.judge({row.id: Sound(answers[row.id].samples, answers[row.id].rate_hz) for row in aloud}, name) if aloud else {}
    recorded = _transcribed(bench, bench.recordings({row.id: row.answer.audio for row in aloud if row.answer.audio is not None}))
    questions = {asked(row) for row in bench.sample(rows, typed, f"{name} typed")}
    trained, pretrained = (
        bench.typed(questions, f"{name}: typed, {how}", trained=on) for how, on in (("as trained", True), ("as pretrained", False))
    )
    return [
        {
            "id": row.id,
            "kind": row.extra.get("kind", ""),
            "voice": row.extra.get("voice", ""),
            "question": asked(row),
            "answer": str(row.extra["answer"]),
            "heard": answers[row.id].heard,
            "text": answers[row.id].text,
            "spoken": judged.get(row.id),
            "recorded": recorded.get(row.id),
            "typed": trained.get(asked(row)),
            "typed_pretrained": pretrained.get(asked(row)),
        }
        for row in rows
    ]


def score_asked(records: list[Record], judges: Judges) -> Table:
    return {group: _score_asked(rows, judges) for group, rows in _groups(records, "kind", "voice").items()}


def _score_asked(records: list[Record], judges: Judges) -> dict[str, Score]:
    spoken = [record for record in records if record["spoken"] is not None]
    text_right = [(float(_is_right(record, record["text"])), 1) for record in spoken]
    speech_right = [(float(_is_right(record, record["spoken"]["transcript"])), 1) for record in spoken]
    scores = {
        "S2T accuracy": accuracy([_is_right(record, record["text"]) for record in records], "s2t-em"),
        "S2T accuracy, spoken rows": accuracy([bool(right) for right, _ in text_right], "s2t-em"),
        "S2S accuracy": accuracy([bool(right) for right, _ in speech_right], "s2s-em", judges["asr"]),
        "S2S accuracy, recordings": accuracy(
            [_is_right(record, record["recorded"]) for record in spoken if record.get("recorded") is not None],
            "s2s-em of the right answers' recordings: the most that this recogniser finds right",
            judges["asr"],
        ),
        "gap": difference(text_right, speech_right, "s2t-em minus s2s-em on the spoken rows", judges["asr"]),
        "speech WER": word_error(
            [(record["text"], record["spoken"]["transcript"]) for record in spoken], "asr-wer against the model's own text", judges["asr"]
        ),
        "MOS": _mos([record["spoken"] for record in spoken], judges),
    }
    for name, key in (("typed accuracy", "typed"), ("typed accuracy, as pretrained", "typed_pretrained")):
        answers = {record["question"]: record for record in records if record[key] is not None}
        scores[name] = accuracy([_is_right(record, record[key]) for record in answers.values()], "typed-em")
    return _counted(scores | _kept(records))


def _kept(records: list[Record]) -> dict[str, Score]:
    """What training took from the language model's answers in writing, what speech takes from them, and how much is misheard."""
    typed = [record for record in records if record["typed"] is not None and record["typed_pretrained"] is not None]
    after, before, spoken = (
        [(float(_is_right(record, record[key])), 1) for record in typed] for key in ("typed", "typed_pretrained", "text")
    )
    return {
        "typed accuracy, change by training": difference(after, before, "typed-em, as trained minus as pretrained, the same questions"),
        "typed minus spoken": difference(after, spoken, "typed-em minus s2t-em, the same questions"),
        "question WER": word_error(
            [(record["question"], record["heard"]) for record in records], "words of the greedy CTC transcript against the question's"
        ),
    }


def make_silent(bench: Bench, rows: list[Row], _: dict[str, list[Record]]) -> list[Record]:
    answers = bench.answer(rows, "silence: answering in text", speak=False)
    return [{"id": row.id, "answer": str(row.extra["answer"]), "heard": answers[row.id].heard, "text": answers[row.id].text} for row in rows]


def score_silent(records: list[Record], _: Judges) -> Table:
    scores = {
        "nothing heard": accuracy([not record["heard"].strip() for record in records], "empty greedy CTC transcript"),
        "asked to repeat": accuracy([_is_right(record, record["text"]) for record in records], "s2t-em"),
    }
    return {"all": _counted(scores)}


def make_free(bench: Bench, rows: list[Row], _: dict[str, list[Record]]) -> list[Record]:
    rows = bench.sample(rows, bench.config.free_rows, "free")
    answers = bench.answer(rows, "free: answering in text", speak=False)
    questions = [asked(row) for row in rows]
    trained, pretrained = (
        bench.typed(questions, f"free: typed, {how}", trained=on) for how, on in (("as trained", True), ("as pretrained", False))
    )
    tokenize = bench.answerer.backbone.tokenize
    return [
        {
            "id": row.id,
            "voice": row.extra.get("voice", ""),
            "question": question,
            "heard": answers[row.id].heard,
            "said_ids": tokenize(question),
            "heard_ids": list(answers[row.id].heard_ids),
            "text": answers[row.id].text,
            "typed": trained[question],
            "typed_pretrained": pretrained[question],
        }
        for row, question in zip(rows, questions)
    ]


def score_free(records: list[Record], _: Judges) -> Table:
    return {group: _score_free(rows) for group, rows in _groups(records, "voice").items()}


def _score_free(records: list[Record]) -> dict[str, Score]:
    scores = {
        "CTC token error": token_error(
            [(record["said_ids"], record["heard_ids"]) for record in records], "ctc-token-error, greedy, all tokens of the transcription"
        ),
    }
    for name, key, cut in (("typed answer", "typed", str), ("typed answer, as pretrained", "typed_pretrained", first_sentence)):
        pairs = [(cut(record[key]), cut(record["text"])) for record in records]
        how = "" if cut is str else ", first sentences"
        scores[f"same as {name}"] = accuracy([same_words(*pair) for pair in pairs], f"text-agreement, all words{how}")
        scores[f"word F1 with {name}"] = mean([word_f1(*pair) for pair in pairs], f"text-agreement, word F1{how}")
    return _counted(scores)


def first_sentence(text: str) -> str:
    """A text up to the end of its first sentence."""
    return re.split(r"(?<=[.!?])\s", text.strip(), maxsplit=1)[0]


def make_t2c(bench: Bench, rows: list[Row], _: dict[str, list[Record]]) -> list[Record]:
    kinds = sorted({row.extra.get("kind", "") for row in rows})
    recorded = [row for row in rows if row.answer is not None and row.answer.audio is not None]
    chosen = [
        row
        for kind in kinds
        for row in bench.sample([row for row in recorded if row.extra.get("kind", "") == kind], bench.config.t2c_rows, f"t2c {kind}")
    ]
    said = bench.said([row.answer.text for row in chosen], "t2c", "t2c: speaking")
    clips = {row.id: row.answer.audio for row in chosen}
    codec = bench.judge(bench.through_codec(clips, "t2c: codec"), "codec")
    source = bench.judge(bench.recordings(clips), "source", keep=False)
    return [
        {
            "id": row.id,
            "kind": row.extra.get("kind", ""),
            "text": row.answer.text,
            "source": source[row.id],
            "codec": codec[row.id],
            "t2c": said[row.answer.text],
        }
        for row in chosen
    ]


def score_t2c(records: list[Record], judges: Judges) -> Table:
    return {group: _score_t2c(rows, judges) for group, rows in _groups(records, "kind").items()}


def _score_t2c(records: list[Record], judges: Judges) -> dict[str, Score]:
    scores = {}
    for name, key in (("recordings", "source"), ("codec", "codec"), ("T2C", "t2c")):
        scores[f"{name} WER"] = word_error(
            [(record["text"], record[key]["transcript"]) for record in records], "asr-wer against the text", judges["asr"]
        )
    for name, key in (("recordings", "source"), ("codec", "codec"), ("T2C", "t2c")):
        scores[f"{name} MOS"] = _mos([record[key] for record in records], judges)
    return _counted(scores)


def make_cascade(bench: Bench, rows: list[Row], before: dict[str, list[Record]]) -> list[Record]:
    """The cascades on the questions that Echo answered aloud."""
    echo = [record for record in before.get(QUESTIONS, []) if record["spoken"] is not None]
    by_id = {row.id: row for row in rows}
    full = bench.sample(echo, bench.config.cascade_rows, "cascade")
    clips = bench.recordings({record["id"]: by_id[record["id"]].question.audio for record in full})
    written = _transcribed(bench, clips)
    typed = bench.typed(written.values(), "cascade: typed", trained=True)
    texts = {record["id"]: typed[written[record["id"]]] for record in full}
    said = bench.said([*(record["text"] for record in echo), *texts.values()], "cascade", "cascade: speaking")
    return [
        {
            **{key: record[key] for key in ("id", "kind", "voice", "question", "answer", "text")},
            "echo": record["spoken"],
            "cascade": said[record["text"]],
            "full": _full(record["id"], written, texts, said),
        }
        for record in echo
    ]


def _transcribed(bench: Bench, clips: Mapping[str, Sound]) -> dict[str, str]:
    names = list(clips)
    texts = bench.transcriber.transcribe([clips[name].samples for name in names], RECORDINGS_HZ) if names else []
    # A recogniser that hears nothing still hands a question on.
    return {name: text or "..." for name, text in zip(names, texts)}


def _full(row_id: str, written: Mapping[str, str], texts: Mapping[str, str], said: Mapping[str, Record]) -> Record | None:
    if row_id not in texts:
        return None
    return {"asr": written[row_id], "text": texts[row_id], "spoken": said[texts[row_id]]}


def score_cascade(records: list[Record], judges: Judges) -> Table:
    asr = judges["asr"]
    sides: dict[str, list[Record]] = {
        "Echo": [record["echo"] for record in records],
        "greedy text, T2C": [record["cascade"] for record in records],
    }
    right = {
        name: [(float(_is_right(record, side["transcript"])), 1) for record, side in zip(records, spoken)] for name, spoken in sides.items()
    }
    errors = {
        name: [word_errors(record["text"], side["transcript"]) for record, side in zip(records, spoken)] for name, spoken in sides.items()
    }
    table: Table = {
        name: {
            "S2S accuracy": accuracy([bool(value) for value, _ in right[name]], "s2s-em", asr),
            "speech WER": word_error(
                [(record["text"], side["transcript"]) for record, side in zip(records, spoken)], "asr-wer against the greedy text", asr
            ),
            "MOS": _mos(spoken, judges),
        }
        for name, spoken in sides.items()
    }
    table["Echo minus greedy text, T2C"] = {
        "S2S accuracy": difference(*right.values(), "s2s-em, paired difference", asr),
        "speech WER": difference(*errors.values(), "asr-wer, paired difference", asr),
    }
    full = [record for record in records if record["full"] is not None]
    table["recogniser, typed question, T2C"] = {
        "S2S accuracy": accuracy([_is_right(record, record["full"]["spoken"]["transcript"]) for record in full], "s2s-em", asr),
        "speech WER": word_error(
            [(record["full"]["text"], record["full"]["spoken"]["transcript"]) for record in full], "asr-wer against its own text", asr
        ),
        "MOS": _mos([record["full"]["spoken"] for record in full], judges),
        "text accuracy": accuracy([_is_right(record, record["full"]["text"]) for record in full], "cascade text-em", asr),
        "question WER": word_error([(record["question"], record["full"]["asr"]) for record in full], "asr-wer of the question", asr),
    }
    return {group: scores for group, found in table.items() if (scores := _counted(found))}


def _is_right(record: Record, text: str) -> bool:
    return contains_answer(text, record["answer"])


def _mos(spoken: Sequence[Record], judges: Judges) -> Score:
    return mean([side["mos"] for side in spoken if side["mos"] is not None], "distillmos, mean over clips", judges["mos"])


def _groups(records: list[Record], *keys: str) -> dict[str, list[Record]]:
    """All records, then those of each value of each key."""
    groups = {"all": records}
    for key in keys:
        for value in sorted({record[key] for record in records}):
            groups[f"{key} {value}"] = [record for record in records if record[key] == value]
    return groups


def _counted(scores: dict[str, Score]) -> dict[str, Score]:
    return {name: score for name, score in scores.items() if score.value is not None}


SECTIONS = (
    Section(
        QUESTIONS,
        "Trained kinds, unheard voices and phrasings",
        "Text accuracy is over all rows, everything spoken over a sample; typed accuracy asks the same language model in writing.",
        "questions.test.jsonl",
        ("echo|s2t",),
        make_questions,
        score_asked,
    ),
    Section(
        "reworded",
        "Trained facts in wordings that no fact is trained in",
        "The questions of people who do not know how the training asks.",
        "reworded.test.jsonl",
        ("echo|s2t",),
        make_reworded,
        score_asked,
    ),
    Section(
        "unseen",
        "Facts trained in no phrasing",
        "What the language model does not know from its pretraining it cannot answer here; typed accuracy says what it knows.",
        "unseen.test.jsonl",
        ("echo|s2t",),
        make_unseen,
        score_asked,
    ),
    Section(
        "open",
        "Open questions about the world",
        "What the language model knows from its pretraining: in writing before training, in writing after it, and when it is asked aloud.",
        "open.test.jsonl",
        ("echo|s2t",),
        make_open,
        score_asked,
        count="open_rows",
    ),
    Section(
        "silent",
        "Silence and noise",
        "Clips in which nobody speaks: whether a question is heard, and whether one is answered.",
        "silent.test.jsonl",
        ("echo|s2t",),
        make_silent,
        score_silent,
    ),
    Section(
        "free",
        "Free English questions of no trained kind",
        "How much is understood, and whether the spoken question is answered like the typed one.",
        "free.test.jsonl",
        ("echo|s2t",),
        make_free,
        score_free,
        count="free_rows",
    ),
    Section(
        "t2c",
        "T2C alone",
        "Typed text, spoken; beside it the recordings themselves and the codec's rendering of them (wave, units, wave).",
        "speech.test.jsonl",
        ("t2c",),
        make_t2c,
        score_t2c,
        count="t2c_rows",
    ),
    Section(
        "cascade",
        "Echo and cascades",
        "The same questions and the same greedy text, spoken by Echo from hidden states and by T2C from the text; "
        "below, Whisper writes the question down first.",
        "questions.test.jsonl",
        ("echo", "t2c"),
        make_cascade,
        score_cascade,
        count="cascade_rows",
    ),
)
