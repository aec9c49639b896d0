"""Indexed manifests: of ten million rows, each is read at access.

Beside NAME.jsonl stands NAME.jsonl.idx: a header of HEAD_BYTES bytes with a JSON object, then one
array per column, each as long as the manifest has usable rows, then the broken rows as JSON. It is
made in one pass that checks every row, and made again when the manifest's size, time of change, or
first or last bytes are not those in the header.

Of audio, that pass opens the headers of clips whose seconds the row does not state (`duration_s`);
all others are opened when their row is read.
"""

from __future__ import annotations

import functools
import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock

from echox.core.errors import ConfigError, ManifestError
from echox.core.files import atomic_write, translate_disk_faults
from echox.core.progress import Bar
from echox.data.id_hashes import BLOCK_ROWS, duplicate_positions, hash_id
from echox.data.lines import Chunk, map_in_order, read_chunks
from echox.data.row_reader import BrokenRow, Headers, ReadRow, RowReader, parse_line, stated_id
from echox.data.rows import Problem, Role

SUFFIX = ".idx"
HEAD_BYTES = 4096
# Larger manifests are indexed, smaller ones are read whole; at 250 bytes a row, a quarter of a
# million rows.
INDEXED_FROM_BYTES = 64 << 20
# Bytes of either end of a manifest that are compared.
END_BYTES = 1 << 16
# Raised with every change of the layout, so that older indexes are made again.
_FORMAT = 1
_ENTRY = np.dtype(
    [
        ("offset", "<u8"),  # bytes before the row's line
        ("size", "<u4"),  # bytes of the line, ROW_BYTES at most
        ("line", "<u4"),  # its number, counted from 1
        ("id", "<u8"),  # hash of the row's id
        ("heard_s", "<f4"),  # seconds of the users' clips
        ("spoken_s", "<f4"),  # seconds of the assistants' clips
        ("letters", "<u4"),  # characters of all turns' texts
        ("units", "<u4"),  # of all turns
    ]
)


@dataclass(kw_only=True, slots=True)
class IndexConfig:
    """Index large manifests in several processes, before training does so by itself.

    NAME.jsonl.idx appears beside each.
    """

    manifests: list[str] = field(default_factory=list)
    """Manifests to index, .jsonl."""
    processes: int = 1
    """Processes that parse rows, and read the headers of clips whose seconds no row states."""
    allow_outside: bool = False
    """Accept audio outside a manifest's folder, as the training that uses the index will."""


def index_manifests(config: IndexConfig) -> None:
    """Index manifests, and print how many rows each has.

    Raises:
        ConfigError: no manifest is named, or one is no .jsonl.
        ManifestError: a manifest is missing, unreadable or empty.
    """
    if not config.manifests:
        raise ConfigError("no manifest was named; give manifests=[FILE.jsonl,...]")
    for path in map(Path, config.manifests):
        if path.suffix != ".jsonl":
            raise ConfigError(
                f"{path} cannot be indexed, for its rows are no lines; "
                f"'echox-prepare manifest {path}' makes a .jsonl of it"
            )
        index = build_index(path, allow_outside=config.allow_outside, processes=config.processes)
        print(f"{index.path}: {len(index):,} rows, {len(index.problems):,} broken")


class Index:
    """An index that is up to date: columns [N] of a manifest's N usable rows.

    Args:
        manifest: the manifest that is indexed.
        header: the index's header.
    """

    def __init__(self, manifest: Path, header: dict[str, Any]) -> None:
        self.manifest = manifest
        self.path = index_path(manifest)
        self.header = header

    def __len__(self) -> int:
        return self.header["rows"]

    @functools.cached_property
    def problems(self) -> tuple[Problem, ...]:
        """Problems of the broken rows."""
        start, size = self.header["problems"]
        with self.path.open("rb") as file:
            file.seek(start)
            return tuple(Problem(*fields) for fields in json.loads(file.read(size)))

    def column(self, name: str) -> np.ndarray:
        """Return a column [N] of the usable rows, mapped into memory.

        Args:
            name: offset, size, line, id, heard_s, spoken_s, letters or units.
        """
        dtype = _ENTRY[name]
        # A memory map may not be empty.
        if len(self) == 0:
            return np.empty(0, dtype=dtype)
        start = self.header["columns"][name]
        return np.memmap(self.path, dtype=dtype, mode="r", offset=start, shape=(len(self),))


def index_path(manifest: Path) -> Path:
    """Return the path of a manifest's index."""
    return manifest.with_name(manifest.name + SUFFIX)


def needs_index(manifest: Path) -> bool:
    """Return whether a manifest is too large to be read whole."""
    return (
        manifest.suffix == ".jsonl"
        and manifest.is_file()
        and manifest.stat().st_size >= INDEXED_FROM_BYTES
    )


def open_index(manifest: Path, *, allow_outside: bool = False) -> Index | None:
    """Open the manifest's index; None where there is none that is up to date and complete.

    Of the manifest no more than its two ends is read.
    """
    try:
        with index_path(manifest).open("rb") as file:
            header = json.loads(file.read(HEAD_BYTES))
            # The broken rows come last, so their end is the file's.
            is_complete = file.seek(0, 2) == sum(header["problems"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
    if not is_complete or header.get("of") != _manifest_state(manifest, allow_outside):
        return None
    return Index(manifest, header)


def build_index(
    manifest: Path, *, allow_outside: bool = False, processes: int = 1, progress: bool = True
) -> Index:
    """Return the manifest's index, made in one pass where there is none that is up to date.

    The index appears only when complete.

    Args:
        manifest: a .jsonl file.
        allow_outside: accept audio outside the manifest's folder.
        processes: processes that parse rows and read headers.
        progress: show the progress bar.

    Raises:
        ManifestError: the manifest is missing, unreadable or empty, or changed meanwhile; or the
            index cannot be written.
    """
    # Without the lock, which a folder that cannot be written does not give: an index appears whole.
    index = open_index(manifest, allow_outside=allow_outside)
    if index is not None:
        return index
    target = index_path(manifest)
    try:
        # Ranks that are started together wait here for the first one's work.
        lock = FileLock(target.with_name(f".{target.name}.lock"))
        with translate_disk_faults(target), lock:
            index = open_index(manifest, allow_outside=allow_outside)
            if index is None:
                _write_index(manifest, target, allow_outside, processes, progress)
                index = open_index(manifest, allow_outside=allow_outside)
    except OSError as error:
        raise ManifestError(
            f"the index {target} could not be written: {error.strerror or error}; manifests above "
            f"{INDEXED_FROM_BYTES >> 20} MiB are read by their index, so free some space, "
            "or copy the manifest to a folder that can be written"
        ) from error
    if index is None:
        raise ManifestError(
            f"the manifest {manifest} changed while it was indexed; start again when it is finished"
        )
    return index


def _manifest_state(manifest: Path, allow_outside: bool) -> dict[str, Any]:
    """Everything that an index is valid for; it stands in the header."""
    status = manifest.stat()
    with manifest.open("rb") as file:
        first = file.read(END_BYTES)
        file.seek(max(0, status.st_size - END_BYTES))
        ends = hashlib.sha256(first + file.read()).hexdigest()
    return {
        "format": _FORMAT,
        "bytes": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "ends": ends,
        "allow_outside": allow_outside,
    }


def _write_index(
    manifest: Path, target: Path, allow_outside: bool, processes: int, progress: bool
) -> None:
    if not manifest.is_file():
        next(read_chunks(manifest), None)  # raises the error that says what is wrong
    # Before the pass: a manifest that changes meanwhile leaves an index that is not up to date.
    state = _manifest_state(manifest, allow_outside)
    # Entries go through a file, so that memory does not grow with the number of rows.
    with tempfile.TemporaryFile(dir=target.parent) as entries, atomic_write(target) as unfinished:
        digest = hashlib.sha256()
        problems = _write_entries(manifest, entries, digest, allow_outside, processes, progress)
        kept, repeats = _drop_repeated_ids(manifest, entries)
        problems = sorted([*problems, *repeats], key=lambda problem: problem.line)
        if not problems and not len(kept):
            raise ManifestError(f"the manifest {manifest} is empty; it needs at least one row")
        with unfinished.open("wb") as out:
            _lay_out(entries, kept, problems, {"of": state, "sha256": digest.hexdigest()}, out)


def _write_entries(
    manifest: Path,
    entries: BinaryIO,
    digest: Any,
    allow_outside: bool,
    processes: int,
    progress: bool,
) -> list[Problem]:
    """Append an entry for every usable row, and return the problems of the others.

    `digest` takes in the whole file, which is so read once.
    """
    problems: list[Problem] = []
    measure = functools.partial(_chunk_entries, manifest, allow_outside)
    chunks = _digested(read_chunks(manifest), digest)
    label, size = f"indexing {manifest.name}", manifest.stat().st_size
    with Bar(label, size, unit="B", in_bytes=True, shows=progress) as bar:
        for raw_entries, broken, read_bytes in map_in_order(measure, chunks, processes):
            entries.write(raw_entries)
            problems += broken
            bar.update(read_bytes)
    return problems


def _digested(chunks: Iterable[Chunk], digest: Any) -> Iterator[Chunk]:
    for chunk in chunks:
        for raw in chunk.lines:
            digest.update(raw)
        yield chunk


def _chunk_entries(
    manifest: Path, allow_outside: bool, chunk: Chunk
) -> tuple[bytes, list[Problem], int]:
    """Entries of a chunk's usable rows, problems of the others, and its size in bytes.

    A function of the module, which other processes can import.
    """
    reader = RowReader(manifest, allow_outside, Headers.UNSTATED)
    entries, problems = [], []
    for line, offset, raw in chunk.places():
        record = parse_line(raw)
        try:
            entries.append((offset, len(raw), line, *_row_columns(reader.read(line, record))))
        except BrokenRow as broken:
            problems.append(Problem(line, stated_id(record), str(broken)))
    return np.array(entries, dtype=_ENTRY).tobytes(), problems, chunk.size


def _row_columns(read: ReadRow) -> tuple[int, float, float, int, int]:
    """Columns of a row from its id on."""
    seconds = {role: 0.0 for role in Role}
    letters = units = 0
    for item, clip_s in zip(read.row.turns, read.seconds):
        seconds[item.role] += clip_s
        letters += len(item.text) + len(item.transcription)
        units += len(item.units or ())
    return hash_id(read.row.id), seconds[Role.USER], seconds[Role.ASSISTANT], letters, units


def _drop_repeated_ids(manifest: Path, entries: BinaryIO) -> tuple[np.ndarray, list[Problem]]:
    """Whether each row is kept [N] bool, and the problems of rows whose id an earlier one has."""
    # Copied block by block, for a column of a block keeps all of the block in memory.
    hashes = np.empty(entries.seek(0, 2) // _ENTRY.itemsize, dtype="<u8")
    for number, block in enumerate(_entry_blocks(entries)):
        hashes[number * BLOCK_ROWS :][: len(block)] = block["id"]
    kept = np.ones(len(hashes), dtype=bool)
    first_lines: dict[str, int] = {}
    problems = []
    for number in duplicate_positions(hashes).tolist():
        line, row_id = _line_and_id(manifest, entries, number)
        if row_id not in first_lines:
            first_lines[row_id] = line
            continue
        kept[number] = False
        reason = f"id {row_id!r} was already used in line {first_lines[row_id]}"
        problems.append(Problem(line, row_id, reason))
    return kept, problems


def _line_and_id(manifest: Path, entries: BinaryIO, number: int) -> tuple[int, str]:
    """Line and id of an entry's row, the id read from the manifest, for the entry has its hash."""
    entries.seek(number * _ENTRY.itemsize)
    entry = np.frombuffer(entries.read(_ENTRY.itemsize), dtype=_ENTRY)[0]
    with manifest.open("rb") as file:
        file.seek(int(entry["offset"]))
        record = parse_line(file.read(int(entry["size"])))
    line = int(entry["line"])
    # The row was checked before; neither its audio nor its place matters here.
    reader = RowReader(manifest, allow_outside=True, headers=Headers.NONE)
    return line, reader.row(line, record).id


def _entry_blocks(entries: BinaryIO) -> Iterator[np.ndarray]:
    """All entries, up to BLOCK_ROWS at a time."""
    entries.seek(0)
    while raw := entries.read(BLOCK_ROWS * _ENTRY.itemsize):
        yield np.frombuffer(raw, dtype=_ENTRY)


def _lay_out(
    entries: BinaryIO,
    kept: np.ndarray,
    problems: Sequence[Problem],
    origin: dict[str, Any],
    out: BinaryIO,
) -> None:
    """Write columns and broken rows, and the header with their offsets last."""
    columns = {}
    out.seek(HEAD_BYTES)
    for name in _ENTRY.names or ():
        columns[name] = out.tell()
        for number, block in enumerate(_entry_blocks(entries)):
            start = number * BLOCK_ROWS
            out.write(np.ascontiguousarray(block[name][kept[start : start + len(block)]]).tobytes())
        # Columns begin at multiples of 8 bytes, the largest item, so that maps are aligned.
        out.write(bytes(-out.tell() % 8))
    start = out.tell()
    broken = [[problem.line, problem.row_id, problem.reason] for problem in problems]
    size = out.write(json.dumps(broken).encode())
    header = {**origin, "rows": int(kept.sum()), "columns": columns, "problems": [start, size]}
    out.seek(0)
    out.write(json.dumps(header).encode().ljust(HEAD_BYTES))
