"""Items of a Realtime conversation: read from a client's events, and told back to it."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from echox.inference.answers import USER
from echox.inference.conversation import ASSISTANT, SYSTEM, Item
from echox.serving.settings import EventError, text_in

ITEM_CHARACTERS = 20_000
ITEM_PARTS = 32
ID_CHARACTERS = 64


def item_of(fields: Mapping[str, Any], clip_of: Callable[[Any, str], Tensor]) -> Item:
    """Read an item that a client creates.

    Args:
        fields: of the item.
        clip_of: decodes the audio of a part, named for errors, to samples [T].

    Raises:
        EventError: a field is missing or cannot be used.
    """
    if fields.get("type", "message") != "message":
        raise EventError("item.type must be message; this server calls no tools", "item.type")
    role, parts = fields.get("role"), fields.get("content")
    if role not in (USER, ASSISTANT, SYSTEM):
        raise EventError("item.role must be user, assistant or system", "item.role")
    if not isinstance(parts, list) or not 1 <= len(parts) <= ITEM_PARTS:
        raise EventError(f"item.content must be a list of 1 to {ITEM_PARTS} parts", "item.content")
    texts, clips = [], []
    for number, part in enumerate(parts):
        place = f"item.content[{number}]"
        if not isinstance(part, Mapping):
            raise EventError(f"{place} must be an object", place, "invalid_type")
        if part.get("type") == "input_audio" and role == USER:
            clips.append(clip_of(part.get("audio"), f"{place}.audio"))
        else:
            texts.append(_text_of(part, place))
    text = " ".join(text for text in texts if text)
    if len(text) > ITEM_CHARACTERS:
        raise EventError(f"item.content has more than {ITEM_CHARACTERS} characters", "item.content")
    clip = torch.cat(clips) if clips else None
    if not text and (clip is None or not len(clip)):
        raise EventError("item.content has neither text nor audio", "item.content")
    return Item(text_or_none(fields, "id") or new_id("item"), role, text, clip)


def _text_of(part: Mapping[str, Any], place: str) -> str:
    for name in ("text", "transcript"):
        if part.get(name) is not None:
            return text_in(part[name], f"{place}.{name}", ITEM_CHARACTERS)
    raise EventError(f"{place} must have a text, or be audio of the user", place)


def described(item: Item) -> dict[str, Any]:
    """Return an item of the conversation as events hold it, without its audio."""
    content: list[dict[str, Any]]
    if item.role == ASSISTANT:
        content = [{"type": "output_text", "text": item.text}]
    elif item.clip is None:
        content = [{"type": "input_text", "text": item.text}]
    else:
        content = [{"type": "input_audio", "transcript": item.text or None}]
    return {
        "id": item.id,
        "object": "realtime.item",
        "type": "message",
        # An answer is known before it has a text.
        "status": "completed" if item.text or item.clip is not None else "in_progress",
        "role": item.role,
        "content": content,
    }


def text_or_none(fields: Mapping[str, Any], name: str) -> str | None:
    """Return a short text of an event's field, None where it is absent.

    Raises:
        EventError: it is no text, or too long.
    """
    value = fields.get(name)
    if value is not None and (not isinstance(value, str) or len(value) > ID_CHARACTERS):
        raise EventError(
            f"{name} must be a text of at most {ID_CHARACTERS} characters", name, "invalid_type"
        )
    return value


def new_id(kind: str) -> str:
    """Return an id that no other item or response has."""
    return f"{kind}_{secrets.token_hex(10)}"
