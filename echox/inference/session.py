"""A spoken conversation that streams both ways: audio in as it comes, text and audio out."""

from __future__ import annotations

import enum
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from queue import SimpleQueue
from threading import RLock

import torch
from torch import Tensor

from echox.core.errors import SignalError
from echox.inference.answers import Answer, Piece
from echox.inference.conversation import (
    Conversation,
    ConversationLimits,
    Item,
    heard_text,
    spoken_question,
)
from echox.inference.pipeline import SpeechToSpeechPipeline
from echox.inference.question_buffer import QuestionBuffer
from echox.inference.service import AnswerService, Asked
from echox.inference.voice_activity import RATE_HZ as ACTIVITY_HZ
from echox.inference.voice_activity import Activity, VoiceActivityConfig


class EventKind(enum.Enum):
    """What a session tells."""

    speech_started = "speech_started"
    speech_stopped = "speech_stopped"
    committed = "committed"
    heard = "heard"
    text = "text"
    audio = "audio"
    done = "done"
    cancelled = "cancelled"
    failed = "failed"


@dataclass(frozen=True, slots=True)
class SessionEvent:
    """Something that happened in a session."""

    kind: EventKind
    at_s: float  # seconds since the session began
    item: str = ""  # id of the question or the answer that it is about
    text: str = ""  # what is new in the answer's text; of `heard` all of it, of `failed` why
    samples: Tensor | None = None  # [T] float32 of the answer's speech
    first_sample: int = 0  # how many samples of the answer came before these
    audio_s: float = 0.0  # where in the session's audio speech began or ended
    answer: Answer | None = None  # with `done`: all but the samples


@dataclass(slots=True)
class _Response:
    """The answer that is being generated or played."""

    item: str
    asked: Asked | None = None
    heard: str = ""
    text: str = ""
    samples: int = 0
    complete: bool = False


class Session:
    """A conversation with one user.

    Audio is pushed as it comes; questions end by voice activity, or by `commit`. What happens is
    told by `events`, in its order. Methods may be called from any thread.
    """

    def __init__(
        self,
        answers: AnswerService | SpeechToSpeechPipeline,
        voice_activity: VoiceActivityConfig | None = None,
        limits: ConversationLimits | None = None,
    ) -> None:
        """Begin a conversation.

        Args:
            answers: a service that sessions share, or a pipeline for this session alone.
            voice_activity: finds where questions begin and end, and has each answered; None waits
                for `commit` and `respond`.
            limits: of what the conversation keeps.

        Raises:
            PackageError: voice activity needs the extra `serve`.
        """
        self._is_alone = not isinstance(answers, AnswerService)
        self.service = answers if isinstance(answers, AnswerService) else AnswerService(answers)
        rate_hz = self.service.pipeline.rate_hz
        self.conversation = Conversation(limits or ConversationLimits(), rate_hz)
        self._buffer = QuestionBuffer(rate_hz, voice_activity)
        self._response: _Response | None = None
        self._read: tuple[str, ...] | None = None  # of the conversation, what the model has read
        self._events: SimpleQueue[SessionEvent | None] = SimpleQueue()
        self._ids = count()
        self._lock = RLock()
        self._begun_s = time.perf_counter()

    def push(self, samples: Tensor, rate_hz: int) -> None:
        """Take the next audio of the user.

        Args:
            samples: [T] float in [-1, 1], or int16.
            rate_hz: samples per second; the same in every call until a question ends.

        Raises:
            SignalError: the samples are unusable, or a question is longer than a minute.
        """
        wave = samples.float() / 32768 if samples.dtype is torch.int16 else samples.float()
        if wave.ndim != 1 or not torch.isfinite(wave).all():
            raise SignalError(
                f"samples must be finite numbers [T], and have shape {list(samples.shape)}"
            )
        with self._lock:
            for activity in self._buffer.push(wave, rate_hz):
                self._follow(activity)
            self._read_ahead()

    def _read_ahead(self) -> None:
        """Have the model read what was said before, while a question is spoken."""
        answers = self._response is not None and self._response.asked is not None
        if not answers and (contents := self.conversation.contents) != self._read:
            self._read = contents
            self.service.prefill(self.conversation.before_question())

    def _follow(self, activity: Activity) -> None:
        at_s = activity.sample / ACTIVITY_HZ
        if activity.begins:
            self._tell(EventKind.speech_started, audio_s=at_s)
            # Who speaks while an answer plays has heard enough of it.
            self.cancel()
            return
        self._tell(EventKind.speech_stopped, audio_s=at_s)
        self.commit()
        self.respond()

    def commit(self) -> str:
        """End the question.

        Returns:
            its id.

        Raises:
            SignalError: no audio came.
        """
        with self._lock:
            clip = self._buffer.take()
            if not len(clip):
                raise SignalError("no audio came, so there is nothing to commit; push some first")
            item = spoken_question(f"item_{next(self._ids)}", clip)
            self.conversation.add(item)
            self._tell(EventKind.committed, item.id)
            return item.id

    def ask(self, text: str) -> str:
        """Add a typed question.

        Returns:
            its id.
        """
        with self._lock:
            item = Item(f"item_{next(self._ids)}", "user", text)
            self.conversation.add(item)
            return item.id

    def respond(self) -> str:
        """Answer the conversation; an answer that is under way is cancelled first.

        Returns:
            the answer's id.
        """
        with self._lock:
            self.cancel()
            question = self.conversation.question()
            response = self._response = _Response(f"item_{next(self._ids)}")
            self.conversation.begin_answer(response.item)
            response.asked = self.service.ask(question, lambda piece: self._take(response, piece))
            return response.item

    def _keep(self, response: _Response, text: str) -> None:
        """Keep what an answer said."""
        # The limits may have dropped it meanwhile.
        with suppress(KeyError):
            self.conversation.set_text(response.item, text)

    def cancel(self) -> None:
        """Stop the answer that is being generated; what is held for it is free after a step."""
        with self._lock:
            response = self._response
            if response is None or response.complete or response.asked is None:
                return
            self.service.cancel(response.asked)
            response.asked = None
            self._keep(response, response.text)
            self._tell(EventKind.cancelled, response.item, response.text)

    def interrupt(self, played_s: float) -> str:
        """Stop the answer, and keep in the conversation only what was heard of it.

        Args:
            played_s: seconds of the answer's speech that were played.

        Returns:
            the text that was kept.
        """
        with self._lock:
            self.cancel()
            response = self._response
            if response is None:
                return ""
            speech_s = response.samples / self._rate_hz
            text = heard_text(response.text, played_s, speech_s, complete=response.complete)
            try:
                self.conversation.set_text(response.item, text)
            except KeyError:
                return ""  # it was dropped, or nothing was generated
            return text

    @property
    def _rate_hz(self) -> int:
        return self.service.pipeline.require_codec().rate_hz

    def events(self) -> Iterator[SessionEvent]:
        """Yield what happens, until the answer that is under way has ended or was cancelled."""
        ends = (EventKind.done, EventKind.cancelled, EventKind.failed)
        while (event := self._events.get()) is not None:
            yield event
            if event.kind in ends and self._events.empty():
                return

    def close(self) -> None:
        """End the session: its answer stops, and `events` ends."""
        self.cancel()
        self._events.put(None)
        if self._is_alone:
            self.service.close()

    def _take(self, response: _Response, piece: Piece) -> None:
        """Take a piece of the answer, in the service's thread."""
        with self._lock:
            if response is not self._response or response.asked is None:
                return
            if piece.error:
                response.asked = None
                self._keep(response, "")
                self._tell(EventKind.failed, response.item, piece.error)
                return
            if piece.heard and not response.heard:
                response.heard = piece.heard
                self._tell(EventKind.heard, response.item, piece.heard)
            # Tokens may end within a character of several bytes, which decodes to U+FFFD.
            text = piece.text if piece.answer is not None else piece.text.rstrip("\ufffd")
            if text.startswith(response.text) and text != response.text:
                self._tell(EventKind.text, response.item, text[len(response.text) :])
            response.text = text
            if piece.samples is not None:
                response.samples += len(piece.samples)
                self._events.put(
                    SessionEvent(
                        EventKind.audio,
                        self._now_s(),
                        response.item,
                        samples=piece.samples,
                        first_sample=piece.first_sample,
                    )
                )
            if piece.answer is not None:
                self._end(response, piece.answer)

    def _end(self, response: _Response, answer: Answer) -> None:
        response.complete, response.asked = True, None
        self._keep(response, answer.text)
        self._events.put(
            SessionEvent(EventKind.done, self._now_s(), response.item, answer.text, answer=answer)
        )

    def _tell(self, kind: EventKind, item: str = "", text: str = "", audio_s: float = 0.0) -> None:
        self._events.put(SessionEvent(kind, self._now_s(), item, text, audio_s=audio_s))

    def _now_s(self) -> float:
        return time.perf_counter() - self._begun_s
