"""Manifests: spoken conversations as JSONL, one row a line, each fault named by line and reason.

    {"id": "capital-france-p2", "kind": "capital", "conversations": [
        {"from": "user", "value": "", "audio": "clips/q.flac"},
        {"from": "assistant", "value": "The capital of France is Paris.", "transcription": "What is the capital of France?",
         "audio": "clips/a.flac", "units": "12 4 5"}]}

Audio paths are relative to the manifest's folder. `shards/a.tar:OFFSET:LENGTH` is an audio file inside a larger file, by its bytes, and
`start_s` and `end_s` beside `audio` are the seconds of a longer recording that are meant (both may be left out). `transcription` is what
the user's audio before it says; a row with `"no_speech": true` says that nobody speaks there, which CTC learns too. `duration_s` are an
item's seconds, which spares opening its file where only lengths are wanted. Whatever else a row or an item holds is kept. A `.json` file
with a list of such rows is read as well. Units may be grouped into the words of a unit language, as EchoX's are: "12_4 5", or with the
marks of its tokens, "<|unit_12_4|> <|unit_5|>". Of a neural codec with K codebooks each frame is such a group of K codes: "12_700_31
4_9_88".

A large .jsonl file is not read whole but indexed (`echox.data.manifest_index`): its rows are a sequence that reads each row at access.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np

from echox.data.id_hashes import hash_of, repeated
from echox.data.indexed_rows import IndexedRows, JoinedRows
from echox.data.lines import reading, records_of
from echox.data.manifest_index import build_index, open_index, wants_index
from echox.data.row_reader import Broken, RowReader, id_of, row_record
from echox.data.rows import NO_SPEECH, UNFINISHED, Item, Problem, Role, Row, spelled_units, spoken_pairs, with_answer, with_units
from echox.data.writing import appearing
from echox.disk import sha256_of
from echox.errors import ManifestError

__all__ = [
    "NO_SPEECH",
    "UNFINISHED",
    "Item",
    "Manifest",
    "OnBroken",
    "Problem",
    "Role",
    "Row",
    "examine_manifest",
    "manifest_fingerprint",
    "read_manifest",
    "read_manifests",
    "row_record",
    "spelled_units",
    "spoken_pairs",
    "with_answer",
    "with_units",
    "write_manifest",
]

log = logging.getLogger(__name__)

# Faults listed in one error; more would scroll the first ones away.
LISTED_PROBLEMS = 10


class OnBroken(Enum):
    """What becomes of rows that cannot be used."""

    skip = "skip"
    refuse = "refuse"


@dataclass(frozen=True, slots=True)
class Manifest:
    """The usable rows of a file, and what was wrong with the others."""

    rows: Sequence[Row]  # a tuple, or `IndexedRows`
    root: Path
    problems: tuple[Problem, ...] = ()
    lines: Sequence[int] = ()  # the line of each of `rows`


def read_manifest(path: str | Path, *, on_broken: OnBroken = OnBroken.refuse, allow_outside: bool = False) -> Manifest:
    """Read a manifest and check every row; of audio, the headers.

    Args:
        path: a .jsonl file, or a .json file with a list.
        on_broken: skip broken rows with one warning each, or refuse the file.
        allow_outside: whether audio may lie outside the manifest's folder, symbolic links followed.
    Returns:
        at least one row, in the order of the file; of a large file, rows that are read at access.
    Raises:
        ManifestError: the file is missing, unreadable, empty or has no usable row; or it has broken rows and `on_broken` is refuse.
    """
    manifest = examine_manifest(path, allow_outside=allow_outside)
    if on_broken is OnBroken.refuse and manifest.problems:
        raise ManifestError(f"{_plural(len(manifest.problems), 'broken row')} in {path}: {_first(manifest.problems)}")
    if not manifest.rows:
        raise ManifestError(f"no row of {path} is usable: {_first(manifest.problems)}")
    for problem in manifest.problems[: len(manifest.problems) if isinstance(manifest.rows, tuple) else LISTED_PROBLEMS]:
        log.warning("%s, %s; row skipped", path, problem)
    if not isinstance(manifest.rows, tuple) and len(manifest.problems) > LISTED_PROBLEMS:
        log.warning("%s: %d broken rows in all are skipped; 'echox-prepare validate' names them", path, len(manifest.problems))
    return manifest


def read_manifests(paths: Iterable[str | Path], *, on_broken: OnBroken = OnBroken.refuse, allow_outside: bool = False) -> Sequence[Row]:
    """The rows of several manifests, one after the other; a tuple, unless one of them is large.

    Raises:
        ManifestError: as `read_manifest`; or no path was given, or two manifests share a row id.
    """
    read = [(path, read_manifest(path, on_broken=on_broken, allow_outside=allow_outside).rows) for path in paths]
    if not read:
        raise ManifestError("no manifest was named; give at least one path")
    if len(read) > 1:
        _refuse_shared_ids(read)
    parts = [rows for _, rows in read]
    if all(isinstance(part, tuple) for part in parts):
        return tuple(row for part in parts for row in part)
    return parts[0] if len(parts) == 1 else JoinedRows(parts)


def _refuse_shared_ids(read: Sequence[tuple[str | Path, Sequence[Row]]]) -> None:
    hashes = [rows.column("id") if isinstance(rows, IndexedRows) else np.array([hash_of(row.id) for row in rows], dtype="<u8") for _, rows in read]
    joined = JoinedRows([rows for _, rows in read])
    origin: dict[str, str | Path] = {}
    for number in repeated(np.concatenate(hashes)).tolist():
        row, path = joined[number], read[int(np.searchsorted(joined.ends, number, side="right"))][0]
        if row.id in origin:
            raise ManifestError(f"row {row.id!r} is in {origin[row.id]} and in {path}; ids must differ, so leave one manifest out")
        origin[row.id] = path


def examine_manifest(path: str | Path, *, allow_outside: bool = False) -> Manifest:
    """Read a manifest, leaving it to the caller what to do about its problems.

    Raises:
        ManifestError: the file is missing, unreadable or empty.
    """
    path = Path(path)
    if wants_index(path):
        index = build_index(path, allow_outside=allow_outside)
        return Manifest(IndexedRows(index, allow_outside=allow_outside), path.parent, index.problems, index.column("line"))
    reader = RowReader(path, allow_outside)
    lines: dict[str, int] = {}
    rows: list[Row] = []
    problems: list[Problem] = []
    for line, record in records_of(path):
        try:
            row = reader.row(line, record)
            if row.id in lines:
                raise Broken(f"id {row.id!r} was already used in line {lines[row.id]}")
            lines[row.id] = line
            rows.append(row)
        except Broken as broken:
            problems.append(Problem(line, id_of(record), str(broken)))
    if not rows and not problems:
        raise ManifestError(f"the manifest {path} is empty; it needs at least one row")
    return Manifest(tuple(rows), path.parent, tuple(problems), tuple(lines.values()))


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


def manifest_fingerprint(path: str | Path) -> str:
    """Sixteen hex digits that change with any byte of the manifest (not of its audio).

    Raises:
        ManifestError: the file cannot be read.
    """
    path = Path(path)
    # Whichever audio it accepts, it knows the same bytes.
    found = [index for outside in (False, True) if wants_index(path) and (index := open_index(path, allow_outside=outside)) is not None]
    if found:
        return found[0].header["sha256"][:16]
    with reading(path):
        return sha256_of(path)[:16]


def _first(problems: Sequence[Problem]) -> str:
    more = len(problems) - LISTED_PROBLEMS
    return "; ".join(map(str, problems[:LISTED_PROBLEMS])) + (f"; and {more} more" if more > 0 else "")


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
