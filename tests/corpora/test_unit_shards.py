"""Shards of units: each encoded once, none lost to a killed process, repeated ids found."""

import errno
import json
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from echox.core.errors import AssetError, ManifestError
from echox.corpora.unit_shards import EncodedShard, UnitShards
from echox.data.line_shards import LineShards
from echox.data.manifest import Problem, Row

FORK = multiprocessing.get_context("fork")
ROWS, SIZE = 23, 3


def written(folder: Path, ids=None) -> Path:
    ids = [f"row{number}" for number in range(ROWS)] if ids is None else ids
    lines = [
        json.dumps(
            {"id": name, "conversations": [{"from": "assistant", "value": f"Said by {name}."}]}
        )
        for name in ids
    ]
    (folder / "m.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "m.jsonl"


def shards_of(folder: Path, work: str = "work") -> UnitShards:
    return UnitShards(LineShards(folder / "m.jsonl", SIZE), folder / work, folder / f"{work}.jsonl")


class Encoder:
    """Returns the rows of a shard as they are, and logs its number."""

    def __init__(self, shards: UnitShards) -> None:
        self.shards = shards
        self.log = shards.folder.parent / "encoded.log"

    def __call__(self, number: int) -> EncodedShard:
        with self.log.open("a") as log:
            log.write(f"{number}\n")
        lines = list(self.shards.source.rows(number))
        problems = [row for _, row in lines if isinstance(row, Problem)]
        return EncodedShard(
            [(line, row) for line, row in lines if isinstance(row, Row)], problems, 1.5
        )

    def encoded(self) -> list[int]:
        return sorted(map(int, self.log.read_text().split()))


class SlowEncoder(Encoder):
    def __call__(self, number: int) -> EncodedShard:
        time.sleep(0.01)
        return super().__call__(number)


class KilledEncoder(Encoder):
    """An encoder whose process is killed while it holds its third shard."""

    def __call__(self, number: int) -> EncodedShard:
        shard = super().__call__(number)
        if len(self.encoded()) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return shard


class HangingEncoder(Encoder):
    def __call__(self, number: int) -> EncodedShard:
        super().__call__(number)
        time.sleep(60)
        raise AssertionError


def encode_all(folder: Path, encoder: type[Encoder], first: int = 0) -> None:
    shards = shards_of(folder)
    shards.encode([*range(first, len(shards)), *range(first)], encoder(shards))


def started(folder: Path, encoder: type[Encoder], first: int = 0):
    process = FORK.Process(target=encode_all, args=(folder, encoder, first))
    process.start()
    return process


def test_concurrent_processes_encode_every_shard_once(tmp_path):
    written(tmp_path)
    processes = [started(tmp_path, SlowEncoder, first) for first in (0, 0, 4)]
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    shards = shards_of(tmp_path)
    assert Encoder(shards).encoded() == list(range(8)) and shards.merge()
    assert [json.loads(line)["id"] for line in shards.target.read_text().splitlines()] == [
        f"row{number}" for number in range(ROWS)
    ]


def test_a_killed_process_loses_only_the_shard_it_held(tmp_path):
    written(tmp_path)
    process = started(tmp_path, KilledEncoder)
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    shards = shards_of(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in shards.folder.glob("*.jsonl")}
    assert sorted(shards.done()) == [0, 1] and not shards.merge() and not shards.target.exists()
    shards.encode(range(len(shards)), encoder := Encoder(shards))
    assert encoder.encoded() == [0, 1, 2, 2, 3, 4, 5, 6, 7]
    assert (
        before.items()
        <= {path: path.stat().st_mtime_ns for path in shards.folder.glob("*.jsonl")}.items()
    )
    whole = shards_of(tmp_path, "whole")
    whole.encode(range(len(whole)), Encoder(whole))
    assert (
        shards.merge() and whole.merge() and shards.target.read_bytes() == whole.target.read_bytes()
    )


def test_the_shard_of_a_dead_process_is_taken_over(tmp_path):
    written(tmp_path)
    process = started(tmp_path, HangingEncoder)
    while not (tmp_path / "encoded.log").exists():
        time.sleep(0.01)
    threading.Timer(0.3, process.kill).start()
    shards = shards_of(tmp_path)
    shards.encode(range(len(shards)), encoder := Encoder(shards))
    assert encoder.encoded() == [0, 0, *range(1, 8)] and shards.merge()
    process.join(30)


def test_a_full_disk_is_one_sentence_and_costs_no_finished_shard(tmp_path, monkeypatch):
    written(tmp_path)
    shards = shards_of(tmp_path)
    write_bytes = Path.write_bytes

    def full(path, content):
        if "000002" in path.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_bytes(path, content)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        with pytest.raises(
            AssetError, match=r"No space left on device \(.*\); finished shards are kept"
        ):
            shards.encode(range(len(shards)), Encoder(shards))
    assert sorted(shards.done()) == [0, 1] and not list(shards.folder.glob(".*"))
    shards.encode(range(len(shards)), encoder := Encoder(shards))
    assert encoder.encoded() == [0, 1, 2, 2, 3, 4, 5, 6, 7] and shards.merge()


def test_a_truncated_shard_is_encoded_again(tmp_path):
    written(tmp_path)
    shards = shards_of(tmp_path)
    shards.encode(range(len(shards)), Encoder(shards))
    with (shards.folder / "000003.jsonl").open("r+b") as rows:
        rows.truncate(10)
    (shards.folder / "000005.json").write_bytes(b"")
    assert sorted(shards_of(tmp_path).done()) == [0, 1, 2, 4, 6, 7]


def altered(path, at=0):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "no rows": ("jsonl", Path.unlink),
    "empty rows": ("jsonl", lambda path: path.write_bytes(b"")),
    "first byte of the rows": ("jsonl", altered),
    "last byte of the rows": ("jsonl", lambda path: altered(path, -1)),
    "empty marker": ("json", lambda path: path.write_bytes(b"")),
    "half a marker": ("json", lambda path: path.write_bytes(path.read_bytes()[:50])),
    "marker of a list": ("json", lambda path: path.write_text("[1, 2]")),
    "deep marker": ("json", lambda path: path.write_text("[" * 100_000)),
    "a digit of the marker": (
        "json",
        lambda path: path.write_text(path.read_text().replace('"audio_s": 1.5', '"audio_s": 2.5')),
    ),
    "marker without numbers": (
        "json",
        lambda path: path.write_text('{"ids": "", "lines": [], "problems": []}'),
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_encoded_again_with_one_line(tmp_path, caplog, damage):
    written(tmp_path)
    shards = shards_of(tmp_path)
    shards.encode(range(len(shards)), Encoder(shards))
    assert shards.merge()
    content = shards.target.read_bytes()
    shards.target.unlink()
    ending, change = DAMAGES[damage]
    change(shards.folder / f"000003.{ending}")
    shards = shards_of(tmp_path)
    shards.encode(range(len(shards)), encoder := Encoder(shards))
    if not shards.merge():
        assert sorted(shards.done()) == [0, 1, 2, 4, 5, 6, 7]
        shards.encode(range(len(shards)), encoder)
        assert shards.merge()
    assert encoder.encoded() == sorted([*range(8), 3])
    assert shards.target.read_bytes() == content
    (line,) = caplog.messages
    assert "000003.jsonl is damaged" in line


def test_shards_of_an_earlier_version_are_merged(tmp_path):
    written(tmp_path)
    shards = shards_of(tmp_path)
    shards.encode(range(len(shards)), Encoder(shards))
    for path in shards.folder.glob("*.json"):
        marker = json.loads(path.read_text())
        del marker["checksum"], marker["sha256"]
        path.write_text(json.dumps(marker))
    shards = shards_of(tmp_path)
    shards.encode(range(len(shards)), encoder := Encoder(shards))
    assert encoder.encoded() == list(range(8)) and shards.merge()


def test_a_shard_is_encoded_without_listing_the_others(tmp_path, monkeypatch):
    written(tmp_path)
    shards, listed = shards_of(tmp_path), []
    glob = Path.glob
    monkeypatch.setattr(
        Path, "glob", lambda path, pattern: listed.append(path) or glob(path, pattern)
    )
    shards.encode(range(len(shards)), encoder := Encoder(shards))
    assert encoder.encoded() == list(range(8)) and listed == []


def test_broken_rows_and_ids_repeated_across_shards_are_named_in_a_side_file(tmp_path):
    path = written(tmp_path, ["a", "b", "c", "d", "a", "e", "b"])
    with path.open("ab") as out:
        out.write(b'{"id": "\xff"}\n\n{"id": "f"')
    shards = shards_of(tmp_path)
    shards.encode(range(len(shards)), Encoder(shards))
    assert shards.merge()
    assert [json.loads(line)["id"] for line in shards.target.read_text().splitlines()] == [
        "a",
        "b",
        "c",
        "d",
        "e",
    ]
    problems = [json.loads(line) for line in shards.broken_path.read_text().splitlines()]
    assert [(problem["line"], problem["id"]) for problem in problems] == [
        (5, "a"),
        (7, "b"),
        (8, None),
        (10, None),
    ]
    assert [problem["reason"].split(" (")[0] for problem in problems] == [
        "id 'a' was already used in line 1",
        "id 'b' was already used in line 2",
        "not UTF-8 text",
        "not JSON",
    ]


def test_a_target_is_written_again_only_when_it_is_out_of_date(tmp_path):
    written(tmp_path)
    shards = shards_of(tmp_path)
    shards.encode(range(len(shards)), Encoder(shards))
    assert shards.merge()
    before = shards.target.stat().st_ino
    assert shards_of(tmp_path).merge() and shards.target.stat().st_ino == before
    content = shards.target.read_bytes()
    shards.target.write_bytes(content[:100])
    assert shards_of(tmp_path).merge() and shards.target.read_bytes() == content


def test_a_manifest_without_lines_or_usable_rows_is_refused(tmp_path):
    (tmp_path / "m.jsonl").write_text("")
    with pytest.raises(ManifestError, match="is empty"):
        shards_of(tmp_path)
    (tmp_path / "m.jsonl").write_text("{\n")
    shards = shards_of(tmp_path)
    shards.encode([0], Encoder(shards))
    with pytest.raises(
        ManifestError, match="no row of .* has an answer with usable audio: 1 are broken"
    ):
        shards.merge()
    assert not shards.target.exists() and not list(tmp_path.glob(".*"))
