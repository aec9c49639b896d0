"""What a client may set in a Realtime session, read from its events and told back to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from echox.core.errors import ConfigError, EchoxError
from echox.inference.audio_input import Encoding
from echox.inference.voice_activity import VoiceActivityConfig

RATES_HZ = {Encoding.pcm16: 24_000, Encoding.mu_law: 8_000, Encoding.a_law: 8_000}
# Samples of 16 bits may have other rates than the API's 24 kHz.
LOWEST_HZ, HIGHEST_HZ = 8_000, 48_000
MODEL, VOICE = "echox", "echox"
TEXT, AUDIO = "text", "audio"
INSTRUCTIONS_CHARACTERS = 8_000


class EventError(EchoxError):
    """A fault in a client's event, which is answered by an `error` event."""

    def __init__(self, message: str, param: str = "", code: str = "invalid_value") -> None:
        super().__init__(message)
        self.param, self.code = param, code


@dataclass(frozen=True, slots=True)
class AudioFormat:
    """Encoding and sampling rate of one direction."""

    encoding: Encoding = Encoding.pcm16
    rate_hz: int = RATES_HZ[Encoding.pcm16]

    def plain(self) -> dict[str, Any]:
        """Return the format as events hold it."""
        if self.encoding is Encoding.pcm16:
            return {"type": self.encoding.value, "rate": self.rate_hz}
        return {"type": self.encoding.value}


@dataclass(frozen=True, slots=True)
class TurnDetection:
    """What the server does when the user begins and ends to speak."""

    activity: VoiceActivityConfig
    create_response: bool = True
    interrupt_response: bool = True

    def plain(self) -> dict[str, Any]:
        """Return the settings as events hold them."""
        return {
            "type": "server_vad",
            "threshold": self.activity.threshold,
            "prefix_padding_ms": self.activity.padding_ms,
            "silence_duration_ms": self.activity.silence_ms,
            "create_response": self.create_response,
            "interrupt_response": self.interrupt_response,
        }


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """The effective settings of a session."""

    speaks: bool = True
    """Answers are spoken; False is text alone."""
    instructions: str = ""
    max_tokens: int | None = None
    input: AudioFormat = AudioFormat()
    output: AudioFormat = AudioFormat()
    transcribes: bool = False
    detection: TurnDetection | None = TurnDetection(VoiceActivityConfig())

    def plain(self) -> dict[str, Any]:
        """Return the settings as `session.created` and `session.updated` hold them."""
        return {
            "type": "realtime",
            "object": "realtime.session",
            "model": MODEL,
            "output_modalities": [AUDIO if self.speaks else TEXT],
            "instructions": self.instructions,
            "max_output_tokens": "inf" if self.max_tokens is None else self.max_tokens,
            "tools": [],
            "tool_choice": "auto",
            "audio": {
                "input": {
                    "format": self.input.plain(),
                    "transcription": {"model": MODEL} if self.transcribes else None,
                    "noise_reduction": None,
                    "turn_detection": None if self.detection is None else self.detection.plain(),
                },
                "output": {"format": self.output.plain(), "voice": VOICE, "speed": 1.0},
            },
        }

    def updated(self, changes: Mapping[str, Any], place: str = "session") -> SessionSettings:
        """Return the settings with a client's changes.

        Args:
            changes: fields of a session or a response; those that are absent stay.
            place: of the fields, in errors.

        Raises:
            EventError: a field has a value that cannot be used.
        """
        settings = self
        if (modalities := changes.get("output_modalities")) is not None:
            settings = replace(settings, speaks=_speaks(modalities, f"{place}.output_modalities"))
        if (text := changes.get("instructions")) is not None:
            settings = replace(
                settings,
                instructions=text_in(text, f"{place}.instructions", INSTRUCTIONS_CHARACTERS),
            )
        if (limit := changes.get("max_output_tokens")) is not None:
            settings = replace(settings, max_tokens=_limit(limit, f"{place}.max_output_tokens"))
        audio = _mapping(changes.get("audio"), f"{place}.audio")
        given = _mapping(audio.get("input"), f"{place}.audio.input")
        returned = _mapping(audio.get("output"), f"{place}.audio.output")
        settings = settings._with_input(given, f"{place}.audio.input")
        if (output := returned.get("format")) is not None:
            found = _format(output, f"{place}.audio.output.format")
            settings = replace(settings, output=found)
        return settings

    def _with_input(self, given: Mapping[str, Any], place: str) -> SessionSettings:
        settings = self
        if given.get("format") is not None:
            settings = replace(settings, input=_format(given["format"], f"{place}.format"))
        if "transcription" in given:
            settings = replace(settings, transcribes=given["transcription"] is not None)
        if "turn_detection" in given:
            found = _detection(given["turn_detection"], self.detection, f"{place}.turn_detection")
            settings = replace(settings, detection=found)
        return settings


def _mapping(value: Any, place: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise EventError(f"{place} must be an object", place, "invalid_type")
    return value


def _speaks(value: Any, place: str) -> bool:
    if value not in ([AUDIO], [TEXT]):
        raise EventError(f'{place} must be ["audio"] or ["text"], and is {value!r}', place)
    return value == [AUDIO]


def text_in(value: Any, place: str, limit: int) -> str:
    """Return a client's text, which tokenizers can read.

    Raises:
        EventError: it is no text, longer than `limit` characters, or holds halves of characters,
            which JSON can write and UTF-8 cannot.
    """
    if not isinstance(value, str) or len(value) > limit:
        raise EventError(f"{place} must be a text of at most {limit} characters", place)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise EventError(f"{place} holds half a character (a lone surrogate)", place) from error
    return value


def _limit(value: Any, place: str) -> int | None:
    if value == "inf":
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 4_096:
        raise EventError(f'{place} must be 1 to 4096 or "inf", and is {value!r}', place)
    return value


def _format(value: Any, place: str) -> AudioFormat:
    fields = _mapping(value, place)
    names = {encoding.value: encoding for encoding in Encoding}
    # Without a type it is the API's default, samples of 16 bits.
    name = fields.get("type", Encoding.pcm16.value)
    if not isinstance(name, str) or name not in names:
        raise EventError(f"{place}.type must be one of {', '.join(names)}, and is {name!r}", place)
    encoding = names[name]
    rate_hz = fields.get("rate") or RATES_HZ[encoding]
    is_whole = isinstance(rate_hz, int) and not isinstance(rate_hz, bool)
    if encoding is not Encoding.pcm16:
        rate_hz, is_whole = RATES_HZ[encoding], True
    if not is_whole or not LOWEST_HZ <= rate_hz <= HIGHEST_HZ:
        raise EventError(
            f"{place}.rate must be {LOWEST_HZ} to {HIGHEST_HZ} Hz, and is {rate_hz!r}", place
        )
    return AudioFormat(encoding, rate_hz)


def _detection(value: Any, before: TurnDetection | None, place: str) -> TurnDetection | None:
    if value is None:
        return None
    fields = _mapping(value, place)
    # Semantic detection has no threshold; it ends a turn by silence here too.
    if fields.get("type", "server_vad") not in ("server_vad", "semantic_vad"):
        raise EventError(f"{place}.type must be server_vad or null", place)
    known = TurnDetection(VoiceActivityConfig()) if before is None else before
    activity = known.activity
    try:
        activity = VoiceActivityConfig(
            threshold=_number(fields, "threshold", activity.threshold, place),
            silence_ms=int(_number(fields, "silence_duration_ms", activity.silence_ms, place)),
            padding_ms=int(_number(fields, "prefix_padding_ms", activity.padding_ms, place)),
        )
    except ConfigError as error:
        raise EventError(f"{place}: {error}", place) from error
    return TurnDetection(
        activity,
        _switch(fields, "create_response", known.create_response, place),
        _switch(fields, "interrupt_response", known.interrupt_response, place),
    )


def _number(fields: Mapping[str, Any], name: str, default: float, place: str) -> float:
    value = fields.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e6:
        raise EventError(f"{place}.{name} must be a number, and is {value!r}", f"{place}.{name}")
    return value


def _switch(fields: Mapping[str, Any], name: str, default: bool, place: str) -> bool:
    value = fields.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise EventError(f"{place}.{name} must be true or false", f"{place}.{name}")
    return value
