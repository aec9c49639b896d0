"""Rows of a manifest in batches, as they are handed to processes that check or measure them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from echox.data.lines import read_chunks, read_records
from echox.data.row_reader import parse_line

# Rows of a .json list handed to a process at once.
LIST_ROWS = 512
# Bytes of lines handed to a process at once: each row may have minutes of audio to decode, and the
# progress bar moves by batches.
BATCH_BYTES = 1 << 17

# Line numbers, and what stands there: a line's bytes, or the JSON value of a .json list's row.
Records = list[tuple[int, Any]]


def read_batches(path: Path) -> Iterator[tuple[Records, int]]:
    """Yield the rows of a manifest in batches, each with the bytes that it takes.

    Lines are not parsed here, so that the processes that take the batches share that work. Rows of
    a .json list are parsed, and their bytes count as 0.

    Raises:
        ManifestError: the file cannot be read, or is a .json file that holds no list.
    """
    if path.suffix != ".json":
        for chunk in read_chunks(path, BATCH_BYTES):
            yield [(line, raw) for line, _, raw in chunk.places()], chunk.size
        return
    batch: Records = []
    for record in read_records(path):
        batch.append(record)
        if len(batch) == LIST_ROWS:
            yield batch, 0
            batch = []
    yield batch, 0


def record_of(raw: Any) -> Any:
    """Return the JSON value of a batch's row, or the `BrokenRow` that says why it has none."""
    return parse_line(raw) if isinstance(raw, bytes) else raw


def line_of(raw: Any) -> bytes:
    """Return a batch's row as a line of a .jsonl file; a line stays as it is, to the byte."""
    if isinstance(raw, bytes):
        return raw.rstrip(b"\r\n") + b"\n"
    return json.dumps(raw, ensure_ascii=False).encode() + b"\n"
