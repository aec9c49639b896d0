"""JSON objects to rows and back, each fault of a row said in a sentence."""

from __future__ import annotations

import functools
import json
import math
import os
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from echox.data.audio_ref import Audio, AudioRef, audio_ref, byte_range
from echox.data.rows import LONGEST_S, NO_SPEECH, UNFINISHED, Item, Role, Row, stated_seconds
from echox.errors import SignalError

_ITEM_KEYS = ("from", "value", "audio", "start_s", "end_s", "transcription", "units")
_ROLES = {role.value: role for role in Role}


class Broken(Exception):
    """A row cannot be used; the text is the reason."""


def row_record(row: Row, root: Path) -> dict[str, Any]:
    """A row as its JSON object in a manifest that lies in `root`."""
    return {"id": row.id, **row.extra, "conversations": [_item_record(item, root) for item in row.turns]}


def _item_record(item: Item, root: Path) -> dict[str, Any]:
    record: dict[str, Any] = {"from": item.role.value, "value": item.text}
    if item.transcription:
        record["transcription"] = item.transcription
    if item.audio is not None:
        record |= _audio_record(item.audio, root)
    if item.units is not None:
        words = item.words or [(unit,) for unit in item.units]
        record["units"] = " ".join("_".join(map(str, word)) for word in words)
    return record | item.extra


def _audio_record(audio: Audio, root: Path) -> dict[str, Any]:
    ref = audio_ref(audio)
    file = ref.file.relative_to(root) if ref.file.is_relative_to(root) else ref.file.resolve()
    seconds = {"start_s": ref.start_s, "end_s": ref.end_s} if ref.is_part else {}
    return {"audio": ref.written(file), **{key: value for key, value in seconds.items() if value is not None}}


def parsed(raw: bytes) -> Any:
    """A line's JSON, or the `Broken` that says what it is instead."""
    try:
        value = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return Broken("not UTF-8 text")
    # A number of thousands of digits is a ValueError too.
    except (ValueError, RecursionError) as error:
        return Broken(f"not JSON ({error})")
    return writable(value) if b"\\u" in raw else value


def writable(value: Any) -> Any:
    """The value, or a `Broken` where it holds half of a character, as `\\ud83d` without what follows, which no file can take."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return Broken("half of a character is in it (\\ud800 to \\udfff without its other half); write the whole one")
    return value


def json_type(value: Any) -> str:
    names = {dict: "object", list: "list", str: "string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "number")


def id_of(record: Any) -> str | None:
    """The id a row gives itself, if it can be told."""
    given = record.get("id") if isinstance(record, dict) else None
    return str(given) if isinstance(given, (str, int)) and not isinstance(given, bool) else None


class Headers(Enum):
    """Of which clips the audio file is opened when a row is read."""

    ALL = "all"
    UNSTATED = "unstated"  # of those whose seconds the row does not say
    NONE = "none"


@dataclass(frozen=True, slots=True)
class ReadRow:
    """A row, and how long its clips are."""

    row: Row
    seconds: tuple[float, ...]  # of each turn: 0 without audio, NaN where neither row nor header was asked


class RowReader:
    """Turns JSON objects of one file into rows; that ids differ is for the caller to see."""

    def __init__(self, path: Path, allow_outside: bool, headers: Headers = Headers.ALL) -> None:
        self.path = path
        self.allow_outside = allow_outside
        self.headers = headers
        self.folder = path.parent.resolve()
        self._root = str(path.parent)
        # Folders and shards are few, and looking them up costs more than reading a row.
        self._is_inside = functools.lru_cache(maxsize=4096)(lambda folder: folder.resolve().is_relative_to(self.folder))
        self._place = functools.lru_cache(maxsize=4096)(self._placed)

    def row(self, line: int, record: Any) -> Row:
        """Check one row; raises `Broken` with the reason."""
        return self.read(line, record).row

    def read(self, line: int, record: Any) -> ReadRow:
        """Check one row; raises `Broken` with the reason."""
        if isinstance(record, Broken):
            raise record
        if not isinstance(record, dict):
            raise Broken(f"a row is a JSON object, not a {json_type(record)}")
        row_id = self._id(line, record)
        items = record.get("conversations")
        if not isinstance(items, list) or not items:
            raise Broken("the row has no list 'conversations' with at least one item")
        _refuse_no_truth(record, NO_SPEECH, "")
        turns = [self._item(number, item) for number, item in enumerate(items, start=1)]
        row = Row(row_id, tuple(item for item, _ in turns), {key: value for key, value in record.items() if key not in ("id", "conversations")})
        return ReadRow(row, tuple(seconds for _, seconds in turns))

    def _id(self, line: int, record: dict[str, Any]) -> str:
        if "id" in record and not id_of(record):
            raise Broken(f"id is a {json_type(record['id'])}; it must be a non-empty string")
        # The published format has no ids, so the place in the file stands in.
        return id_of(record) or f"{self.path.stem}-{line}"

    def _item(self, number: int, record: Any) -> tuple[Item, float]:
        where = f"item {number}"
        if not isinstance(record, dict):
            raise Broken(f"{where} is a {json_type(record)}; it must be an object with 'from' and 'value'")
        role = record.get("from")
        if not isinstance(role, str) or role not in _ROLES:
            raise Broken(f"{where} is from {role!r}; roles are user and assistant")
        _refuse_no_truth(record, UNFINISHED, f"{where}: ")
        words = _words(record.get("units"), where)
        item = Item(
            role=_ROLES[role],
            text=_text(record, "value", where),
            audio=self._audio(record, where),
            transcription=_text(record, "transcription", where),
            units=None if words is None else tuple(unit for word in words for unit in word),
            words=words if words and any(len(word) > 1 for word in words) else None,
            extra={key: value for key, value in record.items() if key not in _ITEM_KEYS},
        )
        _refuse_silence(item, where)
        return item, self._seconds_of(item, str(record.get("audio")), where)

    def _audio(self, record: dict[str, Any], where: str) -> Audio | None:
        named = _text(record, "audio", where)
        if not named:
            return None
        start_s, end_s = _seconds(record, "start_s", where), _seconds(record, "end_s", where)
        try:
            file, offset, length = self._bytes_in(named)
            path, outside = self._place(file)
        except (OSError, ValueError, RuntimeError) as error:
            raise Broken(f"{where}: audio {named!r} is no usable path ({error})") from error
        if outside:
            raise Broken(f"{where}: audio {named} lies outside the manifest's folder; move it inside, or allow paths outside")
        return path if offset is None and not start_s and end_s is None else AudioRef(path, offset, length, start_s or 0.0, end_s)

    def _bytes_in(self, named: str) -> tuple[str, int | None, int | None]:
        """File, offset and length; a file that is really called so is that file."""
        file, offset, length = byte_range(named)
        return (named, None, None) if offset is not None and os.path.exists(os.path.join(self._root, named)) else (file, offset, length)

    def _placed(self, file: str) -> tuple[Path, bool]:
        """A file as a path, and whether it may not be read."""
        path = self.path.parent / file
        return path, not self.allow_outside and self._lies_outside(path)

    def _lies_outside(self, file: Path) -> bool:
        if file.name not in ("", "..") and not file.is_symlink() and self._is_inside(file.parent):
            return False
        return not file.resolve().is_relative_to(self.folder)

    def _seconds_of(self, item: Item, named: str, where: str) -> float:
        if item.audio is None:
            return 0.0
        stated = stated_seconds(item)
        if self.headers is Headers.NONE or (self.headers is Headers.UNSTATED and stated is not None):
            return math.nan if stated is None else stated
        # Here, because PyTorch comes with it, which takes two seconds and half a gigabyte.
        from echox.data.audio import audio_header

        try:
            return audio_header(item.audio).duration_s
        except SignalError as error:
            raise Broken(f"{where}: {str(error).replace(str(self.path.parent / named), named)}") from error
        except (OSError, ValueError, RuntimeError) as error:
            raise Broken(f"{where}: audio {named!r} is no usable path ({error})") from error


# A unit has so many digits at most; more are units without spaces between them.
UNIT_DIGITS = 9


def _seconds(record: dict[str, Any], key: str, where: str) -> float | None:
    value = record.get(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= LONGEST_S):
        raise Broken(f"{where}: {key!r} is {value!r}; it must be seconds, 0 or more")
    return value


def _text(record: dict[str, Any], key: str, where: str) -> str:
    value = record.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Broken(f"{where}: '{key}' is a {json_type(value)}; it must be a string")
    return value.strip()


def _words(value: Any, where: str) -> tuple[tuple[int, ...], ...] | None:
    if value is None or value == "":
        return None
    parts = value.replace("|><|", "|> <|").split() if isinstance(value, str) else value
    if not isinstance(parts, list):
        raise Broken(f"{where}: 'units' is a {json_type(value)}; it must be integers with spaces between them")
    return tuple(_word(part, where) for part in parts)


def _word(part: Any, where: str) -> tuple[int, ...]:
    """A unit, or several that `_` joins, with or without the marks of a token."""
    plain = str(part).removeprefix("<|unit_").removesuffix("|>")
    units = plain.split("_")
    if isinstance(part, bool) or not isinstance(part, (int, str)) or not all(unit.isascii() and unit.isdigit() for unit in units):
        raise Broken(f"{where}: units are integers from 0 up, joined by _ in words of a unit language, but one is {part!r}")
    if max(map(len, units)) > UNIT_DIGITS:
        raise Broken(f"{where}: a unit has more than {UNIT_DIGITS} digits, {plain[:UNIT_DIGITS]}...; write spaces between units")
    return tuple(map(int, units))


def _refuse_no_truth(record: dict[str, Any], key: str, where: str) -> None:
    if not isinstance(record.get(key, False), bool):
        raise Broken(f"{where}{key} is a {json_type(record[key])}; it must be true or false")


def _refuse_silence(item: Item, where: str) -> None:
    """A turn that says nothing, or speech whose words nobody knows, teaches nothing."""
    if item.role is Role.USER and not (item.text or item.audio):
        raise Broken(f"{where}: the user's turn has neither audio nor a text ('value')")
    if item.role is Role.ASSISTANT and not (item.text or item.transcription):
        raise Broken(f"{where}: the assistant's turn has neither a text ('value') nor a transcription of the user's audio")
    if item.role is Role.ASSISTANT and not item.text and (item.audio or item.units):
        raise Broken(f"{where}: the assistant's audio or units have no text ('value') beside them")
