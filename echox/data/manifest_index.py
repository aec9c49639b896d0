"""Indexed manifests: of ten million rows, each is read when it is asked for.

Beside NAME.jsonl lies NAME.jsonl.idx: a header of HEAD_BYTES with a JSON object, then one array per column, each as long as the manifest
has usable rows, then the broken rows as JSON. It is made in one pass that checks every row, and made again when the manifest's size, time
of change, or first or last bytes are others than the header says.

Of audio, that pass opens the headers of clips whose seconds the row does not state (`duration_s`); all others are met when they are read.
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

from echox.data.id_hashes import BLOCK_ROWS, hash_of, repeated
from echox.data.lines import Chunk, chunks_of, in_order
from echox.data.row_reader import Broken, Headers, ReadRow, RowReader, id_of, parsed
from echox.data.rows import Problem, Role
from echox.data.writing import appearing
from echox.errors import ConfigError, ManifestError
from echox.progress import Bar

SUFFIX = ".idx"
HEAD_BYTES = 4096
# Larger manifests are indexed, smaller ones are read whole; at 250 bytes a row, a quarter of a million rows.
INDEXED_FROM_BYTES = 64 << 20
# How much of either end of a manifest is compared.
END_BYTES = 1 << 16
_FORMAT = 1
_LARGEST_LINE = (1 << 32) - 1
_ENTRY = np.dtype(
    [
        ("offset", "<u8"),  # bytes before the row's line
        ("size", "<u4"),  # bytes of the line
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
    """Index large manifests before training does so by itself, by several processes; NAME.jsonl.idx appears beside each."""

    manifests: list[str] = field(default_factory=list)
    """Manifests to index, .jsonl."""
    processes: int = 1
    """Processes that parse rows, and read the headers of clips whose seconds no row states."""
    allow_outside: bool = False
    """Accept audio outside a manifest's folder, as the training that uses the index will."""


def index_manifests(config: IndexConfig) -> None:
    """Index, and print how many rows there are.

    Raises:
        ConfigError: no manifest is named, or one is no .jsonl. ManifestError: one is missing, unreadable or empty.
    """
    if not config.manifests:
        raise ConfigError("no manifest was named; give manifests=[FILE.jsonl,...]")
    for path in map(Path, config.manifests):
        if path.suffix != ".jsonl":
            raise ConfigError(f"{path} cannot be indexed, for its rows are no lines; 'echox-prepare manifest {path}' makes a .jsonl of it")
        index = build_index(path, allow_outside=config.allow_outside, processes=config.processes)
        print(f"{index.path}: {len(index):,} rows, {len(index.problems):,} broken")


class Index:
    """An index that is up to date, open for reading."""

    def __init__(self, manifest: Path, header: dict[str, Any]) -> None:
        self.manifest = manifest
        self.path = index_path(manifest)
        self.header = header

    def __len__(self) -> int:
        return self.header["rows"]

    @functools.cached_property
    def problems(self) -> tuple[Problem, ...]:
        """The broken rows."""
        start, size = self.header["problems"]
        with self.path.open("rb") as file:
            file.seek(start)
            return tuple(Problem(*found) for found in json.loads(file.read(size)))

    def column(self, name: str) -> np.ndarray:
        """A column [rows] of the index, mapped into memory."""
        if len(self) == 0:
            return np.empty(0, dtype=_ENTRY[name])
        return np.memmap(self.path, dtype=_ENTRY[name], mode="r", offset=self.header["columns"][name], shape=(len(self),))


def index_path(manifest: Path) -> Path:
    """Where a manifest's index stands."""
    return manifest.with_name(manifest.name + SUFFIX)


def wants_index(manifest: Path) -> bool:
    """Whether a manifest is too large to be read whole."""
    return manifest.suffix == ".jsonl" and manifest.is_file() and manifest.stat().st_size >= INDEXED_FROM_BYTES


def open_index(manifest: Path, *, allow_outside: bool = False) -> Index | None:
    """The manifest's index if it is up to date, without reading more than the manifest's ends."""
    try:
        with index_path(manifest).open("rb") as file:
            header = json.loads(file.read(HEAD_BYTES))
            is_whole = file.seek(0, 2) == sum(header["problems"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return Index(manifest, header) if is_whole and header.get("of") == _state(manifest, allow_outside) else None


def build_index(manifest: Path, *, allow_outside: bool = False, processes: int = 1, progress: bool = True) -> Index:
    """The manifest's index, made in one pass over the file if there is none that is up to date; it appears only when complete.

    Args:
        allow_outside: whether audio may lie outside the manifest's folder.
        processes: that parse rows and read headers.
    Raises:
        ManifestError: the manifest is missing, unreadable or empty, or the index cannot be written.
    """
    # Without the lock, which a folder that cannot be written does not give: an index appears whole.
    if (found := open_index(manifest, allow_outside=allow_outside)) is not None:
        return found
    target = index_path(manifest)
    try:
        # Ranks that are started together wait here for the first one's work.
        with FileLock(target.with_name(f".{target.name}.lock")):
            if (found := open_index(manifest, allow_outside=allow_outside)) is None:
                _write(manifest, target, allow_outside, processes, progress)
                found = open_index(manifest, allow_outside=allow_outside)
    except OSError as error:
        raise ManifestError(
            f"the index {target} could not be written: {error.strerror or error}; manifests above {INDEXED_FROM_BYTES >> 20} MiB are read by "
            "their index, so free some space, or copy the manifest to a folder that can be written"
        ) from error
    if found is None:
        raise ManifestError(f"the manifest {manifest} changed while it was indexed; start again when it is finished")
    return found


def _state(manifest: Path, allow_outside: bool) -> dict[str, Any]:
    """What an index is valid for."""
    about = manifest.stat()
    with manifest.open("rb") as file:
        first = file.read(END_BYTES)
        file.seek(max(0, about.st_size - END_BYTES))
        ends = hashlib.sha256(first + file.read()).hexdigest()
    return {"format": _FORMAT, "bytes": about.st_size, "mtime_ns": about.st_mtime_ns, "ends": ends, "allow_outside": allow_outside}


def _write(manifest: Path, target: Path, allow_outside: bool, processes: int, progress: bool) -> None:
    if not manifest.is_file():
        next(chunks_of(manifest), None)  # says what is wrong
    state = _state(manifest, allow_outside)
    with tempfile.TemporaryFile(dir=target.parent) as entries, appearing(target) as unfinished:
        digest = hashlib.sha256()
        problems = _measure(manifest, entries, digest, allow_outside, processes, progress)
        kept, again = _without_repeats(manifest, entries)
        problems = sorted([*problems, *again], key=lambda problem: problem.line)
        if not problems and not len(kept):
            raise ManifestError(f"the manifest {manifest} is empty; it needs at least one row")
        with unfinished.open("wb") as out:
            _lay_out(entries, kept, problems, {"of": state, "sha256": digest.hexdigest()}, out)


def _measure(manifest: Path, entries: BinaryIO, digest: Any, allow_outside: bool, processes: int, progress: bool) -> list[Problem]:
    """Append an entry for every usable row, and return the others; `digest` takes in the whole file."""
    problems: list[Problem] = []
    measure = functools.partial(_measured, manifest, allow_outside)
    with Bar(f"indexing {manifest.name}", manifest.stat().st_size, unit="B", in_bytes=True, shows=progress) as bar:
        for found, broken, read_bytes in in_order(measure, _digested(chunks_of(manifest), digest), processes):
            entries.write(found)
            problems += broken
            bar.update(read_bytes)
    return problems


def _digested(chunks: Iterable[Chunk], digest: Any) -> Iterator[Chunk]:
    for chunk in chunks:
        for raw in chunk.lines:
            digest.update(raw)
        yield chunk


def _measured(manifest: Path, allow_outside: bool, chunk: Chunk) -> tuple[bytes, list[Problem], int]:
    """Entries of a chunk's usable rows, its other rows, and its size in bytes."""
    reader = RowReader(manifest, allow_outside, Headers.UNSTATED)
    entries, problems = [], []
    for line, offset, raw in chunk.places():
        record = parsed(raw)
        try:
            if len(raw) > _LARGEST_LINE:
                raise Broken(f"the line has {len(raw)} bytes; 4 GiB is the most")
            entries.append((offset, len(raw), line, *_about(reader.read(line, record))))
        except Broken as broken:
            problems.append(Problem(line, id_of(record), str(broken)))
    return np.array(entries, dtype=_ENTRY).tobytes(), problems, sum(map(len, chunk.lines))


def _about(read: ReadRow) -> tuple[int, float, float, int, int]:
    """Columns of a row from its id on."""
    seconds = {role: 0.0 for role in Role}
    letters = units = 0
    for item, seconds_of_clip in zip(read.row.turns, read.seconds):
        seconds[item.role] += seconds_of_clip
        letters += len(item.text) + len(item.transcription)
        units += len(item.units or ())
    return hash_of(read.row.id), seconds[Role.USER], seconds[Role.ASSISTANT], letters, units


def _without_repeats(manifest: Path, entries: BinaryIO) -> tuple[np.ndarray, list[Problem]]:
    """Whether each row keeps its place [rows] bool, and the rows whose id an earlier one has."""
    # Block by block, for a column of a block keeps all of it.
    hashes = np.empty(entries.seek(0, 2) // _ENTRY.itemsize, dtype="<u8")
    for number, block in enumerate(_blocks(entries)):
        hashes[number * BLOCK_ROWS :][: len(block)] = block["id"]
    kept = np.ones(len(hashes), dtype=bool)
    first_lines: dict[str, int] = {}
    problems = []
    for number in repeated(hashes).tolist():
        entries.seek(number * _ENTRY.itemsize)
        entry = np.frombuffer(entries.read(_ENTRY.itemsize), dtype=_ENTRY)[0]
        line, row_id = int(entry["line"]), _id_in(manifest, entry)
        if row_id in first_lines:
            kept[number] = False
            problems.append(Problem(line, row_id, f"id {row_id!r} was already used in line {first_lines[row_id]}"))
        else:
            first_lines[row_id] = line
    return kept, problems


def _id_in(manifest: Path, entry: np.void) -> str:
    with manifest.open("rb") as file:
        file.seek(int(entry["offset"]))
        record = parsed(file.read(int(entry["size"])))
    return RowReader(manifest, allow_outside=True, headers=Headers.NONE).row(int(entry["line"]), record).id


def _blocks(entries: BinaryIO) -> Iterator[np.ndarray]:
    entries.seek(0)
    while raw := entries.read(BLOCK_ROWS * _ENTRY.itemsize):
        yield np.frombuffer(raw, dtype=_ENTRY)


def _lay_out(entries: BinaryIO, kept: np.ndarray, problems: Sequence[Problem], origin: dict[str, Any], out: BinaryIO) -> None:
    """Header, columns, broken rows."""
    columns = {}
    out.seek(HEAD_BYTES)
    for name in _ENTRY.names:
        columns[name] = out.tell()
        for number, block in enumerate(_blocks(entries)):
            start = number * BLOCK_ROWS
            out.write(np.ascontiguousarray(block[name][kept[start : start + len(block)]]).tobytes())
        out.write(bytes(-out.tell() % 8))
    start = out.tell()
    size = out.write(json.dumps([[problem.line, problem.row_id, problem.reason] for problem in problems]).encode())
    header = {**origin, "rows": int(kept.sum()), "columns": columns, "problems": [start, size]}
    out.seek(0)
    out.write(json.dumps(header).encode().ljust(HEAD_BYTES))
