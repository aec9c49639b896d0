"""JSON objects to rows and back; each fault of a row is one sentence.

Nothing at the top of this module imports PyTorch, so that processes that only parse rows start fast
and stay small.
"""

from __future__ import annotations

import functools
import json
import math
import os
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from echox.core.errors import SignalError
from echox.data.audio_ref import Audio, AudioRef, audio_ref, byte_range
from echox.data.rows import LONGEST_S, NO_SPEECH, UNFINISHED, Item, Role, Row, stated_seconds

# The most digits of a unit; longer numbers are units without spaces between them.
UNIT_DIGITS = 9
# The most bytes of a row, with its end of line: codes of eight codebooks for an hour take 11 MB.
ROW_BYTES = 16 << 20
# The most levels of a row's lists and objects: deeper ones exceed Python's limit of recursion when
# they are copied or written.
ROW_LEVELS = 100

_ITEM_KEYS = ("from", "value", "audio", "start_s", "end_s", "transcription", "units")
# What chat formats of others call the keys of a turn.
_OTHER_KEYS = {"role": "from", "content": "value"}
_ROLES = {role.value: role for role in Role}
_CACHED_PATHS = 4096
_REASON_CHARACTERS = 600


class BrokenRow(Exception):
    """A row cannot be used; the text is the reason.

    It is no `EchoxError`: callers turn it into a `Problem`, or into an error with file and line.
    """

    def __init__(self, reason: str) -> None:
        # A value that a reason quotes may be megabytes; the rule and the way out stand at the ends.
        is_long = len(reason) > _REASON_CHARACTERS
        super().__init__(f"{reason[:200]} ... {reason[-200:]}" if is_long else reason)


def row_record(row: Row, root: Path) -> dict[str, Any]:
    """Return a row as the JSON object that a manifest in the folder `root` holds."""
    turns = [_item_record(item, root) for item in row.turns]
    return {"id": row.id, **row.extra, "conversations": turns}


def _item_record(item: Item, root: Path) -> dict[str, Any]:
    record: dict[str, Any] = {"from": item.role.value, "value": item.text}
    if item.transcription:
        record["transcription"] = item.transcription
    if item.audio is not None:
        record |= _audio_record(item.audio, root)
    if item.units is not None:
        words = item.words or [(unit,) for unit in item.units]
        record["units"] = " ".join("_".join(map(str, word)) for word in words)
    return {**record, **item.extra}


def _audio_record(audio: Audio, root: Path) -> dict[str, Any]:
    ref = audio_ref(audio)
    # Outside the folder an absolute path, which still holds where the manifest is moved.
    file = ref.file.relative_to(root) if ref.file.is_relative_to(root) else ref.file.resolve()
    seconds = {"start_s": ref.start_s, "end_s": ref.end_s} if ref.is_part else {}
    return {
        "audio": ref.manifest_path(file),
        **{key: value for key, value in seconds.items() if value is not None},
    }


def parse_line(raw: bytes) -> Any:
    """Parse a line of JSON.

    Returns:
        the JSON value, or a `BrokenRow` that says why the line has none. It is returned rather than
        raised, so that a stream of lines goes on after it.
    """
    if len(raw) > ROW_BYTES:
        return too_long()
    try:
        # "-sig": the first line of a file may begin with a byte order mark.
        value = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return BrokenRow("not UTF-8 text")
    except RecursionError:
        return too_deep()
    # A number of thousands of digits is a ValueError too.
    except ValueError as error:
        return BrokenRow(f"not JSON ({error})")
    return check_value(value, raw.count(b"[") + raw.count(b"{"), b"\\u" in raw)


def check_value(value: Any, brackets: int, has_escapes: bool) -> Any:
    r"""Return a JSON value, or a `BrokenRow` where no file could take it or no function copy it.

    It may be nested too deeply, or hold a lone surrogate, as `\ud83d` alone: UTF-8 has no encoding
    for half of a character.

    Args:
        value: JSON value.
        brackets: opening brackets in its text; few of them cannot nest deeply, which is cheaper
            than to look.
        has_escapes: whether a backslash and u is in its text; nothing else can write a surrogate.
    """
    if brackets > ROW_LEVELS and _levels(value) > ROW_LEVELS:
        return too_deep()
    try:
        if has_escapes:
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return BrokenRow(
            "half of a character is in it (\\ud800 to \\udfff without its other half); "
            "write the whole one"
        )
    return value


def too_long() -> BrokenRow:
    """Return the fault of a row above `ROW_BYTES`."""
    return BrokenRow(f"a row has more than {ROW_BYTES >> 20} MiB, or its end is missing")


def too_deep() -> BrokenRow:
    """Return the fault of a row above `ROW_LEVELS`."""
    return BrokenRow(f"a row's lists and objects are nested deeper than {ROW_LEVELS} levels")


def _levels(value: Any) -> int:
    """How deeply lists and objects are nested, level by level: recursion could not go as deep."""
    levels, nodes = 0, [value]
    while nodes := [node for node in nodes if isinstance(node, (dict, list))]:
        levels += 1
        nodes = [
            child for node in nodes for child in (node.values() if type(node) is dict else node)
        ]
    return levels


def json_type(value: Any) -> str:
    """Return the name of a value's type in JSON."""
    names = {dict: "object", list: "list", str: "string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "number")


def stated_id(record: Any) -> str | None:
    """Return the id that a row states, None where it states none that is usable."""
    row_id = record.get("id") if isinstance(record, dict) else None
    # Numbers are ids in some corpora; true and false are numbers to Python alone.
    return str(row_id) if isinstance(row_id, (str, int)) and not isinstance(row_id, bool) else None


class Headers(Enum):
    """Clips whose audio file is opened when a row is read."""

    ALL = "all"
    UNSTATED = "unstated"  # those whose seconds the row does not state
    NONE = "none"


@dataclass(frozen=True, slots=True)
class ReadRow:
    """A row, and the seconds [N] of its N turns' clips."""

    row: Row
    # Of each turn: 0 without audio, NaN where neither the row nor a header was asked.
    seconds: tuple[float, ...]


class RowReader:
    """Turns JSON objects of one file into rows; that ids differ is for the caller to check.

    Args:
        path: the manifest; audio paths are relative to its folder.
        allow_outside: accept audio outside that folder.
        headers: clips whose audio file is opened.
    """

    def __init__(self, path: Path, allow_outside: bool, headers: Headers = Headers.ALL) -> None:
        self.path = path
        self.allow_outside = allow_outside
        self.headers = headers
        self.folder = path.parent.resolve()
        # As a string: joining paths by `os.path` costs less than by `pathlib`.
        self._root = str(path.parent)
        # Folders and shards are few, and resolving one costs more than reading a row.
        self._is_inside = functools.lru_cache(maxsize=_CACHED_PATHS)(
            lambda folder: folder.resolve().is_relative_to(self.folder)
        )
        self._place = functools.lru_cache(maxsize=_CACHED_PATHS)(self._locate)

    def row(self, line: int, record: Any) -> Row:
        """Turn a JSON value into a row; see `read`.

        Raises:
            BrokenRow: the row cannot be used.
        """
        return self.read(line, record).row

    def read(self, line: int, record: Any) -> ReadRow:
        """Turn a JSON value into a row and check it.

        Args:
            line: line of the row, counted from 1; names a row without an id.
            record: JSON value, or the `BrokenRow` that stands for one.

        Raises:
            BrokenRow: the row cannot be used.
        """
        if isinstance(record, BrokenRow):
            raise record
        if not isinstance(record, dict):
            raise BrokenRow(f"a row is a JSON object, not a {json_type(record)}")
        # What is cheap to check comes first; the last step may open audio files.
        row_id = self._id(line, record)
        items = record.get("conversations")
        if not isinstance(items, list) or not items:
            hint = _similar_list(record) if "conversations" not in record else ""
            raise BrokenRow(f"the row has no list 'conversations' with at least one item{hint}")
        _require_bool(record, NO_SPEECH, "")
        turns = [self._item(number, item) for number, item in enumerate(items, start=1)]
        extra = {key: value for key, value in record.items() if key not in ("id", "conversations")}
        row = Row(row_id, tuple(item for item, _ in turns), extra)
        return ReadRow(row, tuple(seconds for _, seconds in turns))

    def _id(self, line: int, record: dict[str, Any]) -> str:
        if "id" in record and not stated_id(record):
            raise BrokenRow(f"id is a {json_type(record['id'])}; it must be a non-empty string")
        # The published format has no ids, so the place in the file stands in.
        return stated_id(record) or f"{self.path.stem}-{line}"

    def _item(self, number: int, record: Any) -> tuple[Item, float]:
        """A turn and the seconds of its clip."""
        where = f"item {number}"
        if not isinstance(record, dict):
            kind = json_type(record)
            raise BrokenRow(f"{where} is a {kind}; it must be an object with 'from' and 'value'")
        if "from" not in record and (others := [key for key in _OTHER_KEYS if key in record]):
            named = " and ".join(f"{key!r} in place of {_OTHER_KEYS[key]!r}" for key in others)
            raise BrokenRow(f"{where} has {named}; rename what it has")
        role = record.get("from")
        if not isinstance(role, str) or role not in _ROLES:
            raise BrokenRow(f"{where} is from {role!r}; roles are user and assistant")
        _require_bool(record, UNFINISHED, f"{where}: ")
        words = _unit_words(record.get("units"), where)
        item = Item(
            role=_ROLES[role],
            text=_text(record, "value", where),
            audio=self._audio(record, where),
            transcription=_text(record, "transcription", where),
            units=None if words is None else tuple(unit for word in words for unit in word),
            # Units that nobody grouped need no second copy.
            words=words if words and any(len(word) > 1 for word in words) else None,
            extra={key: value for key, value in record.items() if key not in _ITEM_KEYS},
        )
        _require_content(item, where)
        return item, self._seconds_of(item, str(record.get("audio")), where)

    def _audio(self, record: dict[str, Any], where: str) -> Audio | None:
        name = _text(record, "audio", where)
        if not name:
            return None
        start_s, end_s = _seconds(record, "start_s", where), _seconds(record, "end_s", where)
        try:
            file, offset, length = self._byte_range(name)
            path, is_refused = self._place(file)
        except (OSError, ValueError, RuntimeError) as error:
            raise BrokenRow(f"{where}: audio {name!r} is no usable path ({error})") from error
        if is_refused:
            raise BrokenRow(
                f"{where}: audio {name} lies outside the manifest's folder; "
                "move it inside, or allow paths outside"
            )
        # Most clips are whole files, for which a plain path is smaller than a reference.
        if offset is None and not start_s and end_s is None:
            return path
        return AudioRef(path, offset, length, start_s or 0.0, end_s)

    def _byte_range(self, name: str) -> tuple[str, int | None, int | None]:
        """File, offset and length; a file whose own name ends in `:OFFSET:LENGTH` is that file."""
        file, offset, length = byte_range(name)
        if offset is not None and os.path.exists(os.path.join(self._root, name)):
            return name, None, None
        return file, offset, length

    def _locate(self, file: str) -> tuple[Path, bool]:
        """A file as a path, and whether it may not be read."""
        path = self.path.parent / file
        return path, not self.allow_outside and self._lies_outside(path)

    def _lies_outside(self, file: Path) -> bool:
        # The folder's answer is cached; a link or `..` must be resolved by itself.
        if file.name not in ("", "..") and not file.is_symlink() and self._is_inside(file.parent):
            return False
        return not file.resolve().is_relative_to(self.folder)

    def _seconds_of(self, item: Item, name: str, where: str) -> float:
        if item.audio is None:
            return 0.0
        stated_s = stated_seconds(item)
        if self.headers is Headers.NONE:
            return math.nan if stated_s is None else stated_s
        if self.headers is Headers.UNSTATED and stated_s is not None:
            return stated_s
        # Here, because PyTorch comes with it, which takes two seconds and half a gigabyte.
        from echox.data.audio import audio_header

        try:
            return audio_header(item.audio).duration_s
        except SignalError as error:
            # As the row writes the path, which is shorter and what one searches the manifest for.
            reason = str(error).replace(str(self.path.parent / name), name)
            raise BrokenRow(f"{where}: {reason}") from error
        except (OSError, ValueError, RuntimeError) as error:
            raise BrokenRow(f"{where}: audio {name!r} is no usable path ({error})") from error


def _similar_list(record: dict[str, Any]) -> str:
    """The key of a row whose list may be meant for 'conversations', as the end of a sentence."""
    lists = [
        key
        for key, value in record.items()
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value)
    ]
    return f"; its list {lists[0]!r} looks like one: rename it" if lists else ""


def _seconds(record: dict[str, Any], key: str, where: str) -> float | None:
    value = record.get(key)
    if value is None:
        return None
    # JSON's true is an int to Python.
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= LONGEST_S:
        raise BrokenRow(f"{where}: {key!r} is {value!r}; it must be seconds, 0 or more")
    return value


def _text(record: dict[str, Any], key: str, where: str) -> str:
    value = record.get(key)
    # Null means the same as a missing key.
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BrokenRow(f"{where}: '{key}' is a {json_type(value)}; it must be a string")
    return value.strip()


def _unit_words(value: Any, where: str) -> tuple[tuple[int, ...], ...] | None:
    """Units grouped into tokens of a unit language, from a string or a list; None without any."""
    if value is None or value == "":
        return None
    # Tokens with marks may be written without spaces between them.
    parts = value.replace("|><|", "|> <|").split() if isinstance(value, str) else value
    if not isinstance(parts, list):
        kind = json_type(value)
        raise BrokenRow(
            f"{where}: 'units' is a {kind}; it must be integers with spaces between them"
        )
    return tuple(_unit_word(part, where) for part in parts)


def _unit_word(part: Any, where: str) -> tuple[int, ...]:
    """One unit, or several joined by `_`, with or without the marks of a token."""
    plain = str(part).removeprefix("<|unit_").removesuffix("|>")
    units = plain.split("_")
    # `isdigit` alone accepts superscripts and digits of other scripts.
    are_digits = all(unit.isascii() and unit.isdigit() for unit in units)
    if isinstance(part, bool) or not isinstance(part, (int, str)) or not are_digits:
        raise BrokenRow(
            f"{where}: units are integers from 0 up, joined by _ in words of a unit language, "
            f"but one is {part!r}"
        )
    if max(map(len, units)) > UNIT_DIGITS:
        raise BrokenRow(
            f"{where}: a unit has more than {UNIT_DIGITS} digits, {plain[:UNIT_DIGITS]}...; "
            "write spaces between units"
        )
    # Checked above: `int` would accept signs, spaces and underscores.
    return tuple(map(int, units))


def _require_bool(record: dict[str, Any], key: str, where: str) -> None:
    # The string "false" is true to Python, so a row that writes it would mean its opposite.
    if not isinstance(record.get(key, False), bool):
        raise BrokenRow(f"{where}{key} is a {json_type(record[key])}; it must be true or false")


def _require_content(item: Item, where: str) -> None:
    """Refuse a turn from which nothing can be learned: an empty one, or audio without its words."""
    if item.role is Role.USER and not (item.text or item.audio):
        raise BrokenRow(f"{where}: the user's turn has neither audio nor a text ('value')")
    if item.role is Role.ASSISTANT and not (item.text or item.transcription):
        raise BrokenRow(
            f"{where}: the assistant's turn has neither a text ('value') "
            "nor a transcription of the user's audio"
        )
    if item.role is Role.ASSISTANT and not item.text and (item.audio or item.units):
        raise BrokenRow(
            f"{where}: the assistant's audio or units have no text ('value') beside them"
        )
