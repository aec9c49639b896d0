"""A response of a Realtime session: an answer's pieces as the protocol's events."""

from __future__ import annotations

import base64
import time
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from echox.inference.answers import Answer, Piece
from echox.inference.audio_input import StreamResampler, encoded
from echox.inference.conversation import Item
from echox.inference.milestones import AUDIBLE
from echox.inference.service import AnswerService, Asked
from echox.serving.items import new_id
from echox.serving.settings import AUDIO, TEXT, VOICE, SessionSettings

LEAD_S = 0.03  # of quieter samples before the first audible one


class Owner(Protocol):
    """What a response needs of its session."""

    service: AnswerService

    def tell(self, type_: str, **fields: Any) -> None:
        """Send an event."""

    def heard(self, question: Item | None, transcript: str) -> None:
        """Tell what was heard of the question."""

    def observe(self, name: str, value: float) -> None:
        """Pass a measure on."""

    def add_answer(self, item_id: str) -> str | None:
        """Add the answer's item to the conversation, and return the id of the one before it."""

    def ended(self, response: Response, spoken: Spoken) -> None:
        """Take note that the response has ended."""


@dataclass(frozen=True, slots=True)
class Spoken:
    """What an answer said."""

    text: str
    seconds: float  # of its speech, as far as it was sent
    complete: bool  # whether that is the speech of the whole text


class Response:
    """One response, from `response.created` to `response.done`."""

    def __init__(
        self,
        session: Owner,
        settings: SessionSettings,
        metadata: dict[str, Any],
        writes: bool,
        question: Item | None,
        question_end_s: float | None,
    ) -> None:
        """Prepare a response.

        Args:
            session: sends its events.
            settings: of this response.
            metadata: of the client, told back to it.
            writes: whether the answer becomes an item of the conversation.
            question: that is answered, if there is one.
            question_end_s: when the question ended, on `time.perf_counter`; None if it was typed.
        """
        self.id, self.item_id = new_id("resp"), new_id("item")
        self.settings, self.writes = settings, writes
        self.asked: Asked | None = None
        self._session, self._metadata, self._question = session, metadata, question
        self._before: str | None = None  # id of the item before the answer's
        self._begun_s = time.perf_counter() if question_end_s is None else question_end_s
        self._text, self._samples, self._heard = "", 0, False
        self._resampler: StreamResampler | None = None
        self._rate_hz = 0

    def begin(self) -> None:
        """Tell that the response is under way."""
        session = self._session
        session.tell("response.created", response=self._described("in_progress"))
        item = self._item("in_progress")
        session.tell("response.output_item.added", item=item, **self._place(item=False))
        if self.writes:
            # Now, not at the end: a question that comes meanwhile stands behind the answer.
            self._before = session.add_answer(self.item_id)
            session.tell("conversation.item.added", item=item, previous_item_id=self._before)
        part = (
            {"type": AUDIO, "transcript": ""}
            if self.settings.speaks
            else {"type": TEXT, "text": ""}
        )
        session.tell("response.content_part.added", part=part, **self._place())

    def _place(self, *, item: bool = True) -> dict[str, Any]:
        place = {"response_id": self.id, "output_index": 0}
        return {**place, "item_id": self.item_id, "content_index": 0} if item else place

    def take(self, piece: Piece) -> None:
        """Tell a piece of the answer."""
        if piece.error:
            self.end("failed", error=piece.error)
            return
        if piece.heard and not self._heard:
            self._heard = True
            self._session.heard(self._question, piece.heard)
        self._take_text(piece.text)
        if piece.samples is not None:
            self._take_samples(piece.samples)
        if piece.answer is not None:
            self._finish(piece.answer)

    def _take_text(self, text: str) -> None:
        # Tokens may end within a character of several bytes, which decodes to U+FFFD.
        complete = text.rstrip("\ufffd")
        if not complete.startswith(self._text) or complete == self._text:
            return
        if not self._text:
            self._session.observe("first_text_s", time.perf_counter() - self._begun_s)
        kind = "output_audio_transcript" if self.settings.speaks else "output_text"
        delta, self._text = complete[len(self._text) :], complete
        self._session.tell(f"response.{kind}.delta", delta=delta, **self._place())

    def _take_samples(self, samples: Tensor) -> None:
        if self._resampler is None:
            self._rate_hz = self._session.service.pipeline.require_codec().rate_hz
            self._resampler = StreamResampler(self._rate_hz, self.settings.output.rate_hz)
            self._session.observe("first_audio_s", time.perf_counter() - self._begun_s)
        samples = self._without_silence(samples)
        self._samples += len(samples)
        self._send_audio(self._resampler.push(samples))

    def _without_silence(self, samples: Tensor) -> Tensor:
        """Leave out the silence before the first sound, which a user would wait through."""
        if self._samples:
            return samples
        loud = (samples.abs() > AUDIBLE).nonzero()
        if not len(loud):
            return samples[:0]
        return samples[max(0, int(loud[0]) - round(LEAD_S * self._rate_hz)) :]

    def _send_audio(self, samples: Tensor) -> None:
        if len(samples):
            content = encoded(samples, self.settings.output.encoding)
            delta = base64.b64encode(content).decode("ascii")
            self._session.tell("response.output_audio.delta", delta=delta, **self._place())

    def _finish(self, answer: Answer) -> None:
        if not self._heard:
            # Nothing was heard, which the client is told too.
            self._session.heard(self._question, answer.heard)
        if self._resampler is not None:
            self._send_audio(self._resampler.finish())
        status, reason = ("incomplete", "max_output_tokens") if answer.cut else ("completed", "")
        self.end(status, reason, tokens=len(answer.token_ids), timings_s=answer.timings_s)

    def stop(self) -> None:
        """Stop what is being generated."""
        if self.asked is not None:
            self._session.service.cancel(self.asked)
            self.asked = None

    def end(
        self,
        status: str,
        reason: str = "",
        error: str = "",
        tokens: int = 0,
        timings_s: dict[str, float] | None = None,
    ) -> None:
        """Tell that the response has ended.

        Args:
            status: completed, incomplete, cancelled or failed.
            reason: of the protocol.
            error: why it failed.
            tokens: of its text.
            timings_s: when it gave what, told beside the protocol's fields; None if it was stopped.
        """
        session, place = self._session, self._place()
        if self.settings.speaks:
            session.tell("response.output_audio.done", **place)
            session.tell("response.output_audio_transcript.done", transcript=self._text, **place)
            part = {"type": AUDIO, "transcript": self._text}
        else:
            session.tell("response.output_text.done", text=self._text, **place)
            part = {"type": TEXT, "text": self._text}
        session.tell("response.content_part.done", part=part, **place)
        is_complete = status == "completed"
        item = self._item("completed" if is_complete else "incomplete")
        seconds = self._samples / self._rate_hz if self._rate_hz else 0.0
        generated = status in ("completed", "incomplete")
        session.ended(self, Spoken(self._text, seconds, generated))
        if self.writes:
            session.tell("conversation.item.done", item=item, previous_item_id=self._before)
        session.tell("response.output_item.done", item=item, **self._place(item=False))
        response = {**self._described(status, reason, error, tokens), "output": [item]}
        if timings_s is not None:
            response["timings_s"] = timings_s
        session.tell("response.done", response=response)

    def _described(
        self, status: str, reason: str = "", error: str = "", tokens: int = 0
    ) -> dict[str, Any]:
        details: dict[str, Any] | None = None
        if status != "in_progress" and status != "completed":
            details = {"type": status, "reason": reason or None}
        if error and details is not None:
            details["error"] = {"type": "server_error", "message": error}
        usage = {"input_tokens": 0, "output_tokens": tokens, "total_tokens": tokens}
        return {
            "id": self.id,
            "object": "realtime.response",
            "status": status,
            "status_details": details,
            "output": [],
            "output_modalities": [AUDIO if self.settings.speaks else TEXT],
            "audio": {"output": {"format": self.settings.output.plain(), "voice": VOICE}},
            "max_output_tokens": self.settings.max_tokens or "inf",
            "metadata": self._metadata,
            "usage": None if status == "in_progress" else usage,
        }

    def _item(self, status: str) -> dict[str, Any]:
        name = "transcript" if self.settings.speaks else "text"
        kind = "output_audio" if self.settings.speaks else "output_text"
        content = [] if status == "in_progress" else [{"type": kind, name: self._text}]
        return {
            "id": self.item_id,
            "object": "realtime.item",
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": content,
        }
