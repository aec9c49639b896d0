"""Indexed manifests: the same rows and faults as when read whole, never by an outdated index."""

import json
import logging
import os
import pickle

import numpy as np
import pytest
import soundfile

from echox.core.errors import ManifestError
from echox.data import id_hashes, manifest_index
from echox.data.id_hashes import duplicate_positions
from echox.data.indexed_rows import ChosenRows, IndexedRows, JoinedRows
from echox.data.lines import read_chunks
from echox.data.manifest import (
    OnBroken,
    examine_manifest,
    manifest_fingerprint,
    read_manifest,
    read_manifests,
)
from echox.data.manifest_index import build_index, index_path, open_index


def row(number: int, **changes) -> dict:
    user = {"from": "user", "value": "", "audio": "q.wav"} | (
        {"duration_s": 2.5} if number % 2 else {}
    )
    answer = {
        "from": "assistant",
        "value": "Oui, Bogotá.",
        "transcription": "Which?",
        "units": "1_2 3",
    }
    return {"id": f"row{number}", "conversations": [user, answer]} | changes


LINES = [
    json.dumps(row(0), ensure_ascii=False),
    "",
    "{",
    json.dumps(row(1)),
    json.dumps(row(0)),  # an id used before
    json.dumps(row(2, conversations=[{"from": "user", "audio": "gone.wav"}])),
    json.dumps(row(3, conversations=[{"from": "user", "audio": "../q.wav", "duration_s": 1.0}])),
    json.dumps({key: value for key, value in row(4).items() if key != "id"}),
    json.dumps(row(5)),
]


@pytest.fixture
def manifest(tmp_path):
    soundfile.write(tmp_path / "q.wav", 0.1 * np.ones(16_000), 16_000)
    path = tmp_path / "m.jsonl"
    path.write_text("\n".join(LINES), encoding="utf-8")
    return path


@pytest.fixture
def indexed(monkeypatch):
    """Every .jsonl file counts as large."""
    monkeypatch.setattr(manifest_index, "INDEXED_FROM_BYTES", 0)


def test_an_indexed_manifest_is_the_same_as_one_read_whole(manifest, monkeypatch):
    whole = examine_manifest(manifest)
    monkeypatch.setattr(manifest_index, "INDEXED_FROM_BYTES", 0)
    large = examine_manifest(manifest)
    assert isinstance(whole.rows, tuple) and isinstance(large.rows, IndexedRows)
    assert [row.id for row in whole.rows] == ["row0", "row1", "m-8", "row5"]
    assert tuple(large.rows) == whole.rows
    assert [large.rows[i] for i in range(-4, 4)] == [*whole.rows, *whole.rows]
    assert tuple(large.lines) == tuple(whole.lines) == (1, 4, 8, 9)
    assert large.problems == whole.problems
    assert tuple(large.rows[1:3]) == whole.rows[1:3]
    with pytest.raises(IndexError):
        large.rows[4]


def test_columns_hold_lengths_and_offsets(manifest, indexed):
    rows = read_manifest(manifest, on_broken=OnBroken.skip).rows
    # Read from the header, or as the row states them.
    assert rows.column("heard_s").tolist() == [1.0, 2.5, 1.0, 2.5]
    assert rows.column("units").tolist() == [3] * 4 and rows.column("letters").tolist() == [18] * 4
    content = manifest.read_bytes()
    for offset, size, row in zip(rows.column("offset"), rows.column("size"), rows):
        record = json.loads(content[offset : offset + size])
        assert record["conversations"][1]["value"] == row.answer.text


def test_several_processes_make_the_same_index(manifest, monkeypatch):
    monkeypatch.setattr("echox.data.manifest_index.read_chunks", _small_chunks)
    build_index(manifest, progress=False)
    of_one_process = index_path(manifest).read_bytes()
    index_path(manifest).unlink()
    build_index(manifest, processes=2, progress=False)
    assert index_path(manifest).read_bytes() == of_one_process


def _small_chunks(path):
    return read_chunks(path, 200)


def test_an_outdated_index_is_not_used(manifest, indexed):
    build_index(manifest, progress=False)
    before = manifest_fingerprint(manifest)
    assert open_index(manifest) is not None and open_index(manifest, allow_outside=True) is None
    stamp = manifest.stat()
    # Same size, another word.
    manifest.write_text("\n".join(LINES).replace("Oui", "Non"), encoding="utf-8")
    assert open_index(manifest) is None
    assert manifest_fingerprint(manifest) != before
    os.utime(manifest, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert open_index(manifest) is None  # the time of change alone would not tell
    assert read_manifest(manifest, on_broken=OnBroken.skip).rows[0].answer.text == "Non, Bogotá."
    index_path(manifest).write_bytes(b"half an ind")
    assert len(read_manifest(manifest, on_broken=OnBroken.skip).rows) == 4


def test_an_existing_index_is_used_in_a_read_only_folder(manifest, monkeypatch):
    build_index(manifest, progress=False)
    monkeypatch.setattr(
        manifest_index,
        "FileLock",
        lambda path: (_ for _ in ()).throw(OSError(30, "Read-only file system")),
    )
    assert len(build_index(manifest, progress=False)) == 4
    index_path(manifest).unlink()
    with pytest.raises(
        ManifestError,
        match="Read-only file system.*copy the manifest to a folder that can be written",
    ):
        build_index(manifest, progress=False)


@pytest.mark.parametrize("size", [-1, manifest_index.HEAD_BYTES + 8])
def test_a_truncated_index_is_made_again(manifest, size):
    build_index(manifest, progress=False)
    complete = index_path(manifest).read_bytes()
    index_path(manifest).write_bytes(complete[:size])
    assert open_index(manifest) is None
    assert build_index(manifest, progress=False).column("line").tolist() == [1, 4, 8, 9]
    assert index_path(manifest).read_bytes() == complete


@pytest.mark.parametrize("block", [1, 3, 1000])
def test_duplicate_hashes_are_found_block_by_block(block, monkeypatch):
    monkeypatch.setattr(id_hashes, "BLOCK_ROWS", block)
    hashes = np.array([5, 2**64 - 1, 7, 5, 0, 9, 2**64 - 1, 5], dtype="<u8")
    assert duplicate_positions(hashes).tolist() == [0, 1, 3, 6, 7] and hashes[0] == 5
    assert duplicate_positions(hashes[[0, 1, 2]]).tolist() == []
    assert duplicate_positions(hashes[:0]).tolist() == []


def test_the_index_appears_only_when_complete(manifest, indexed, monkeypatch):
    monkeypatch.setattr(
        manifest_index,
        "_lay_out",
        lambda *parts: (_ for _ in ()).throw(OSError(28, "No space left on device")),
    )
    with pytest.raises(
        ManifestError, match="index .*m.jsonl.idx could not be written: No space left"
    ):
        read_manifest(manifest, on_broken=OnBroken.skip)
    assert not index_path(manifest).exists() and [
        path.name for path in manifest.parent.iterdir() if "idx" in path.name
    ] == [".m.jsonl.idx.lock"]


def test_broken_rows_are_refused_or_skipped_and_counted(manifest, indexed, caplog):
    with pytest.raises(
        ManifestError,
        match="4 broken rows in .*line 3: not JSON.*'row0' was already used in line 1.*"
        "gone.wav does not exist.*outside",
    ):
        read_manifest(manifest)
    broken = [json.dumps({"id": [number] * number}) for number in range(3)] + ["{"] * 3
    broken += [json.dumps({"conversations": [{"from": str(number)}]}) for number in range(7)]
    manifest.write_text("\n".join(broken + LINES), encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        read_manifest(manifest, on_broken=OnBroken.skip)
    assert len(caplog.messages) == 11 and "17 broken rows" in caplog.messages[-1]


def test_a_row_that_broke_since_is_named_by_line_at_access(manifest, indexed):
    rows = read_manifest(manifest, on_broken=OnBroken.skip).rows
    (manifest.parent / "q.wav").unlink()
    with pytest.raises(ManifestError, match="line 4: item 1: audio q.wav does not exist"):
        rows[1]


def test_rows_can_be_pickled_for_loading_processes(manifest, indexed):
    rows = read_manifest(manifest, on_broken=OnBroken.skip).rows
    assert tuple(pickle.loads(pickle.dumps(rows))) == tuple(rows)
    assert len(pickle.dumps(rows)) < 2000


def test_manifests_are_joined_and_may_not_share_ids(manifest, indexed):
    other = manifest.with_name("n.jsonl")
    other.write_text("\n".join(json.dumps(row(number)) for number in (7, 8)))
    rows = read_manifests([manifest, other], on_broken=OnBroken.skip)
    assert isinstance(rows, JoinedRows)
    assert (
        [row.id for row in rows]
        == [rows[i].id for i in range(6)]
        == ["row0", "row1", "m-8", "row5", "row7", "row8"]
    )
    assert [row.id for row in rows[3:5]] == ["row5", "row7"] and rows[-1].id == "row8"
    assert (
        isinstance(rows[3:5], ChosenRows)
        and rows[3:5].column("line").tolist() == rows.column("line").tolist()[3:5]
    )
    assert rows.parts[0].index(rows[1]) == 1
    other.write_text(json.dumps(row(5)))
    with pytest.raises(ManifestError, match="'row5' is in .*m.jsonl and in .*n.jsonl"):
        read_manifests([manifest, other], on_broken=OnBroken.skip)


def test_empty_and_missing_manifests_are_refused(tmp_path):
    (tmp_path / "m.jsonl").write_text("\n\n")
    with pytest.raises(ManifestError, match="is empty"):
        build_index(tmp_path / "m.jsonl", progress=False)
    with pytest.raises(ManifestError, match="does not exist"):
        build_index(tmp_path / "gone.jsonl", progress=False)
