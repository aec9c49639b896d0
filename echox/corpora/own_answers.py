"""The language model's own answers to typed questions, kept on disk because they take minutes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from echox.progress import Bar


class OwnAnswer(NamedTuple):
    """What the language model said."""

    text: str
    is_whole: bool = True  # False where it was stopped before its end


AnswerQuestions = Callable[[list[str], int | None], list[OwnAnswer]]
"""Questions and a seed (None for greedy) -> one answer each."""

# Questions per call: what an interruption can lose.
CHUNK = 128


class OwnAnswers:
    """Answers in a JSONL file, asked for once."""

    def __init__(self, path: Path, answer_questions: AnswerQuestions) -> None:
        self.path = path
        self.answer_questions = answer_questions
        self._known = self._read()

    def to(self, questions: Sequence[str], seed: int | None = None) -> dict[str, OwnAnswer]:
        """The model's answers by question; `seed` None asks greedily."""
        distinct = dict.fromkeys(questions)
        missing = [question for question in distinct if (question, seed) not in self._known]
        label = "asking the language model" + ("" if seed is None else f", sample {seed}")
        with Bar(label, len(distinct), unit="question", initial=len(distinct) - len(missing)) as bar:
            for start in range(0, len(missing), CHUNK):
                chunk = missing[start : start + CHUNK]
                self._keep(chunk, seed, self.answer_questions(chunk, seed))
                bar.update(len(chunk))
        return {question: self._known[question, seed] for question in questions}

    def _keep(self, questions: list[str], seed: int | None, answers: list[OwnAnswer]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as out:
            for question, answer in zip(questions, answers, strict=True):
                self._known[question, seed] = answer
                out.write(json.dumps({"question": question, "seed": seed, "answer": answer.text, "whole": answer.is_whole}) + "\n")

    def _read(self) -> dict[tuple[str, int | None], OwnAnswer]:
        if not self.path.exists():
            return {}
        whole, _, half = self.path.read_text("utf-8").rpartition("\n")
        if half:
            # Killed while writing: what follows must begin a line of its own.
            self.path.write_text(whole + "\n" if whole else "", "utf-8")
        records = map(json.loads, whole.split("\n") if whole else [])
        known = (record for record in records if "whole" in record)  # earlier versions did not say, so those are asked again
        return {(record["question"], record["seed"]): OwnAnswer(record["answer"], record["whole"]) for record in known}
