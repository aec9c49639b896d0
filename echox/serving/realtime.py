"""One session of OpenAI's Realtime protocol: a client's events in, the server's events out.

Nothing here knows of a network: `send` takes the server's events, and all methods run in one
thread, into which `post` brings the pieces of an answer.

Source: the general-availability events of OpenAI's Realtime API, as `openai.types.realtime` of
its Python package reads them.
"""

from __future__ import annotations

import base64
import binascii
import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from echox.core.errors import EchoxError
from echox.inference.answers import USER, Piece
from echox.inference.audio_input import StreamResampler, decoded
from echox.inference.conversation import (
    Conversation,
    ConversationLimits,
    Item,
    heard_text,
    spoken_question,
)
from echox.inference.question_buffer import QuestionBuffer
from echox.inference.service import AnswerService
from echox.inference.voice_activity import RATE_HZ as ACTIVITY_HZ
from echox.inference.voice_activity import Activity
from echox.serving.items import (
    ID_CHARACTERS,
    ITEM_CHARACTERS,
    ITEM_PARTS,
    described,
    item_of,
    new_id,
    text_or_none,
)
from echox.serving.response import Response, Spoken
from echox.serving.settings import EventError, SessionSettings

Event = dict[str, Any]


class RealtimeSession:
    """A conversation with one client."""

    def __init__(
        self,
        service: AnswerService,
        send: Callable[[Event], None],
        post: Callable[[Callable[[], None]], None],
        limits: ConversationLimits | None = None,
        observe: Callable[[str, float], None] = lambda name, value: None,
    ) -> None:
        """Begin a session and tell its settings.

        Args:
            service: answers the questions of all sessions.
            send: takes the server's events, in their order.
            post: runs a function in the thread of this session.
            limits: of what the conversation keeps.
            observe: takes a measure's name and value.
        """
        self.service, self._send, self._post, self._observe = service, send, post, observe
        self.settings = SessionSettings()
        self.conversation = Conversation(limits or ConversationLimits(), service.pipeline.rate_hz)
        self.response: Response | None = None
        self._spoken: dict[str, Spoken] = {}  # by item, for `truncate`
        self._read: tuple[str, ...] | None = None  # of the conversation, what the model has read
        self._buffer: QuestionBuffer | None = None
        self._buffer_from_s = 0.0  # of the session's audio, where the buffer begins
        self._appended_s = 0.0  # seconds of audio that came in the session
        self._next_item: str | None = None  # of the question that is being spoken
        self._question_end_s: float | None = None  # of the last one, on `time.perf_counter`
        self.tell("session.created", session=self._described())

    def _described(self) -> Event:
        return {"id": new_id("sess"), **self.settings.plain()}

    def tell(self, type_: str, **fields: Any) -> None:
        """Send an event of the server."""
        self._send({"type": type_, "event_id": new_id("event"), **fields})

    def handle(self, message: str) -> None:
        """Take an event of the client; a faulty one is answered by an `error` event."""
        event_id = None
        try:
            event = _parsed(message)
            event_id = text_or_none(event, "event_id")
            type_ = event.get("type")
            handler = self._HANDLERS.get(type_) if isinstance(type_, str) else None
            if handler is None:
                raise EventError(
                    f"there is no client event {str(type_)[:ID_CHARACTERS]!r}", "type", "unknown"
                )
            handler(self, event)
        except EchoxError as error:
            self._tell_error(error, event_id)

    def _tell_error(self, error: EchoxError, event_id: str | None) -> None:
        param = error.param if isinstance(error, EventError) else ""
        code = error.code if isinstance(error, EventError) else "invalid_value"
        fault = {
            "type": "invalid_request_error",
            "code": code,
            "message": str(error),
            "param": param or None,
            "event_id": event_id,
        }
        self.tell("error", error=fault)

    def close(self) -> None:
        """End the session: its answer stops, and nothing is sent any more."""
        if self.response is not None:
            self.response.stop()
        self._send = lambda event: None

    # Settings

    def _update_session(self, event: Event) -> None:
        changes = _object(event, "session")
        if changes.get("type", "realtime") != "realtime":
            raise EventError("session.type must be realtime", "session.type")
        if changes.get("tools"):
            raise EventError("this server calls no tools; leave session.tools out", "session.tools")
        before, self.settings = self.settings, self.settings.updated(changes)
        if (before.input, before.detection) != (self.settings.input, self.settings.detection):
            self._buffer = None
        self.conversation.instructions = self.settings.instructions
        self.tell("session.updated", session=self._described())

    # Audio of the client

    def _require_buffer(self) -> QuestionBuffer:
        if self._buffer is None:
            detection = self.settings.detection
            activity = None if detection is None else detection.activity
            self._buffer = QuestionBuffer(self.service.pipeline.rate_hz, activity)
            self._buffer_from_s = self._appended_s
        return self._buffer

    def _append(self, event: Event) -> None:
        samples = self._samples(event.get("audio"), "audio")
        source_hz, buffer = self.settings.input.rate_hz, self._require_buffer()
        self._appended_s += len(samples) / source_hz
        for activity in buffer.push(samples, source_hz):
            try:
                self._follow(activity)
            except EventError as error:
                # Not of this event, and not of what else its audio brings.
                self._tell_error(error, None)
        self._read_ahead()

    def _read_ahead(self) -> None:
        """Have the model read what was said before, while a question is spoken."""
        if self.response is None and (contents := self.conversation.contents) != self._read:
            self._read = contents
            self.service.prefill(self.conversation.before_question())

    def _samples(self, value: Any, place: str) -> Tensor:
        """Decode a text of base64 to samples [T] at the input's rate."""
        if not isinstance(value, str):
            raise EventError(f"{place} must be a text in base64", place, "invalid_type")
        try:
            content = base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError) as error:
            raise EventError(f"{place} is not base64: {error}", place) from error
        return decoded(content, self.settings.input.encoding)

    def _follow(self, activity: Activity) -> None:
        # From the start of the session, whatever buffers there were before.
        at_ms = round(1000 * (self._buffer_from_s + activity.sample / ACTIVITY_HZ))
        detection = self.settings.detection
        if activity.begins:
            self._next_item = new_id("item")
            self.tell(
                "input_audio_buffer.speech_started", audio_start_ms=at_ms, item_id=self._next_item
            )
            # Who speaks while an answer plays has heard enough of it.
            if detection is not None and detection.interrupt_response:
                self._cancel_response("turn_detected")
            return
        self.tell(
            "input_audio_buffer.speech_stopped", audio_end_ms=at_ms, item_id=self._next_item or ""
        )
        self._observe("detection_s", (activity.known_at - activity.sample) / ACTIVITY_HZ)
        self._commit_audio()
        if detection is not None and detection.create_response:
            if detection.interrupt_response:
                self._cancel_response("turn_detected")
            self._begin_response(self.settings, self.conversation, {}, writes=True)

    def _commit(self, event: Event) -> None:
        self._commit_audio()

    def _commit_audio(self) -> None:
        clip = self._require_buffer().take()
        # Shorter than a frame of the encoder is no question.
        if len(clip) < self.service.pipeline.rate_hz // 10:
            raise EventError(
                "less than 100 ms of audio came, so there is nothing to commit; send some first",
                code="input_audio_buffer_commit_empty",
            )
        item = spoken_question(self._next_item or new_id("item"), clip)
        self._next_item, self._question_end_s = None, time.perf_counter()
        before = self.conversation.add(item)
        self.tell("input_audio_buffer.committed", item_id=item.id, previous_item_id=before)
        self._tell_item(item, before)

    def _clear(self, event: Event) -> None:
        self._require_buffer().clear()
        self.tell("input_audio_buffer.cleared")

    # Items

    def _tell_item(self, item: Item, before: str | None) -> None:
        for type_ in ("conversation.item.added", "conversation.item.done"):
            self.tell(type_, item=described(item), previous_item_id=before)

    def _create_item(self, event: Event) -> None:
        item = self._item_of(_object(event, "item"))
        if any(known.id == item.id for known in self.conversation.items):
            raise EventError(f"there is an item {item.id} already; name another id", "item.id")
        after = text_or_none(event, "previous_item_id")
        try:
            before = self.conversation.add(item, after)
        except KeyError as error:
            raise _unknown_item(str(after), "previous_item_id") from error
        self._tell_item(item, before)

    def _item_of(self, fields: Mapping[str, Any]) -> Item:
        return item_of(fields, self._clip)

    def _clip(self, value: Any, place: str) -> Tensor:
        """Decode a text of base64 to a clip [T] at the conversation's rate."""
        resampler = StreamResampler(self.settings.input.rate_hz, self.conversation.rate_hz)
        return torch.cat([resampler.push(self._samples(value, place)), resampler.finish()])

    def _named_item(self, event: Event) -> Item:
        item_id = text_or_none(event, "item_id") or ""
        try:
            return self.conversation.find(item_id)
        except KeyError as error:
            raise _unknown_item(item_id, "item_id") from error

    def _retrieve_item(self, event: Event) -> None:
        self.tell("conversation.item.retrieved", item=described(self._named_item(event)))

    def _delete_item(self, event: Event) -> None:
        item = self._named_item(event)
        self.conversation.remove(item.id)
        self._spoken.pop(item.id, None)
        self.tell("conversation.item.deleted", item_id=item.id)

    def _truncate_item(self, event: Event) -> None:
        end_ms = event.get("audio_end_ms")
        if isinstance(end_ms, bool) or not isinstance(end_ms, int) or end_ms < 0:
            raise EventError(
                "audio_end_ms must be milliseconds of at least 0", "audio_end_ms", "invalid_type"
            )
        item = self._named_item(event)
        spoken = self._spoken.get(item.id)
        if spoken is None:
            raise EventError(f"the item {item.id} has no speech to truncate", "item_id")
        if end_ms > 1000 * spoken.seconds + 1:
            raise EventError(
                f"audio_end_ms is {end_ms}, and the speech has {round(1000 * spoken.seconds)} ms",
                "audio_end_ms",
            )
        text = heard_text(spoken.text, end_ms / 1000, spoken.seconds, complete=spoken.complete)
        self.conversation.set_text(item.id, text)
        self.tell(
            "conversation.item.truncated", item_id=item.id, content_index=0, audio_end_ms=end_ms
        )

    # Responses

    def _create_response(self, event: Event) -> None:
        fields = {} if event.get("response") is None else _object(event, "response")
        settings = self.settings.updated(fields, "response")
        metadata = fields.get("metadata") or {}
        if not isinstance(metadata, Mapping) or len(json.dumps(metadata)) > ITEM_CHARACTERS:
            raise EventError("response.metadata must be a small object", "response.metadata")
        writes = fields.get("conversation", "auto") != "none"
        conversation = self.conversation
        if (given := fields.get("input")) is not None or settings.instructions != (
            self.settings.instructions
        ):
            conversation = self._own_conversation(given, settings)
        self._begin_response(settings, conversation, dict(metadata), writes=writes)

    def _own_conversation(self, given: Any, settings: SessionSettings) -> Conversation:
        """Return what a response reads that is not of the conversation as it is."""
        known = self.conversation
        own = Conversation(known.limits, known.rate_hz, settings.instructions, list(known.items))
        if given is None:
            return own
        if not isinstance(given, list) or not 1 <= len(given) <= ITEM_PARTS:
            raise EventError(f"response.input must be 1 to {ITEM_PARTS} items", "response.input")
        own.items = []
        for fields in given:
            if not isinstance(fields, Mapping):
                raise EventError("response.input must be a list of objects", "response.input")
            if fields.get("type") == "item_reference":
                own.add(self._named_item({"item_id": fields.get("id")}))
            else:
                own.add(self._item_of(fields))
        return own

    def _begin_response(
        self,
        settings: SessionSettings,
        conversation: Conversation,
        metadata: Event,
        *,
        writes: bool,
    ) -> None:
        if self.response is not None:
            raise EventError(
                f"the response {self.response.id} is under way; cancel it first",
                code="conversation_already_has_active_response",
            )
        if not conversation.items:
            raise EventError("the conversation is empty, so there is nothing to answer")
        asked = [item for item in conversation.items if item.role == USER]
        question = conversation.question()
        response = Response(
            self, settings, metadata, writes, asked[-1] if asked else None, self._question_end_s
        )
        self.response = response
        response.begin()
        response.asked = self.service.ask(
            question,
            lambda piece: self._post(lambda: self._take(response, piece)),
            speak=settings.speaks,
            max_tokens=settings.max_tokens,
        )

    def _take(self, response: Response, piece: Piece) -> None:
        if response is self.response:
            response.take(piece)

    def _cancel(self, event: Event) -> None:
        named = text_or_none(event, "response_id")
        if self.response is None or named not in (None, self.response.id):
            raise EventError(
                "there is no such response to cancel", "response_id", "response_cancel_not_active"
            )
        self._cancel_response("client_cancelled")

    def _cancel_response(self, reason: str) -> None:
        if self.response is not None:
            self.response.stop()
            self.response.end("cancelled", reason)

    def ended(self, response: Response, spoken: Spoken) -> None:
        """Take note that a response has ended, and keep what it said."""
        self.response = None
        if response.writes:
            # The client, or the limits, may have removed it meanwhile.
            with suppress(KeyError):
                self.conversation.set_text(response.item_id, spoken.text)
                self._spoken[response.item_id] = spoken
        known = {item.id for item in self.conversation.items}
        self._spoken = {name: each for name, each in self._spoken.items() if name in known}

    def heard(self, question: Item | None, transcript: str) -> None:
        """Tell what was heard in a question, if the client wants to know."""
        # A typed question was not heard; the one before it was told already.
        if not self.settings.transcribes or question is None or question.clip is None:
            return
        if not any(item is question for item in self.conversation.items):
            return  # it was the input of one response
        seconds = len(question.clip) / self.conversation.rate_hz
        self.tell(
            "conversation.item.input_audio_transcription.completed",
            item_id=question.id,
            content_index=0,
            transcript=transcript,
            usage={"type": "duration", "seconds": round(seconds, 3)},
        )

    def observe(self, name: str, value: float) -> None:
        """Pass a measure on."""
        self._observe(name, value)

    def add_answer(self, item_id: str) -> str | None:
        """Add an answer's item to the conversation, and return the id of the one before it."""
        return self.conversation.begin_answer(item_id)

    _HANDLERS: dict[str, Callable[[RealtimeSession, Event], None]] = {
        "session.update": _update_session,
        "input_audio_buffer.append": _append,
        "input_audio_buffer.commit": _commit,
        "input_audio_buffer.clear": _clear,
        "conversation.item.create": _create_item,
        "conversation.item.retrieve": _retrieve_item,
        "conversation.item.delete": _delete_item,
        "conversation.item.truncate": _truncate_item,
        "response.create": _create_response,
        "response.cancel": _cancel,
    }


def _parsed(message: str) -> Event:
    try:
        event = json.loads(message)
    except (ValueError, RecursionError) as error:
        raise EventError("the message is not JSON that can be read", code="invalid_json") from error
    if not isinstance(event, dict):
        raise EventError("the message must be a JSON object", code="invalid_json")
    return event


def _object(event: Event, name: str) -> Event:
    value = event.get(name)
    if not isinstance(value, dict):
        raise EventError(f"{name} must be an object", name, "invalid_type")
    return value


def _unknown_item(item_id: str, param: str) -> EventError:
    return EventError(f"there is no item {item_id!r} in the conversation", param, "item_not_found")
