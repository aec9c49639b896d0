"""Manifests: spoken conversations as JSONL, one row a line, each fault named by line and reason.

    {"id": "capital-france-p2", "kind": "capital", "conversations": [
        {"from": "user", "value": "", "audio": "clips/q.flac"},
        {"from": "assistant", "value": "The capital of France is Paris.",
         "transcription": "What is the capital of France?",
         "audio": "clips/a.flac", "units": "12 4 5"}]}

Audio paths are relative to the manifest's folder. `shards/a.tar:OFFSET:LENGTH` is an audio file
inside a larger file, by its bytes, and `start_s` and `end_s` beside `audio` are the seconds of a
longer recording that are meant (both may be left out). `transcription` is what the user's audio
before it says; a row with `"no_speech": true` says that nobody speaks there, which CTC learns too.
`duration_s` are an item's seconds, which spares opening its file where only lengths are wanted.
Whatever else a row or an item holds is kept. A `.json` file with a list of such rows is read as
well.

Units may be grouped into the words of a unit language, as EchoX's are: "12_4 5", or with the marks
of its tokens, "<|unit_12_4|> <|unit_5|>". Of a neural codec with K codebooks each frame is such a
group of K codes: "12_700_31 4_9_88".

A large .jsonl file is not read whole but indexed (`echox.data.manifest_index`): its rows are a
sequence that reads each row at access.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np

from echox.core.errors import ManifestError
from echox.core.files import atomic_write, sha256_of
from echox.data.id_hashes import duplicate_positions, hash_id
from echox.data.indexed_rows import IndexedRows, JoinedRows
from echox.data.lines import open_manifest, read_records
from echox.data.manifest_index import build_index, needs_index, open_index
from echox.data.row_reader import BrokenRow, RowReader, row_record, stated_id
from echox.data.rows import (
    NO_SPEECH,
    UNFINISHED,
    Item,
    Problem,
    Role,
    Row,
    folded,
    spelled_units,
    spoken_pairs,
    with_answer,
    with_units,
)

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
    """What is done with rows that cannot be used."""

    skip = "skip"
    refuse = "refuse"


@dataclass(frozen=True, slots=True)
class Manifest:
    """The usable rows [N] of a file, with their lines [N], and the problems of the others."""

    rows: Sequence[Row]  # a tuple, or `IndexedRows`
    root: Path
    problems: tuple[Problem, ...] = ()
    lines: Sequence[int] | np.ndarray = ()  # the line of each of `rows`


def read_manifest(
    path: str | Path, *, on_broken: OnBroken = OnBroken.refuse, allow_outside: bool = False
) -> Manifest:
    """Read a manifest and check every row; of audio, the headers.

    Args:
        path: a .jsonl file, or a .json file with a list.
        on_broken: skip broken rows with one warning each, or refuse the file.
        allow_outside: accept audio outside the manifest's folder, symbolic links followed.

    Returns:
        at least one row, rows [N] in the order of the file; of a large file, rows that are read at
        access.

    Raises:
        ManifestError: the file is missing, unreadable, empty or has no usable row; or it has broken
            rows and `on_broken` is refuse.
    """
    manifest = examine_manifest(path, allow_outside=allow_outside)
    if on_broken is OnBroken.refuse and manifest.problems:
        count = len(manifest.problems)
        raise ManifestError(
            f"{count} broken row{'' if count == 1 else 's'} in {path}: {_listed(manifest.problems)}"
        )
    if not manifest.rows:
        raise ManifestError(f"no row of {path} is usable: {_listed(manifest.problems)}")
    _warn_skipped(path, manifest)
    return manifest


def _warn_skipped(path: str | Path, manifest: Manifest) -> None:
    sentences = folded(manifest.problems)
    # A file of millions of rows may have thousands of broken ones.
    is_large = not isinstance(manifest.rows, tuple)
    for sentence in sentences[:LISTED_PROBLEMS] if is_large else sentences:
        log.warning("%s, %s; row skipped", path, sentence)
    if is_large and len(sentences) > LISTED_PROBLEMS:
        message = "%s: %d broken rows in all are skipped; 'echox-prepare validate' names them"
        log.warning(message, path, len(manifest.problems))


def read_manifests(
    paths: Iterable[str | Path],
    *,
    on_broken: OnBroken = OnBroken.refuse,
    allow_outside: bool = False,
) -> Sequence[Row]:
    """Return the rows of several manifests, one manifest after the other.

    Args:
        paths: .jsonl files, or .json files with a list; at least one.
        on_broken: skip broken rows with one warning each, or refuse the file.
        allow_outside: accept audio outside a manifest's folder.

    Returns:
        rows [N], a tuple unless one of the manifests is large.

    Raises:
        ManifestError: as `read_manifest`; or no path is given, or two manifests share a row id.
    """
    manifests = [
        (path, read_manifest(path, on_broken=on_broken, allow_outside=allow_outside).rows)
        for path in paths
    ]
    if not manifests:
        raise ManifestError("no manifest was named; give at least one path")
    # Within one manifest ids are known to differ.
    if len(manifests) > 1:
        _refuse_shared_ids(manifests)
    parts = [rows for _, rows in manifests]
    # Not as `JoinedRows`, which searches for the part at every access.
    if all(isinstance(part, tuple) for part in parts):
        return tuple(row for part in parts for row in part)
    return parts[0] if len(parts) == 1 else JoinedRows(parts)


def _refuse_shared_ids(manifests: Sequence[tuple[str | Path, Sequence[Row]]]) -> None:
    # By their hashes first, so that of large manifests only rows in doubt are read.
    hashes = np.concatenate([_id_hashes(rows) for _, rows in manifests])
    joined = JoinedRows([rows for _, rows in manifests])
    origin: dict[str, str | Path] = {}
    for number in duplicate_positions(hashes).tolist():
        row = joined[number]
        # The first end beyond the number is that of the row's manifest.
        path, _ = manifests[int(np.searchsorted(joined.ends, number, side="right"))]
        if row.id in origin:
            raise ManifestError(
                f"row {row.id!r} is in {origin[row.id]} and in {path}; "
                "ids must differ, so leave one manifest out"
            )
        origin[row.id] = path


def _id_hashes(rows: Sequence[Row]) -> np.ndarray:
    """Hashes [N] uint64 of the rows' ids."""
    if isinstance(rows, IndexedRows):
        return rows.column("id")
    return np.array([hash_id(row.id) for row in rows], dtype="<u8")


def examine_manifest(path: str | Path, *, allow_outside: bool = False) -> Manifest:
    """Read a manifest and leave it to the caller what is done about its problems.

    Args:
        path: a .jsonl file, or a .json file with a list.
        allow_outside: accept audio outside the manifest's folder.

    Returns:
        the usable rows [N], possibly none, and the problems of the others.

    Raises:
        ManifestError: the file is missing, unreadable or empty.
    """
    path = Path(path)
    if needs_index(path):
        index = build_index(path, allow_outside=allow_outside)
        rows = IndexedRows(index, allow_outside=allow_outside)
        return Manifest(rows, path.parent, index.problems, index.column("line"))
    return _read_whole(path, allow_outside)


def _read_whole(path: Path, allow_outside: bool) -> Manifest:
    reader = RowReader(path, allow_outside)
    # Line of each good row by its id; in the order of the rows, as a dictionary keeps it.
    lines: dict[str, int] = {}
    rows: list[Row] = []
    problems: list[Problem] = []
    for line, record in read_records(path):
        try:
            row = reader.row(line, record)
            if row.id in lines:
                raise BrokenRow(f"id {row.id!r} was already used in line {lines[row.id]}")
            lines[row.id] = line
            rows.append(row)
        except BrokenRow as broken:
            problems.append(Problem(line, stated_id(record), str(broken)))
    if not rows and not problems:
        raise ManifestError(f"the manifest {path} is empty; it needs at least one row")
    return Manifest(tuple(rows), path.parent, tuple(problems), tuple(lines.values()))


def write_manifest(path: str | Path, rows: Iterable[Row]) -> None:
    """Write rows as JSONL; the file appears only when complete.

    Audio below the manifest's folder is written as a relative path.

    Raises:
        ManifestError: the file cannot be written.
    """
    path = Path(path)
    try:
        with atomic_write(path) as unfinished, unfinished.open("w", encoding="utf-8") as out:
            for row in rows:
                # Letters as they are, so that people can search the file.
                out.write(json.dumps(row_record(row, path.parent), ensure_ascii=False) + "\n")
    except OSError as error:
        raise ManifestError(
            f"the manifest {path} could not be written: {error.strerror or error}; free some "
            "space or choose another folder"
        ) from error


def manifest_fingerprint(path: str | Path) -> str:
    """Return 16 hex digits that change with any byte of the manifest (not of its audio).

    Raises:
        ManifestError: the file cannot be read.
    """
    path = Path(path)
    if needs_index(path):
        # An index holds the hash; whichever audio it accepts, it is of the same bytes.
        for allow_outside in (False, True):
            index = open_index(path, allow_outside=allow_outside)
            if index is not None:
                return index.header["sha256"][:16]
    # Opened for its errors, which name the manifest.
    with open_manifest(path):
        return sha256_of(path)[:16]


def _listed(problems: Sequence[Problem]) -> str:
    """The first problems in one line, and how many more there are."""
    sentences = folded(problems)
    listed = "; ".join(sentences[:LISTED_PROBLEMS])
    more = len(sentences) - LISTED_PROBLEMS
    return f"{listed}; and {more} more" if more > 0 else listed
