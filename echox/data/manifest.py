"""Manifests: spoken conversations as JSONL, one row a line, each fault named by line and reason.

    {"id": "capital-france-p2", "kind": "capital", "conversations": [
        {"from": "user", "value": "", "audio": "clips/q.flac"},
        {"from": "assistant", "value": "The capital of France is Paris.", "transcription": "What is the capital of France?",
         "audio": "clips/a.flac", "units": "12 4 5"}]}

Audio paths are relative to the manifest's folder. `shards/a.tar:OFFSET:LENGTH` is an audio file inside a larger file, by its bytes, and
`start_s` and `end_s` beside `audio` are the seconds of a longer recording that are meant (both may be left out). `transcription` is what the user's audio before it says. Whatever else a row or
an item holds is kept. A `.json` file with a list of such rows is read as well. Units may be grouped into the words of a unit language,
as EchoX's are: "12_4 5", or with the marks of its tokens, "<|unit_12_4|> <|unit_5|>".
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from echox.data.audio import audio_header
from echox.data.audio_ref import Audio, audio_ref
from echox.data.writing import appearing
from echox.disk import sha256_of
from echox.errors import ManifestError, SignalError

log = logging.getLogger(__name__)

# Faults listed in one error; more would scroll the first ones away.
LISTED_PROBLEMS = 10
_ITEM_KEYS = ("from", "value", "audio", "start_s", "end_s", "transcription", "units")


class OnBroken(Enum):
    """What becomes of rows that cannot be used."""

    skip = "skip"
    refuse = "refuse"


class Role(str, Enum):
    """Who speaks in an item, as manifests write it."""

    USER = "user"
    ASSISTANT = "assistant"


@dataclass(frozen=True, slots=True)
class Item:
    """One turn of a conversation."""

    role: Role
    text: str = ""
    audio: Audio | None = None  # the manifest's folder joined with what the row says
    transcription: str = ""
    units: tuple[int, ...] | None = None
    words: tuple[tuple[int, ...], ...] | None = None  # the same units as words of a unit language; None where they are not grouped
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Row:
    """One conversation."""

    id: str
    turns: tuple[Item, ...]
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def question(self) -> Item | None:
        """The user's last turn."""
        return self._last(Role.USER)

    @property
    def answer(self) -> Item | None:
        """The assistant's last turn."""
        return self._last(Role.ASSISTANT)

    def _last(self, role: Role) -> Item | None:
        return next((item for item in reversed(self.turns) if item.role is role), None)


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a row cannot be used."""

    line: int  # counted from 1; in a .json list, the number of the row
    row_id: str | None
    reason: str

    def __str__(self) -> str:
        who = "" if self.row_id is None else f" (row {self.row_id!r})"
        return f"line {self.line}{who}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Manifest:
    """The usable rows of a file, and what was wrong with the others."""

    rows: tuple[Row, ...]
    root: Path
    problems: tuple[Problem, ...] = ()
    lines: tuple[int, ...] = ()  # the line of each of `rows`


class _Broken(Exception):
    """A row cannot be used; the text is the reason."""


def read_manifest(path: str | Path, *, on_broken: OnBroken = OnBroken.refuse, allow_outside: bool = False) -> Manifest:
    """Read a manifest and check every row; of audio, the headers.

    Args:
        path: a .jsonl file, or a .json file with a list.
        on_broken: skip broken rows with one warning each, or refuse the file.
        allow_outside: whether audio may lie outside the manifest's folder, symbolic links followed.
    Returns:
        at least one row, in the order of the file.
    Raises:
        ManifestError: the file is missing, unreadable, empty or has no usable row; or it has broken rows and `on_broken` is refuse.
    """
    manifest = examine_manifest(path, allow_outside=allow_outside)
    if on_broken is OnBroken.refuse and manifest.problems:
        raise ManifestError(f"{_plural(len(manifest.problems), 'broken row')} in {path}: {_first(manifest.problems)}")
    if not manifest.rows:
        raise ManifestError(f"no row of {path} is usable: {_first(manifest.problems)}")
    for problem in manifest.problems:
        log.warning("%s, %s; row skipped", path, problem)
    return manifest


def read_manifests(paths: Iterable[str | Path], *, on_broken: OnBroken = OnBroken.refuse, allow_outside: bool = False) -> tuple[Row, ...]:
    """The rows of several manifests, one after the other.

    Raises:
        ManifestError: as `read_manifest`; or no path was given, or two manifests share a row id.
    """
    origin: dict[str, str | Path] = {}
    rows: list[Row] = []
    for path in paths:
        for row in read_manifest(path, on_broken=on_broken, allow_outside=allow_outside).rows:
            if row.id in origin:
                raise ManifestError(f"row {row.id!r} is in {origin[row.id]} and in {path}; ids must differ, so leave one manifest out")
            origin[row.id] = path
            rows.append(row)
    if not rows:
        raise ManifestError("no manifest was named; give at least one path")
    return tuple(rows)


def examine_manifest(path: str | Path, *, allow_outside: bool = False) -> Manifest:
    """Read a manifest, leaving it to the caller what to do about its problems.

    Raises:
        ManifestError: the file is missing, unreadable or empty.
    """
    path = Path(path)
    rows: list[Row] = []
    lines: list[int] = []
    problems: list[Problem] = []
    for line, row in checked_rows(path, _records(path), allow_outside=allow_outside):
        if isinstance(row, Problem):
            problems.append(row)
        else:
            rows.append(row)
            lines.append(line)
    if not rows and not problems:
        raise ManifestError(f"the manifest {path} is empty; it needs at least one row")
    return Manifest(tuple(rows), path.parent, tuple(problems), tuple(lines))


def checked_rows(path: Path, records: Iterable[tuple[int, Any]], *, allow_outside: bool = False) -> Iterator[tuple[int, Row | Problem]]:
    """Rows of the manifest at `path`, one by one: each record with its line (`line_records` gives them) -> the row, or why it is none."""
    reader = _RowReader(path, allow_outside)
    for line, record in records:
        try:
            yield line, reader.row(line, record)
        except _Broken as broken:
            yield line, Problem(line, _id_of(record), str(broken))


def line_records(lines: Iterable[bytes], first: int = 1) -> Iterator[tuple[int, Any]]:
    """Lines of a .jsonl file, the first of them number `first`, as records for `checked_rows`; blank ones are none."""
    for line, raw in enumerate(lines, start=first):
        if raw.strip():
            yield line, _parsed(raw)


def write_manifest(path: str | Path, rows: Iterable[Row]) -> None:
    """Write rows as JSONL, audio below the manifest's folder as relative paths; the file appears only when complete.

    Raises:
        ManifestError: the file cannot be written.
    """
    path = Path(path)
    try:
        with appearing(path) as unfinished, unfinished.open("w", encoding="utf-8") as out:
            for row in rows:
                out.write(json.dumps(row_record(row, path.parent), ensure_ascii=False) + "\n")
    except OSError as error:
        raise ManifestError(f"the manifest {path} could not be written: {error.strerror or error}") from error


def row_record(row: Row, root: Path) -> dict[str, Any]:
    """A row as its JSON object in a manifest that lies in `root`."""
    return {"id": row.id, **row.extra, "conversations": [_item_record(item, root) for item in row.turns]}


def manifest_fingerprint(path: str | Path) -> str:
    """Sixteen hex digits that change with any byte of the manifest (not of its audio).

    Raises:
        ManifestError: the file cannot be read.
    """
    with _readable(Path(path)):
        return sha256_of(Path(path))[:16]


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


def _records(path: Path) -> Iterator[tuple[int, Any]]:
    """Line numbers and parsed JSON; a line that is none comes as the `_Broken` that says so."""
    content = _bytes_of(path)
    if path.suffix == ".json":
        yield from enumerate(_list_in(path, content), start=1)
        return
    yield from line_records(content.split(b"\n"))


def _bytes_of(path: Path) -> bytes:
    with _readable(path):
        return path.read_bytes()


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except IsADirectoryError as error:
        raise ManifestError(f"the manifest {path} is a folder; name the .jsonl file in it") from error
    except FileNotFoundError as error:
        raise ManifestError(f"the manifest {path} does not exist") from error
    except OSError as error:
        raise ManifestError(f"the manifest {path} could not be read: {error.strerror or error}") from error


def _list_in(path: Path, content: bytes) -> list[Any]:
    rows = _parsed(content)
    if isinstance(rows, _Broken):
        raise ManifestError(f"the manifest {path} cannot be read: {rows}")
    if not isinstance(rows, list):
        raise ManifestError(f"the manifest {path} holds a JSON {_json_type(rows)}; a .json manifest is a list of rows, else name it .jsonl")
    return rows


def _parsed(raw: bytes) -> Any:
    try:
        return json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return _Broken("not UTF-8 text")
    except (json.JSONDecodeError, RecursionError) as error:
        return _Broken(f"not JSON ({error})")


def _json_type(value: Any) -> str:
    names = {dict: "object", list: "list", str: "string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "number")


def _id_of(record: Any) -> str | None:
    """The id a row gives itself, if it can be told."""
    given = record.get("id") if isinstance(record, dict) else None
    return str(given) if isinstance(given, (str, int)) and not isinstance(given, bool) else None


class _RowReader:
    """Turns JSON objects of one file into rows, remembering the ids it has seen."""

    def __init__(self, path: Path, allow_outside: bool) -> None:
        self.path = path
        self.allow_outside = allow_outside
        self.folder = path.parent.resolve()
        self.seen: dict[str, int] = {}

    def row(self, line: int, record: Any) -> Row:
        """Check one row; raises `_Broken` with the reason."""
        if isinstance(record, _Broken):
            raise record
        if not isinstance(record, dict):
            raise _Broken(f"a row is a JSON object, not a {_json_type(record)}")
        row_id = self._new_id(line, record)
        items = record.get("conversations")
        if not isinstance(items, list) or not items:
            raise _Broken("the row has no list 'conversations' with at least one item")
        turns = tuple(self._item(number, item) for number, item in enumerate(items, start=1))
        self.seen[row_id] = line
        return Row(row_id, turns, {key: value for key, value in record.items() if key not in ("id", "conversations")})

    def _new_id(self, line: int, record: dict[str, Any]) -> str:
        if "id" in record and not _id_of(record):
            raise _Broken(f"id is a {_json_type(record['id'])}; it must be a non-empty string")
        # The published format has no ids, so the place in the file stands in.
        row_id = _id_of(record) or f"{self.path.stem}-{line}"
        if row_id in self.seen:
            raise _Broken(f"id {row_id!r} was already used in line {self.seen[row_id]}")
        return row_id

    def _item(self, number: int, record: Any) -> Item:
        where = f"item {number}"
        if not isinstance(record, dict):
            raise _Broken(f"{where} is a {_json_type(record)}; it must be an object with 'from' and 'value'")
        role = record.get("from")
        if role not in [known.value for known in Role]:
            raise _Broken(f"{where} is from {role!r}; roles are user and assistant")
        words = _words(record.get("units"), where)
        item = Item(
            role=Role(role),
            text=_text(record, "value", where),
            audio=self._audio(record, where),
            transcription=_text(record, "transcription", where),
            units=None if words is None else tuple(unit for word in words for unit in word),
            words=words if words and any(len(word) > 1 for word in words) else None,
            extra={key: value for key, value in record.items() if key not in _ITEM_KEYS},
        )
        _refuse_silence(item, where)
        return item

    def _audio(self, record: dict[str, Any], where: str) -> Audio | None:
        named = _text(record, "audio", where)
        if not named:
            return None
        path = self.path.parent / named
        try:
            ref = audio_ref(path).between(_seconds(record, "start_s", where) or 0.0, _seconds(record, "end_s", where))
            if not self.allow_outside and not ref.file.resolve().is_relative_to(self.folder):
                raise _Broken(f"{where}: audio {named} lies outside the manifest's folder; move it inside, or allow paths outside")
            audio_header(ref)
        except SignalError as error:
            raise _Broken(f"{where}: {str(error).replace(str(path), named)}") from error
        except (OSError, ValueError, RuntimeError) as error:
            raise _Broken(f"{where}: audio {named!r} is no usable path ({error})") from error
        return ref.simplest()


def _seconds(record: dict[str, Any], key: str, where: str) -> float | None:
    value = record.get(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf):
        raise _Broken(f"{where}: {key!r} is {value!r}; it must be seconds, 0 or more")
    return value


def _text(record: dict[str, Any], key: str, where: str) -> str:
    value = record.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _Broken(f"{where}: '{key}' is a {_json_type(value)}; it must be a string")
    return value.strip()


def _words(value: Any, where: str) -> tuple[tuple[int, ...], ...] | None:
    if value is None or value == "":
        return None
    parts = value.replace("|><|", "|> <|").split() if isinstance(value, str) else value
    if not isinstance(parts, list):
        raise _Broken(f"{where}: 'units' is a {_json_type(value)}; it must be integers with spaces between them")
    return tuple(_word(part, where) for part in parts)


def _word(part: Any, where: str) -> tuple[int, ...]:
    """A unit, or several that `_` joins, with or without the marks of a token."""
    plain = str(part).removeprefix("<|unit_").removesuffix("|>")
    units = plain.split("_")
    if isinstance(part, bool) or not isinstance(part, (int, str)) or not all(unit.isascii() and unit.isdigit() for unit in units):
        raise _Broken(f"{where}: units are integers from 0 up, joined by _ in words of a unit language, but one is {part!r}")
    return tuple(map(int, units))


def _refuse_silence(item: Item, where: str) -> None:
    """A turn that says nothing, or speech whose words nobody knows, teaches nothing."""
    if item.role is Role.USER and not (item.text or item.audio):
        raise _Broken(f"{where}: the user's turn has neither audio nor a text ('value')")
    if item.role is Role.ASSISTANT and not (item.text or item.transcription):
        raise _Broken(f"{where}: the assistant's turn has neither a text ('value') nor a transcription of the user's audio")
    if item.role is Role.ASSISTANT and not item.text and (item.audio or item.units):
        raise _Broken(f"{where}: the assistant's audio or units have no text ('value') beside them")


def _first(problems: Sequence[Problem]) -> str:
    more = len(problems) - LISTED_PROBLEMS
    return "; ".join(map(str, problems[:LISTED_PROBLEMS])) + (f"; and {more} more" if more > 0 else "")


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def with_answer(row: Row, **changes: Any) -> Row:
    """The row with fields of the assistant's last item replaced (units, audio), everything else as it was."""
    last = max(index for index, item in enumerate(row.turns) if item.role is Role.ASSISTANT)
    turns = list(row.turns)
    # Words group the units they were read with.
    turns[last] = dataclasses.replace(turns[last], **({"words": None} if "units" in changes else {}), **changes)
    return dataclasses.replace(row, turns=tuple(turns))
