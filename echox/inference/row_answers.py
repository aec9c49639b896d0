"""Answers to the rows of a manifest, of which one that fails keeps no other from its answer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from echox.backbones.base import Turn
from echox.core.errors import CapacityError, SignalError
from echox.core.memory import is_out_of_memory, out_of_memory_text
from echox.data.audio import load_audio
from echox.data.audio_ref import Audio
from echox.data.manifest import Item, Role, Row
from echox.inference.answers import Answer, Piece, Question
from echox.inference.pipeline import SpeechToSpeechPipeline
from echox.inference.streaming import AnswerStreams


def answer_rows(
    pipeline: SpeechToSpeechPipeline, rows: Sequence[Row], *, speak: bool = True
) -> list[tuple[Row, Answer | str]]:
    """Answer the rows of a manifest in one batch.

    Args:
        pipeline: answers them.
        rows: each up to its last answer is a question.
        speak: False generates text only.

    Returns:
        each row with its answer, or with the reason why it has none; such a row does not keep the
        others from their answers.

    Raises:
        CapacityError: memory ran out, which no other row would change.
    """
    questions = [(row, _question_or_reason(row, pipeline.rate_hz)) for row in rows]
    usable = [question for _, question in questions if isinstance(question, Question)]
    # In the order of the usable rows, so each of them takes the next answer.
    answers = iter(_reply(pipeline, usable, speak))
    return [
        (row, next(answers) if isinstance(question, Question) else question)
        for row, question in questions
    ]


def _reply(
    pipeline: SpeechToSpeechPipeline, questions: list[Question], speak: bool
) -> list[Answer | str]:
    """Answer questions together, or one by one where together they fail."""
    try:
        return list(pipeline.reply(questions, speak=speak))
    # Of a row itself; any other error would meet every row, so it ends the run.
    except SignalError as error:
        if len(questions) == 1:
            return [str(error)]
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise CapacityError(_memory_sentence(error, len(questions))) from error
    return [outcome for question in questions for outcome in _reply(pipeline, [question], speak)]


def _memory_sentence(error: BaseException, count: int) -> str:
    rows = f"a batch of {count} rows" if count > 1 else "one row"
    smaller = "set a smaller batch_size" if count > 1 else "give shorter clips"
    way_out = f"{smaller}, or free memory; a run started again keeps the rows it has answered"
    return out_of_memory_text(error, f"it happened while answering {rows}: {way_out}")


@dataclass(slots=True)
class _Begun:
    """A row whose answer is on its way."""

    row: Row
    samples: list[Tensor] = field(default_factory=list)  # each [T]


def stream_rows(
    pipeline: SpeechToSpeechPipeline, rows: Iterable[Row], at_once: int
) -> Iterator[tuple[Row, Answer | str]]:
    """Answer the rows of a manifest piece by piece, each as soon as one before it has ended.

    Args:
        pipeline: answers them.
        rows: each up to its last answer is a question.
        at_once: rows that are answered together.

    Yields:
        as they end, each row with its answer, or with the reason why it has none. Text, units and
        samples are those of `answer_rows`; `timings_s` has the seconds of `Milestones`.

    Raises:
        CapacityError: memory ran out.
    """
    streams, waiting = AnswerStreams(pipeline), iter(rows)
    begun: dict[int, _Begun] = {}
    try:
        while True:
            yield from _begin(streams, waiting, begun, at_once)
            if not begun:
                return
            for number, piece in _step(streams, len(begun)):
                if piece.samples is not None:
                    begun[number].samples.append(piece.samples)
                if piece.answer is not None or piece.error:
                    ended = begun.pop(number)
                    yield ended.row, _outcome(piece, ended.samples, pipeline)
    finally:
        for number in begun:
            streams.cancel(number)


def _begin(
    streams: AnswerStreams, waiting: Iterator[Row], begun: dict[int, _Begun], at_once: int
) -> Iterator[tuple[Row, str]]:
    """Begin rows until so many are on their way; those that cannot are given with the reason."""
    while len(begun) < at_once and (row := next(waiting, None)) is not None:
        try:
            question = question_of(row, streams.pipeline.rate_hz)
            begun[streams.add(question)] = _Begun(row)
        except SignalError as error:
            yield row, str(error)


def _step(streams: AnswerStreams, count: int) -> list[tuple[int, Piece]]:
    """Advance the rows' answers; an error that is not of one row ends the run."""
    try:
        pieces = streams.step()
        for _, piece in pieces:
            if piece.cause is not None and not isinstance(piece.cause, SignalError):
                raise piece.cause
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise CapacityError(_memory_sentence(error, count)) from error
    return pieces


def _outcome(piece: Piece, samples: list[Tensor], pipeline: SpeechToSpeechPipeline) -> Answer | str:
    """The whole answer that ends with a piece, or the reason why there is none."""
    if piece.answer is None:
        return piece.error
    if not samples:
        return piece.answer
    rate_hz = pipeline.require_codec().rate_hz
    return replace(piece.answer, samples=torch.cat(samples), rate_hz=rate_hz)


def _question_or_reason(row: Row, rate_hz: int) -> Question | str:
    try:
        return question_of(row, rate_hz)
    except SignalError as error:
        return str(error)


def question_of(row: Row, rate_hz: int) -> Question:
    """A row up to its last answer, with its clips [T] at `rate_hz`.

    Raises:
        SignalError: a clip cannot be read, is empty, or holds NaN; or nothing is asked.
    """
    turns = list(row.turns)
    # Rows of a training manifest end with the recorded answer.
    if turns[-1].role is Role.ASSISTANT:
        turns.pop()
    if not turns:
        raise SignalError("the row asks nothing: it has no user turn before the assistant's")
    clips = tuple(load_audio(clip, rate_hz) for clip in clips_of(turns))
    return Question(
        tuple(Turn(item.role.value, item.text, _spoken(item) is not None) for item in turns), clips
    )


def clips_of(turns: Iterable[Item]) -> list[Audio]:
    """Return the clips of turns, as far as the model hears them."""
    return [clip for clip in map(_spoken, turns) if clip is not None]


def _spoken(item: Item) -> Audio | None:
    # Audio of the assistant is a target of training; its text is what the model reads.
    return item.audio if item.role is Role.USER else None
