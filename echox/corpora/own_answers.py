"""The language model's own answers to typed questions, stored because they take minutes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from echox.core.files import append_text, atomic_write
from echox.core.progress import Bar
from echox.data.lines import read_records


class OwnAnswer(NamedTuple):
    """An answer of the language model."""

    text: str
    is_whole: bool = True  # False where generation was stopped before its end


AnswerQuestions = Callable[[list[str], int | None], list[OwnAnswer]]
"""Questions [N] and a seed (None for greedy) -> answers [N]."""

# Questions per call: the work that an interruption can lose.
CHUNK = 128


class OwnAnswers:
    """Answers of the language model, each generated once and stored in a JSONL file.

    Args:
        path: the file; it is read if it exists, and appended to.
        answer_questions: generates the answers that the file lacks.
    """

    def __init__(self, path: Path, answer_questions: AnswerQuestions) -> None:
        self.path = path
        self.answer_questions = answer_questions
        self._stored = self._read()

    def to(self, questions: Sequence[str], seed: int | None = None) -> dict[str, OwnAnswer]:
        """Return the answers to questions, generating those that are not stored.

        Args:
            questions: in writing.
            seed: of the sampling; None decodes greedily.

        Returns:
            question -> answer.
        """
        # A dict keeps the order of the questions, so that the batches are the same in every run.
        distinct = dict.fromkeys(questions)
        missing = [question for question in distinct if (question, seed) not in self._stored]
        label = "asking the language model" + ("" if seed is None else f", sample {seed}")
        with Bar(
            label, len(distinct), unit="question", initial=len(distinct) - len(missing)
        ) as bar:
            for start in range(0, len(missing), CHUNK):
                chunk = missing[start : start + CHUNK]
                # Written chunk by chunk: an interrupted run goes on from here.
                self._store(chunk, seed, self.answer_questions(chunk, seed))
                bar.update(len(chunk))
        return {question: self._stored[question, seed] for question in questions}

    def _store(self, questions: list[str], seed: int | None, answers: list[OwnAnswer]) -> None:
        answered = dict(zip(questions, answers, strict=True))
        records = [
            {"question": question, "seed": seed, "answer": answer.text, "whole": answer.is_whole}
            for question, answer in answered.items()
        ]
        append_text(self.path, "".join(json.dumps(record) + "\n" for record in records))
        self._stored.update({(question, seed): answer for question, answer in answered.items()})

    def _read(self) -> dict[tuple[str, int | None], OwnAnswer]:
        if not self.path.exists():
            return {}
        records = [record for _, record in read_records(self.path) if _is_answer(record)]
        content = "".join(json.dumps(record) + "\n" for record in records).encode()
        if self.path.read_bytes() != content:
            # Killed while writing, or damaged: the next record must begin a line of its own.
            with atomic_write(self.path) as unfinished:
                unfinished.write_bytes(content)
        # Earlier versions did not store whether an answer is whole; those are generated again.
        return {
            (record["question"], record["seed"]): OwnAnswer(record["answer"], record["whole"])
            for record in records
            if "whole" in record
        }


def _is_answer(record: Any) -> bool:
    """Whether a line of the file is a record; one of before `whole` was stored is one, too."""
    return (
        isinstance(record, dict)
        and isinstance(record.get("question"), str)
        and isinstance(record.get("answer"), str)
        and isinstance(record.get("seed", ""), int | None)
        and isinstance(record.get("whole", True), bool)
    )
