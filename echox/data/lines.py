"""The records of large files, read as a stream: lines of JSONL by the chunk, elements of a JSON list one by one."""

from __future__ import annotations

import codecs
import json
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from echox.data.row_reader import json_type, parsed, writable
from echox.errors import ConfigError, ManifestError

A, R = TypeVar("A"), TypeVar("R")

CHUNK_BYTES = 1 << 20
# Chunks handed out beyond those whose results were taken: enough that no process waits, few enough that memory stays flat.
AHEAD = 3
_SPACE = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True, slots=True)
class Chunk:
    """Neighbouring lines of a file."""

    first_line: int  # counted from 1
    offset: int  # bytes before the first line
    lines: list[bytes]

    def places(self) -> Iterator[tuple[int, int, bytes]]:
        """Number, offset in bytes and content of each line that is not blank."""
        offset = self.offset
        for line, raw in enumerate(self.lines, start=self.first_line):
            if raw.strip():
                yield line, offset, raw
            offset += len(raw)


def chunks_of(path: Path, chunk_bytes: int = CHUNK_BYTES) -> Iterator[Chunk]:
    """The lines of a file, about `chunk_bytes` at a time.

    Raises:
        ManifestError: the file cannot be read.
    """
    with reading(path) as file:
        line, offset = 1, 0
        while lines := file.readlines(chunk_bytes):
            yield Chunk(line, offset, lines)
            line, offset = line + len(lines), offset + sum(map(len, lines))


def records_of(path: Path) -> Iterator[tuple[int, Any]]:
    """Line numbers and parsed JSON of a .jsonl or .json file; a line that is none comes as the `Broken` that says so.

    Raises:
        ManifestError: the file cannot be read, or is a .json file that holds no list.
    """
    if path.suffix == ".json":
        yield from enumerate(map(writable, list_items(path)), start=1)
        return
    with reading(path) as file:
        for line, raw in enumerate(file, start=1):
            if raw.strip():
                yield line, parsed(raw)


@contextmanager
def reading(path: Path) -> Iterator[BinaryIO]:
    """A manifest opened to be read.

    Raises:
        ManifestError: it cannot be.
    """
    try:
        with path.open("rb") as file:
            yield file
    except IsADirectoryError as error:
        raise ManifestError(f"the manifest {path} is a folder; name the .jsonl file in it") from error
    except FileNotFoundError as error:
        raise ManifestError(f"the manifest {path} does not exist") from error
    except OSError as error:
        raise ManifestError(f"the manifest {path} could not be read: {error.strerror or error}") from error


def list_items(path: Path) -> Iterator[Any]:
    """The elements of a JSON list, without holding more than one of them.

    Raises:
        ManifestError: the file cannot be read, is no JSON, or holds something else than a list.
    """
    with reading(path) as file:
        yield from list_items_in(file, path)


def list_items_in(file: BinaryIO, path: Path | str) -> Iterator[Any]:
    """As `list_items`, of an open file; `path` is what errors call it."""
    try:
        yield from _ListReader(file, path).items()
    except UnicodeDecodeError as error:
        raise ManifestError(f"the manifest {path} cannot be read: not UTF-8 text") from error
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"the manifest {path} cannot be read: not JSON ({error}); where each row has a line of its own, name it .jsonl") from error


class _ListReader:
    """A JSON list by its elements: text is read on while the element at hand is not whole."""

    def __init__(self, file: BinaryIO, path: Path | str) -> None:
        self.file, self.path = file, path
        self.decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.text, self.at, self.ended = "", 0, False

    def items(self) -> Iterator[Any]:
        if self._next() != "[":
            whole = json.loads(self.text[self.at :] + self._rest())
            kind = json_type(whole)
            raise ManifestError(f"the manifest {self.path} holds a JSON {kind}; a .json manifest is a list of rows, else name it .jsonl")
        self.at += 1
        if self._next() != "]":
            yield self._element()
            while self._next() == ",":
                self.at += 1
                self._next()
                yield self._element()
        if self._next() != "]":
            raise json.JSONDecodeError("expecting ',' or ']' between the rows of a list", self.text, self.at)
        self.at += 1
        if self._next():
            raise json.JSONDecodeError("text after the end of the list", self.text, self.at)

    def _next(self) -> str:
        """The next character that is no space, "" at the end."""
        while True:
            self.at = _SPACE.match(self.text, self.at).end()
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self._read_on()

    def _element(self) -> Any:
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError:
                if self.ended:
                    raise
            else:
                # A number may go on in what is not read yet.
                if end < len(self.text) or self.ended:
                    self.at = end
                    return value
            self._read_on()

    def _read_on(self) -> None:
        # As much again as is waiting, so that an element larger than a piece is not parsed once per piece.
        raw = self.file.read(max(CHUNK_BYTES, len(self.text) - self.at))
        self.ended = not raw
        self.text, self.at = self.text[self.at :] + self.decoder.decode(raw, final=self.ended), 0

    def _rest(self) -> str:
        return self.decoder.decode(self.file.read(), final=True)


_DECODER = json.JSONDecoder()


def in_order(function: Callable[[A], R], items: Iterable[A], processes: int = 1) -> Iterator[R]:
    """The results of a function of a module over a stream, in order, by so many processes; the stream is never read far ahead.

    Raises:
        ConfigError: `processes` is below 1. ManifestError: one of them was killed.
    """
    if processes < 1:
        raise ConfigError(f"processes is {processes}; use 1 or more")
    if processes == 1:
        yield from map(function, items)
        return
    waiting: deque[Future[R]] = deque()
    try:
        # Not by fork, which copies locks that PyTorch's threads may hold.
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_use_one_thread) as pool:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= AHEAD * processes:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise ManifestError(f"one of {processes} processes was killed, perhaps for its memory; use fewer processes") from error


def _use_one_thread() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
