"""Large manifests read as streams: JSONL by chunks of lines, a JSON list element by element."""

from __future__ import annotations

import codecs
import io
import json
import os
import re
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar

from echox.core.errors import ConfigError, ManifestError
from echox.core.processes import spawn_context
from echox.data.row_reader import ROW_BYTES, check_value, json_type, parse_line, too_deep, too_long

Argument = TypeVar("Argument")
Result = TypeVar("Result")

CHUNK_BYTES = 1 << 20
# Items submitted per process beyond those whose results were yielded: enough that no process waits,
# few enough that memory stays flat.
AHEAD = 3
MOST_PROCESSES = 4_096
_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive lines of a file; the last one may go on in the chunk that follows."""

    first_line: int  # counted from 1
    offset: int  # bytes before the first line
    lines: list[bytes]
    # Whether it only goes on with a line above `ROW_BYTES`, whose beginning came before.
    is_rest: bool = False

    @property
    def size(self) -> int:
        """Bytes of the lines, blank ones included."""
        return sum(map(len, self.lines))

    def places(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield number, offset in bytes and content of each line that is not blank.

        Of a line above `ROW_BYTES` that is the beginning, long enough for `parse_line` to refuse.
        """
        offset = self.offset
        for line, raw in enumerate(() if self.is_rest else self.lines, start=self.first_line):
            if raw.strip():
                yield line, offset, raw
            offset += len(raw)


def read_chunks(path: Path, chunk_bytes: int = CHUNK_BYTES) -> Iterator[Chunk]:
    """Yield the lines of a file in chunks of about `chunk_bytes` bytes.

    Raises:
        ManifestError: the file cannot be read.
    """
    with open_manifest(path) as file:
        line, offset, is_rest = 1, 0, False
        while lines := _next_lines(file, chunk_bytes, is_rest):
            chunk = Chunk(line, offset, lines, is_rest)
            yield chunk
            is_rest = not lines[-1].endswith(b"\n")
            line, offset = line + len(lines) - is_rest, offset + chunk.size


def _next_lines(file: BinaryIO, chunk_bytes: int, is_rest: bool) -> list[bytes]:
    """The next lines of a file; the last is cut above `ROW_BYTES`, of which the rest comes alone.

    Not by `readlines`, which takes whole lines however long they are.
    """
    block = b"" if is_rest else file.read(chunk_bytes)
    return io.BytesIO(block + file.readline(ROW_BYTES + 1)).readlines()


def bounded_lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield the lines of a file; of one above `ROW_BYTES` a beginning that `parse_line` refuses."""
    while line := file.readline(ROW_BYTES + 1):
        yield line
        while len(line) > ROW_BYTES and not line.endswith(b"\n"):
            line = file.readline(ROW_BYTES + 1)


def read_records(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield line numbers and JSON values of a .jsonl or .json file.

    In place of a row that has no JSON value comes the `BrokenRow` that says why.

    Raises:
        ManifestError: the file cannot be read, or is a .json file that holds no list.
    """
    if path.suffix == ".json":
        yield from enumerate(list_items(path), start=1)
        return
    with open_manifest(path) as file:
        for line, raw in enumerate(bounded_lines(file), start=1):
            if raw.strip():
                yield line, parse_line(raw)


@contextmanager
def open_manifest(path: Path) -> Iterator[BinaryIO]:
    """Open a manifest for reading.

    Raises:
        ManifestError: the manifest is missing, a folder, or unreadable; faults while it is read in
            the block included.
    """
    try:
        # Opening a pipe would wait for a process that writes to it, and a device may have no end.
        mode = path.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise ManifestError(f"the manifest {path} is no regular file; name a .jsonl file")
        # In bytes: offsets into the file are bytes, and a bad line must not end the stream.
        with path.open("rb") as file:
            yield file
    except IsADirectoryError as error:
        raise ManifestError(
            f"the manifest {path} is a folder; name the .jsonl file in it"
        ) from error
    except FileNotFoundError as error:
        raise ManifestError(f"the manifest {path} does not exist") from error
    except OSError as error:
        reason = error.strerror or error
        raise ManifestError(f"the manifest {path} could not be read: {reason}") from error


def list_items(path: Path) -> Iterator[Any]:
    """Yield the elements of a file's JSON list without holding more than one of them.

    In place of an element that no row can be comes the `BrokenRow` that says why.

    Raises:
        ManifestError: the file cannot be read, is not JSON, or holds something else than a list.
    """
    with open_manifest(path) as file:
        yield from list_items_in(file, path)


class ByteReader(Protocol):
    """A binary file as far as it is read here: from the front, and never twice."""

    def read(self, size: int = -1, /) -> bytes:
        """Read at most `size` bytes, or all that follow."""


def list_items_in(file: ByteReader, path: Path | str) -> Iterator[Any]:
    """Yield the elements of an open file's JSON list, as `list_items`.

    Args:
        file: file at the beginning of its text.
        path: name of the file in errors.

    Raises:
        ManifestError: the text is not UTF-8, not JSON, or something else than a list.
    """
    try:
        yield from _JsonListReader(file, path).items()
    except UnicodeDecodeError as error:
        raise ManifestError(f"the manifest {path} cannot be read: not UTF-8 text") from error
    except RecursionError as error:
        raise ManifestError(f"in the manifest {path}, {too_deep()}") from error
    # A number of thousands of digits is a ValueError too.
    except ValueError as error:
        raise ManifestError(
            f"the manifest {path} cannot be read: not JSON ({error}); "
            "where each row has a line of its own, name it .jsonl"
        ) from error


class _JsonListReader:
    """Parses a JSON list element by element.

    `text` holds what was read and not yet parsed, `position` is the next character to parse. More
    is read while the element at hand is incomplete.
    """

    def __init__(self, file: ByteReader, path: Path | str) -> None:
        self.file, self.path = file, path
        # Incremental, because a piece of the file may end within a character.
        self.decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.text, self.position, self.ended = "", 0, False

    def items(self) -> Iterator[Any]:
        if self._next_character() != "[":
            self._refuse_other_value()
        self.position += 1
        if self._next_character() != "]":
            yield self._element()
            while self._next_character() == ",":
                self.position += 1
                self._next_character()
                yield self._element()
        if self._next_character() != "]":
            raise self._syntax_error("expecting ',' or ']' between the rows of a list")
        self.position += 1
        if self._next_character():
            raise self._syntax_error("text after the end of the list")

    def _refuse_other_value(self) -> None:
        content = self.file.read(ROW_BYTES)
        if self.file.read(1):
            raise ManifestError(f"the manifest {self.path} holds no JSON list; name it .jsonl")
        # Parsed as a whole, so that text that is no JSON at all is named as such.
        text = self.text[self.position :] + self.decoder.decode(content, final=True)
        raise ManifestError(
            f"the manifest {self.path} holds a JSON {json_type(json.loads(text))}; "
            "a .json manifest is a list of rows, else name it .jsonl"
        )

    def _syntax_error(self, reason: str) -> json.JSONDecodeError:
        return json.JSONDecodeError(reason, self.text, self.position)

    def _next_character(self) -> str:
        """The next character that is no space, without consuming it; "" at the end."""
        while True:
            self._skip_spaces()
            if self.position < len(self.text) or self.ended:
                return self.text[self.position : self.position + 1]
            self._read_more()

    def _skip_spaces(self) -> None:
        if spaces := _SPACE.match(self.text, self.position):
            self.position = spaces.end()

    def _element(self) -> Any:
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.position)
            except json.JSONDecodeError:
                # Before the end of the file the element may only be incomplete.
                if self.ended:
                    raise
            else:
                # A number may go on in what is not read yet.
                if end < len(self.text) or self.ended:
                    return self._checked(value, end)
            if len(self.text) - self.position > ROW_BYTES:
                raise ManifestError(f"in the manifest {self.path}, {too_long()}")
            self._read_more()

    def _checked(self, value: Any, end: int) -> Any:
        """The element whose text ends at a position, or a `BrokenRow`; moves behind it."""
        start, self.position = self.position, end
        if end - start > ROW_BYTES:
            return too_long()
        brackets = self.text.count("[", start, end) + self.text.count("{", start, end)
        return check_value(value, brackets, self.text.find("\\u", start, end) >= 0)

    def _read_more(self) -> None:
        # As much again as is unparsed, so that an element larger than a chunk is not parsed once
        # per chunk.
        raw = self.file.read(max(CHUNK_BYTES, len(self.text) - self.position))
        self.ended = not raw
        self.text = self.text[self.position :] + self.decoder.decode(raw, final=self.ended)
        self.position = 0


def map_in_order(
    function: Callable[[Argument], Result], items: Iterable[Argument], processes: int = 1
) -> Iterator[Result]:
    """Apply a function to a stream in several processes and yield the results in order.

    Args:
        function: function of a module, or a partial of one, which processes can import.
        items: arguments; at most AHEAD * processes of them are taken before their results are.
        processes: number of processes; 1 computes in this one.

    Raises:
        ConfigError: `processes` is below 1, or more than a machine runs.
        ManifestError: one of the processes was killed.
    """
    if not 1 <= processes <= MOST_PROCESSES:
        raise ConfigError(f"processes is {processes}; use 1 to {MOST_PROCESSES}")
    if processes == 1:
        yield from map(function, items)
        return
    # Not by fork, which copies locks that PyTorch's threads may hold.
    context = spawn_context()
    waiting: deque[Future[Result]] = deque()
    try:
        with ProcessPoolExecutor(processes, context, initializer=_use_one_thread) as pool:
            for item in items:
                # One at a time, for `pool.map` takes the whole stream before its first result.
                waiting.append(pool.submit(function, item))
                if len(waiting) >= AHEAD * processes:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    # A process that the kernel kills for its memory leaves no exception of its own.
    except BrokenProcessPool as error:
        raise ManifestError(
            f"one of {processes} processes was killed, perhaps for its memory; use fewer processes"
        ) from error


def _use_one_thread() -> None:
    # The processes share the cores; threads of each would only wait for one another.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
