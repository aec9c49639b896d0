"""Answers for many sessions by one model, in a thread of its own."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from threading import Thread

from echox.core.errors import EchoxError
from echox.core.memory import is_out_of_memory, out_of_memory_text
from echox.inference.answers import Piece, Question
from echox.inference.pipeline import SpeechToSpeechPipeline
from echox.inference.streaming import UNEXPECTED, AnswerStreams

log = logging.getLogger(__name__)

Receive = Callable[[Piece], None]


@dataclass(slots=True, eq=False)
class Asked:
    """A question that is being answered."""

    question: Question
    receive: Receive
    speak: bool = True
    max_tokens: int | None = None
    number: int | None = None  # in the streams, once it began
    cancelled: bool = False


@dataclass(slots=True)
class AnswerService:
    """Generates the answers of all sessions together.

    `ask` and `cancel` may be called from any thread. Pieces are given in the service's own thread,
    where they must not block.
    """

    pipeline: SpeechToSpeechPipeline
    _commands: SimpleQueue[Asked | Question | None] = field(default_factory=SimpleQueue)
    _thread: Thread | None = None
    _asked: dict[int, Asked] = field(default_factory=dict)

    def ask(
        self,
        question: Question,
        receive: Receive,
        *,
        speak: bool = True,
        max_tokens: int | None = None,
    ) -> Asked:
        """Begin to answer a question.

        Args:
            question: the conversation.
            receive: takes each piece; the last one has an `answer` or an `error`.
            speak: False generates text only.
            max_tokens: text tokens at most, where fewer than the pipeline allows.

        Returns:
            what `cancel` takes.
        """
        self._start()
        asked = Asked(question, receive, speak, max_tokens)
        self._commands.put(asked)
        return asked

    def prefill(self, question: Question) -> None:
        """Have the model read what precedes a question that is still being spoken, if it is idle.

        Args:
            question: whose last turn has a place for audio, without a clip for it.
        """
        self._start()
        self._commands.put(question)

    def _start(self) -> None:
        if self._thread is None:
            self._thread = Thread(target=self._run, name="echox answers", daemon=True)
            self._thread.start()

    def cancel(self, asked: Asked) -> None:
        """Stop an answer: no piece follows, and what it holds is free after a step."""
        asked.cancelled = True
        self._commands.put(asked)

    def close(self) -> None:
        """Stop all answers and end the thread."""
        if self._thread is not None:
            self._commands.put(None)
            self._thread.join()
            self._thread = None

    @property
    def active(self) -> int:
        """How many answers are being generated."""
        return len(self._asked)

    def _run(self) -> None:
        streams = AnswerStreams(self.pipeline)
        while self._take_commands(streams):
            try:
                pieces = streams.step()
            except Exception as error:
                # Of the models rather than of one question, which a piece would tell.
                self._fail_all(error)
                streams = AnswerStreams(self.pipeline)
                continue
            for number, piece in pieces:
                self._give(number, piece)
        for number in list(self._asked):
            streams.cancel(number)
        self._asked.clear()

    def _take_commands(self, streams: AnswerStreams) -> bool:
        """Carry out what was asked since the last step; False ends the thread."""
        # With nothing to generate the thread waits for the next command.
        is_idle = streams.is_idle
        while True:
            try:
                command = self._commands.get(block=is_idle)
            except Empty:
                return True
            if command is None:
                return False
            if isinstance(command, Question):
                # Nobody waits for it, so it is left out where there is anything else to do.
                if streams.is_idle and self._commands.empty():
                    _prefill(streams, command)
                continue
            self._carry_out(command, streams)
            is_idle = False

    def _carry_out(self, asked: Asked, streams: AnswerStreams) -> None:
        if asked.cancelled:
            if asked.number is not None:
                streams.cancel(asked.number)
                self._asked.pop(asked.number, None)
            return
        try:
            asked.number = streams.add(
                asked.question, speak=asked.speak, max_tokens=asked.max_tokens
            )
        except EchoxError as error:
            asked.receive(Piece("", error=str(error)))
            return
        self._asked[asked.number] = asked

    def _give(self, number: int, piece: Piece) -> None:
        # One that was cancelled meanwhile gets nothing more.
        asked = self._asked.get(number)
        if piece.answer is not None or piece.error:
            self._asked.pop(number, None)
        if asked is not None and not asked.cancelled:
            asked.receive(piece)

    def _fail_all(self, error: Exception) -> None:
        log.error("answers of %d sessions failed", len(self._asked), exc_info=error)
        sentence = UNEXPECTED
        if isinstance(error, EchoxError):
            sentence = str(error)
        elif is_out_of_memory(error):
            sentence = out_of_memory_text(error, "ask again when fewer sessions speak")
        for number in list(self._asked):
            self._give(number, Piece("", error=sentence))


def _prefill(streams: AnswerStreams, question: Question) -> None:
    try:
        streams.prefill(question)
    except EchoxError:
        pass  # such as too long a conversation, which is told when its answer is asked for
    except Exception as error:
        log.error("a conversation could not be read", exc_info=error)
